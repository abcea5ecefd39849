"""What was asked for, and the engines that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve_app.manifest import Manifest, Precision
from serve_app.runtime import GpuOptions, Runtime, available_cores, load_runtime
from serve_app.runtime.base import Device
from serve_app.runtime.gpu.runtime import GpuRuntime


@dataclass(frozen=True, slots=True)
class Options:
    """Of one run.

    Attributes:
        model: of the zoo, `auto`, or the folder of a prepared engine below `engines_dir`.
        calibration: pictures for int8.
        images: photographs to compare on and to send, with `labels.csv` for accuracy; None for the samples.
        quick: fewer pictures, batch sizes and seconds.
        stand_in: the CPU in the GPU's place.
        max_batch, opt_batch: of the plans.
        untrained: random weights: speed is the same, answers mean nothing.
        force: compile plans that are there.
    """

    model: str
    precisions: tuple[Precision, ...]
    calibration: Path | None
    images: Path | None
    out: Path
    engines_dir: Path
    weights_dir: Path
    quick: bool
    stand_in: bool
    max_batch: int
    opt_batch: int
    untrained: bool
    force: bool
    serve: bool

    @property
    def device(self) -> Device:
        return "stand_in" if self.stand_in else "cuda"


@dataclass(frozen=True, slots=True)
class Engine:
    """A prepared engine, compiled where there is a GPU."""

    folder: Path
    manifest: Manifest

    @property
    def precision(self) -> Precision:
        return self.manifest.precision

    def open(self, gpu: GpuOptions) -> GpuRuntime:
        """Loaded as a replica loads it, and warm."""
        runtime = load_runtime(self.folder, self.manifest, threads=available_cores(), gpu=gpu)
        assert isinstance(runtime, GpuRuntime)
        return runtime

    def on_cpu(self) -> Runtime:
        """The same ONNX by onnxruntime: what the GPU is held against."""
        from engine_build.onnx_cpu import OnnxCpuRuntime

        return OnnxCpuRuntime(self.folder / self.manifest.artifact, available_cores())
