"""The `args` of the application in a configuration file, as one validated, frozen tree. Unknown keys are errors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_app.errors import ConfigError
from serve_app.manifest import Backend, Precision
from serve_app.types import InferencePrecision

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EngineSettings(_Section):
    """Which engine is served."""

    engines_dir: Path = Path("engines")
    """Where `engine-build` put engines; relative to the folder the service was started in."""
    model: str = "auto"
    """Name of a model in `engines_dir`; `auto` is resnet18 where a trained one was built, else efficientnet_lite0."""
    backend: Backend = "openvino"
    """What the engine was built for."""
    precision: Precision = "fp32"
    """Of the engine's weights; int8 needs an engine built with calibration pictures."""


class PreprocessSettings(_Section):
    """From a file to engine input."""

    mode: Literal["exact", "fast"] = "exact"
    """`exact` equals torchvision's transforms bit for bit; `fast` decodes large JPEGs at reduced scale and resizes
    no more than the crop, for a small loss of accuracy."""
    threads: Positive | Auto = "auto"
    """Decode threads of a replica; `auto` is its CPUs. In `colocated` placement each of them has a copy of the
    engine."""


class RuntimeSettings(_Section):
    """How the engine runs."""

    threads: Positive | Auto = "auto"
    """Inference threads of an engine; `auto` is the replica's CPUs, within the cgroup's quota, divided by the copies
    of the engine."""
    inference_precision: InferencePrecision = "auto"
    """`auto` lets OpenVINO compute fp32 engines in bf16 where the CPU has the instructions."""


class BatchingSettings(_Section):
    """How pictures are put together for one run of the engine."""

    max_batch_size: Annotated[int, Field(ge=1, le=512)] = 16
    """Largest batch, in pictures. Every size up to it is run once before a replica reports ready."""
    max_in_flight: Positive = 1
    """Chunks a sender may have at the classifier at once; what is decoded meanwhile gathers into the next chunk."""
    merge_wait_s: Annotated[float, Field(ge=0, le=1)] | Auto = "auto"
    """Split placement: how long the classifier waits for chunks of other senders before it seals a batch; `auto`
    is the measured time of one picture, at most 5 ms."""


class LimitSettings(_Section):
    """What is refused, before memory or time is spent on it."""

    max_body_bytes: Positive = 20 * 2**20
    """Of one request; counted while it arrives."""
    max_pixels: Positive = 50_000_000
    """Width x height of a picture, read from its header before it is decoded."""
    max_pictures_per_request: Positive = 64
    """In one multipart or JSON body."""
    max_queued_pictures: Positive = 256
    """Pictures one replica holds at once, waiting or in work; more are answered 429."""
    max_queued_bytes: Positive = 256 * 2**20
    """Request bodies one replica holds at once."""
    default_timeout_ms: Positive = 30_000
    """For requests without the header x-request-timeout-ms."""
    max_timeout_ms: Positive = 120_000
    """Upper bound of that header."""


class Settings(_Section):
    """Everything the application takes."""

    engine: EngineSettings = EngineSettings()
    placement: Literal["colocated", "split"] = "colocated"
    """`colocated`: the engine runs in the process that decodes. `split`: in Classifier replicas of its own."""
    preprocess: PreprocessSettings = PreprocessSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    batching: BatchingSettings = BatchingSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _limits_fit_together(self) -> Settings:
        limits = self.limits
        if limits.max_pictures_per_request > limits.max_queued_pictures:
            raise ValueError(
                "limits.max_pictures_per_request is above limits.max_queued_pictures: such a request could never be "
                "admitted; raise the second or lower the first"
            )
        if limits.default_timeout_ms > limits.max_timeout_ms:
            raise ValueError("limits.default_timeout_ms is above limits.max_timeout_ms; lower it")
        return self


def parse_settings(args: Mapping[str, Any]) -> Settings:
    """Validates `args`.

    Raises:
        ConfigError: one line per problem, each with its key's path; an unknown key names the nearest valid one.
    """
    try:
        return Settings.model_validate(dict(args))
    except ValidationError as error:
        problems = [_describe(problem["type"], problem["loc"], problem["msg"]) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def nearest_key(key: str, valid: list[str]) -> str:
    """`; did you mean ...?`, or the list of valid keys where none is near."""
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"


def _describe(kind: str, location: tuple[int | str, ...], message: str) -> str:
    path = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"args.{path}: unknown key; {nearest_key(str(location[-1]), _keys_at(location[:-1]))}"
    return f"args.{path}: {message}" if path else f"args: {message.removeprefix('Value error, ')}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
