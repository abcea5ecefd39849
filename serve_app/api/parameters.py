"""Parameters of the native API: each is declared once, read by its declaration, and described by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from serve_app.errors import BadParameter, UnknownModel
from serve_app.types import Priority

T = TypeVar("T")
Word = TypeVar("Word", bound=str)
Place = Literal["query", "header"]
DEFAULT_TOP_K = 3
_SHOWN = 40
"""Characters of a wrong value that are said back."""


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """A parameter that is a decimal number without sign, at most `maximum`.

    Attributes:
        name: as clients write it.
        place: where they write it.
        description: for people who read the API.
        example: a value that works.
    """

    name: str
    place: Place
    description: str
    example: int
    minimum: int = 1
    maximum: int = 999_999_999

    def parse(self, text: str | None) -> int | None:
        """The number, or None where nothing was sent.

        Raises:
            BadParameter: not such a number.
        """
        if text is None:
            return None
        if text.isascii() and text.isdigit() and len(text) <= 9 and self.minimum <= int(text) <= self.maximum:
            return int(text)
        raise BadParameter(f"{self.name} must be a whole number above {self.minimum - 1}, not {text[:_SHOWN]!r}")

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the values."""
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Choice(Generic[Word]):
    """A parameter that is one of a few words; the first is meant where nothing was sent. Otherwise as `WholeNumber`."""

    name: str
    place: Place
    description: str
    words: tuple[Word, ...]

    @property
    def example(self) -> Word:
        return self.words[0]

    def parse(self, text: str | None) -> Word:
        """The word.

        Raises:
            BadParameter: another one.
        """
        if text is None:
            return self.words[0]
        for word in self.words:
            if text == word:
                return word
        raise BadParameter(f"{self.name} must be {' or '.join(self.words)}, not {text[:_SHOWN]!r}")

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the values."""
        return {"type": "string", "enum": list(self.words), "default": self.words[0]}


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parameter that names a served model; which there are is configuration. Otherwise as `WholeNumber`."""

    name: str
    place: Place
    description: str

    def choose(self, text: str | None, models: Mapping[str, T]) -> T:
        """That model, or the first where nothing was sent.

        Raises:
            UnknownModel: not served.
        """
        if text is None:
            return next(iter(models.values()))
        model = models.get(text)
        if model is None:
            raise UnknownModel(f"no model {text[:_SHOWN]!r} here; served: {', '.join(models)}")
        return model

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the values."""
        return {"type": "string"}


TOP_K = WholeNumber(
    "top_k",
    "query",
    f"How many classes to answer, the likeliest first: 1 to all that the model has. {DEFAULT_TOP_K} where it is left "
    "out, or all of a model that has fewer.",
    example=5,
)
MODEL = ModelName("model", "query", "Which of the served models; the first of `GET /models` where it is left out.")
TIMEOUT_MS = WholeNumber(
    "x-request-timeout-ms",
    "header",
    "Milliseconds after which no answer is wanted any more: a picture that is late is dropped before it is decoded or "
    "classified, and answered 504.",
    example=5000,
)
PRIORITY: Choice[Priority] = Choice(
    "x-priority",
    "header",
    "Batch pictures let interactive ones pass, though not for long, and are refused earlier.",
    words=get_args(Priority),
)
RETRY_ATTEMPT = WholeNumber(
    "x-retry-attempt",
    "header",
    "How often this request was refused (429) before. Retries are let in before new requests, so that `Retry-After` "
    "holds.",
    example=1,
)
Parameter = WholeNumber | Choice[Priority] | ModelName
PARAMETERS: tuple[Parameter, ...] = (TOP_K, MODEL, TIMEOUT_MS, PRIORITY, RETRY_ATTEMPT)
"""All that `POST /predict` reads beside the body."""
