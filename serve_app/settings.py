"""The `args` of the application in a configuration file, as one validated, frozen tree. Unknown keys are errors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve_app.errors import ConfigError
from serve_app.manifest import Backend, Precision
from serve_app.types import InferencePrecision

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Section = TypeVar("Section", bound=_Section)


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
    device: Literal["cuda", "stand_in"] = "cuda"
    """Of a tensorrt engine. `stand_in` runs its ONNX on the CPU behind the same threads, streams and buffers: to
    rehearse a GPU configuration where there is no GPU."""
    batches_on_gpu: Annotated[int, Field(ge=1, le=2)] = 2
    """tensorrt: batches on the GPU at once; while one is computed, the next is copied."""
    cuda_graphs: bool = False
    """tensorrt: launch each batch size as one recorded graph; saves the CPU some launches per batch, which matters for
    small batches of small models."""


class BatchingSettings(_Section):
    """How pictures are put together for one run of the engine."""

    max_batch_size: Annotated[int, Field(ge=1, le=512)] = 16
    """Largest batch, in pictures. Every size up to it is run once before a replica reports ready."""
    max_in_flight: Positive = 1
    """Split placement: chunks that each classifier may have at once, from all senders together; what is decoded
    meanwhile gathers into the next chunk."""
    merge_wait_s: Annotated[float, Field(ge=0, le=1)] | Auto = "auto"
    """Split placement: how long the classifier waits for chunks of other senders before it seals a batch; `auto`
    follows the measured time of one picture, at most 5 ms, and 0 where larger batches are not faster."""
    latency_objective_ms: Annotated[float, Field(gt=0)] = 1_000
    """What answers should take at most. Batches are kept so small that waiting for one and running in the next take
    half of it."""


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
    """Request bodies and decoded pictures one replica holds at once; what would be more is answered 429."""
    max_wait_ms: Positive = 5_000
    """A retry is answered 429 if the pictures before it would take longer than this; a first attempt at 70 % of it, so
    that those who were told to come back find room; half of either for requests of priority batch."""
    batch_ageing_s: Seconds = 2.0
    """Interactive pictures overtake batch ones, but none that has waited so much longer."""
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


def needs_gpu(settings: Settings) -> bool:
    """Whether replicas run on a GPU: an engine for one, and no stand-in for it."""
    return settings.engine.backend == "tensorrt" and settings.runtime.device == "cuda"


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)


class ScheduledFloor(_Section):
    """Hours in which a stage has at least so many replicas."""

    start: time
    """Time of day from which it holds; the replicas are asked for earlier, by the time they take to start."""
    end: time
    """Time of day from which it no longer holds; before `start` means on the next day."""
    min_replicas: Positive
    """At least so many, if max_replicas allows."""
    days: Annotated[tuple[Day, ...], Field(min_length=1)] = DAYS
    """On which it begins."""
    timezone: str = "UTC"
    """Of `start` and `end`, such as Europe/Berlin."""

    @field_validator("start", "end", mode="before")
    @classmethod
    def _no_number(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError('a number, which is how YAML reads 18:00; write it in quotes, as "18:00"')
        return value

    @field_validator("start", "end")
    @classmethod
    def _no_zone(cls, value: time) -> time:
        if value.tzinfo is not None:
            raise ValueError("has a time zone of its own; give it as timezone")
        return value

    @model_validator(mode="after")
    def _holds_at_times(self) -> ScheduledFloor:
        if self.start == self.end:
            raise ValueError("start is end, so it never holds; end it later, or raise min_replicas of the deployment")
        return self

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone {name!r}; write one such as Europe/Berlin") from None
        return name

    def weekdays(self) -> set[int]:
        """Monday is 0."""
        return {DAYS.index(day) for day in self.days}


class ScalingGoal(_Section):
    """What the autoscaling policies aim for: their `policy_kwargs`, per stage."""

    utilization: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of a replica's measured rate that arrivals may fill; the rest is for bursts."""
    drain_s: Annotated[float, Field(gt=0)] = 5.0
    """A backlog is to be gone so long after the replicas asked for are up."""
    max_wait_s: Annotated[float, Field(gt=0)] = 5.0
    """Replicas refuse what would wait longer (limits.max_wait_ms), so no backlog is expected to grow beyond it."""
    start_up_s: Seconds = 8.0
    """From asking for a replica until it serves: the first estimate, measured from then on."""
    keep_s: Seconds = 60.0
    """Replicas go when none of them was needed for so long."""
    keep_last_s: Seconds = 300.0
    """The last replica goes (where min_replicas is 0) when nothing came for so long."""
    slack: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Replicas go only if arrivals could grow by this share without their being asked for again."""
    stale_after_s: Annotated[float, Field(gt=0)] = 10.0
    """Reports older than this tell nothing."""
    log_every_s: Seconds = 60.0
    """A decision that does not change is logged again after so long."""
    floors: tuple[ScheduledFloor, ...] = ()
    """Scheduled minima."""


def parse_settings(args: Mapping[str, Any]) -> Settings:
    """Validates `args`.

    Raises:
        ConfigError: one line per problem, each with its key's path; an unknown key names the nearest valid one.
    """
    return _parse(Settings, args, "args")


def parse_goal(kwargs: Mapping[str, Any]) -> ScalingGoal:
    """Validates the `policy_kwargs` of an autoscaling policy.

    Raises:
        ConfigError: as `parse_settings`.
    """
    return _parse(ScalingGoal, kwargs, "policy_kwargs")


class LiveBatching(_Section):
    """The `user_config` of a deployment: batching that is changed while it runs, without a restart."""

    max_batch_size: Annotated[int, Field(ge=1)] | None = None
    """As `batching.max_batch_size`, and not above it: only sizes up to that were warmed."""
    merge_wait_s: Annotated[float, Field(ge=0, le=1)] | Auto | None = None
    """As `batching.merge_wait_s`."""
    latency_objective_ms: Annotated[float, Field(gt=0)] | None = None
    """As `batching.latency_objective_ms`."""


def parse_live(user_config: Mapping[str, Any] | None, batching: BatchingSettings) -> BatchingSettings:
    """`batching` with what a deployment's `user_config` changes of it.

    Raises:
        ConfigError: as `parse_settings`.
    """
    live = _parse(LiveBatching, user_config or {}, "user_config")
    if live.max_batch_size is not None and live.max_batch_size > batching.max_batch_size:
        raise ConfigError(
            f"user_config.max_batch_size: {live.max_batch_size} is above args.batching.max_batch_size "
            f"({batching.max_batch_size}), the largest that was warmed; lower it, or raise that and restart"
        )
    return batching.model_copy(update={name: value for name, value in live if value is not None})


def _parse(model: type[Section], values: Mapping[str, Any], root: str) -> Section:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [
            _describe(model, root, problem["type"], problem["loc"], problem["msg"]) for problem in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from None


def nearest_key(key: str, valid: list[str]) -> str:
    """`; did you mean ...?`, or the list of valid keys where none is near."""
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"


def _describe(model: type[BaseModel], root: str, kind: str, location: tuple[int | str, ...], message: str) -> str:
    path = ".".join([root, *(str(part) for part in location)])
    if kind == "extra_forbidden":
        return f"{path}: unknown key; {nearest_key(str(location[-1]), _keys_at(model, location[:-1]))}"
    return f"{path}: {message.removeprefix('Value error, ')}"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        inner = _model_in(model.model_fields[part].annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, or of the items of a list of sections."""
    candidates = [annotation, *get_args(annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)
