"""Bodies of the native API. Answers are written as plain dictionaries, since a model per picture would cost as much as
the encoding; tests hold them to these types, of which the OpenAPI document is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serve_app import errors
from serve_app.errors import ServeError
from serve_app.manifest import Backend, InputSpec, Precision, Weights


def error_classes() -> Iterator[type[ServeError]]:
    """Every class of the error tree that can be an answer, the base first."""
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, ServeError):
            yield value


ERROR_CODES: tuple[str, ...] = tuple(sorted({error.code for error in error_classes()}))


def _known(code: str) -> str:
    if code not in ERROR_CODES:
        raise ValueError(f"not one of {', '.join(ERROR_CODES)}")
    return code


class Schema(BaseModel):
    """What clients read. They must take no offence at fields that a later version adds."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
PerSecond = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Prediction(Schema):
    """One class and how likely it is."""

    class_id: Count
    label: str
    score: Share
    """Softmax probability."""


class Timing(Schema):
    """Milliseconds the picture spent, by stage."""

    queue: Milliseconds
    """All waiting, before the decoder and before the engine."""
    preprocess: Milliseconds
    """Decoding and resizing."""
    inference: Milliseconds
    """The batch that the picture was part of, in the engine."""


class Result(Schema):
    """What one picture shows."""

    predictions: Annotated[list[Prediction], Field(min_length=1)]
    """The likeliest first."""
    timing_ms: Timing


class Answered(Schema):
    """Which model answered."""

    model: str
    version: Positive
    """Of the engine that answered."""
    trained: bool
    """False for an engine built with random weights: such answers mean nothing."""


class Answer(Answered, Result):
    """The answer to one picture."""


class Problem(Schema):
    """Why there is no answer."""

    code: Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(ERROR_CODES)})]
    """Stable, for programs."""
    message: str
    """For people; says what to do."""


class ErrorAnswer(Schema):
    """Every error of the native API."""

    error: Problem


class ManyAnswers(Answered):
    """The answers to several pictures of one request."""

    results: Annotated[list[Result | ErrorAnswer], Field(min_length=1)]
    """In the order of the pictures; a refused picture has an error in its place, and the others are not touched."""


class PictureJSON(Schema):
    """Pictures in JSON."""

    image: str | list[str]
    """A picture file in base64 (standard alphabet, no line breaks; a `data:` URL is taken too), or a list of them."""


class ModelDescription(Schema):
    """A served model."""

    name: str
    version: Positive
    """Of the engine served now."""
    default: bool
    """Whether it answers where a request names no model."""
    architecture: str
    backend: Backend
    precision: Precision
    """Of the weights."""
    trained: bool
    """False for an engine built with random weights."""
    num_classes: Positive
    preprocess: Literal["exact", "fast"]
    """`exact` equals torchvision's transforms bit for bit; `fast` decodes large JPEGs at reduced scale."""
    placement: Literal["colocated", "split"]
    """Whether the engine runs in the process that decodes, or in replicas of its own."""
    device: str
    max_batch_size: Positive
    weights: Weights
    input: InputSpec


class Models(Schema):
    """What is served, the default first."""

    models: Annotated[list[ModelDescription], Field(min_length=1)]


class Alive(Schema):
    """The process answers."""

    live: Literal[True]


class Ready(Schema):
    """Every engine is loaded, and ran each batch size once."""

    ready: Literal[True]
