"""The sections of an application's `args`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from serve_app.manifest import Backend, Precision
from serve_app.settings.base import Auto, Positive, Seconds, Section
from serve_app.types import InferencePrecision


class EngineSettings(Section):
    """Which engine is served."""

    engines_dir: Path = Path("engines")
    """Where `engine-build` put engines; relative to the folder the service was started in."""
    model: str = "auto"
    """Name of a model in `engines_dir`; `auto` is resnet18 where a trained one was built, else efficientnet_lite0."""
    backend: Backend = "openvino"
    """What the engine was built for."""
    precision: Precision = "fp32"
    """Of the engine's weights; int8 needs an engine built with calibration pictures."""
    version: Positive = 1
    """Which version of the engine; others are taken in while it runs through `user_config`."""


class PreprocessSettings(Section):
    """From a file to engine input."""

    mode: Literal["exact", "fast"] = "exact"
    """`exact` equals torchvision's transforms bit for bit; `fast` decodes large JPEGs at reduced scale and resizes
    no more than the crop, for a small loss of accuracy."""
    threads: Positive | Auto = "auto"
    """Decode threads of a replica; `auto` is its CPUs. In `colocated` placement each of them has a copy of the
    engine."""


class RuntimeSettings(Section):
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


class BatchingSettings(Section):
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


class LimitSettings(Section):
    """What is refused, before memory or time is spent on it."""

    max_body_bytes: Positive = 20 * 2**20
    """Of one request; counted while it arrives."""
    max_pixels: Positive = 50_000_000
    """Width x height of a picture, read from its header before it is decoded."""
    max_pictures_per_request: Positive = 64
    """In one multipart or JSON body."""
    max_queued_pictures: Positive = 256
    """Pictures one replica holds at once of each model, waiting or in work; more are answered 429."""
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


class LogSettings(Section):
    """What is written to the log besides warnings."""

    requests: Literal["none", "errors", "all"] = "errors"
    """One line for every request, or for those that the service failed: id, model, sizes and timings, and never the
    picture."""
