"""Engines of every backend behind one protocol."""

from __future__ import annotations

from pathlib import Path

from serve_app.errors import EngineError, GpuFailed
from serve_app.manifest import Manifest
from serve_app.plans import find_plan
from serve_app.runtime.base import (
    GpuOptions,
    OverlappingRuntime,
    Runtime,
    RuntimeInfo,
    available_cores,
)
from serve_app.runtime.gpu.runtime import GpuRuntime
from serve_app.types import InferencePrecision

__all__ = [
    "NO_GPU",
    "GpuOptions",
    "OverlappingRuntime",
    "Runtime",
    "RuntimeInfo",
    "available_cores",
    "load_plan",
    "load_runtime",
]
NO_GPU = GpuOptions()


def load_runtime(
    folder: Path,
    manifest: Manifest,
    *,
    threads: int,
    inference_precision: InferencePrecision = "auto",
    gpu: GpuOptions = NO_GPU,
) -> Runtime:
    """Opens the engine in `folder`. Backends are imported here, so that each needs only its own packages.

    Args:
        gpu: for tensorrt engines only.

    Raises:
        EngineError: the backend's packages are missing, the backend cannot open the file, or there is no plan for this
            machine's GPU.
        GpuMissing: a tensorrt engine, and no GPU.
    """
    artifact = folder / manifest.artifact
    if manifest.backend == "tensorrt":
        return _load_tensorrt(folder, manifest, threads, gpu)
    try:
        if manifest.backend == "torchscript":
            from serve_app.runtime.torchscript import TorchScriptRuntime

            return TorchScriptRuntime(artifact, threads)
        if manifest.backend == "simulated":
            from serve_app.runtime.simulated import SimulatedRuntime

            return SimulatedRuntime(artifact, manifest.num_classes)
        from serve_app.runtime.openvino import OpenVinoRuntime

        return OpenVinoRuntime(artifact, threads, inference_precision)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise EngineError(
            f"engine {manifest.engine_name} at {folder} does not load: {reason}; build it again"
        ) from error


def _load_tensorrt(folder: Path, manifest: Manifest, threads: int, gpu: GpuOptions) -> GpuRuntime:
    try:
        if gpu.device == "stand_in":
            return _stand_in(folder, manifest, threads, gpu)
        from serve_app.runtime.tensorrt.machine import this_machine

        plan, record = find_plan(folder, manifest, this_machine(), gpu.max_batch_size)
        if not record.key.profile.min_batch <= 1 <= gpu.max_batch_size <= record.key.profile.max_batch:
            raise EngineError(
                f"plan {plan} takes batches of {record.key.profile.min_batch} to {record.key.profile.max_batch}, and "
                f"batching.max_batch_size is {gpu.max_batch_size}; lower it, or compile again with --max-batch"
            )
        return load_plan(plan, manifest, gpu)
    except GpuFailed as error:
        where, mend = f"this GPU: {error}", f"compile it here again: engine-build compile {folder.absolute()} --force"
        if gpu.device == "stand_in":
            where, mend = f"the CPU in place of a GPU: {error}", "build it again: engine-build prepare --force"
        raise EngineError(f"engine {manifest.engine_name} at {folder} does not run on {where}; {mend}") from error


def load_plan(plan: Path, manifest: Manifest, gpu: GpuOptions) -> GpuRuntime:
    """A plan on this machine's GPU, whatever its key says.

    Raises:
        GpuMissing: no GPU, driver or package.
        GpuFailed: it does not run.
    """
    from serve_app.runtime.tensorrt import gpu_packages

    with gpu_packages():
        from serve_app.runtime.tensorrt.cuda import CudaDevice
        from serve_app.runtime.tensorrt.execution import TensorRtExecution

    content = plan.read_bytes()
    return GpuRuntime(CudaDevice, lambda device: TensorRtExecution(content), gpu, manifest.precision)


def _stand_in(folder: Path, manifest: Manifest, threads: int, gpu: GpuOptions) -> GpuRuntime:
    from serve_app.runtime.gpu.stand_in import HostDevice, OnnxExecution

    shape = (manifest.input.height, manifest.input.width, 3)
    artifact, classes, most = folder / manifest.artifact, manifest.num_classes, gpu.max_batch_size

    def execution(device: object) -> OnnxExecution:
        return OnnxExecution(artifact, shape, classes, max_batch_size=most, threads=threads)

    return GpuRuntime(HostDevice, execution, gpu, manifest.precision)
