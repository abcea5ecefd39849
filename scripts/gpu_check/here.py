"""What this machine is: GPU, driver, packages."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from scripts.gpu_check.checks import Skip
from scripts.gpu_check.gpus import find_peak
from serve_app.runtime import available_cores

PACKAGES = ("tensorrt-cu13", "tensorrt", "tensorrt-cu13-bindings", "pycuda", "cuda-bindings", "numpy", "onnxruntime")
_SMI = (
    *("name", "driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit", "temperature.gpu"),
    *("pcie.link.gen.current", "pcie.link.width.current", "persistence_mode", "mig.mode.current"),
)
COPY_BYTES = 256 * 2**20


def software() -> dict[str, Any]:
    """Python, operating system, packages, cores and memory."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def gpu() -> dict[str, Any]:
    """The first GPU, as plans see it, and as nvidia-smi does where that is there.

    Raises:
        GpuMissing: says what is not there.
    """
    from serve_app.runtime.tensorrt.machine import cuda_versions, this_machine

    machine = this_machine()
    driver, cuda = cuda_versions()
    peak = find_peak(machine.gpu, machine.sm_count)
    return {
        **machine.model_dump(mode="json"),
        "cuda_of_the_driver": driver,
        "cuda_of_pycuda": cuda,
        "nvidia_smi": nvidia_smi(),
        "peak": asdict(peak) if peak else None,
    }


def nvidia_smi() -> Mapping[str, str]:
    """What it says of the first GPU; empty where it is not there or does not know these fields (Jetson)."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in (done.stdout.splitlines() or [""])[0].split(",")]
    return dict(zip(_SMI, values, strict=False)) if len(values) == len(_SMI) else {}


def copy_rate(stand_in: bool) -> dict[str, float]:
    """GB/s through the GPU's memory, reads and writes counted: what a large copy inside it reaches.

    Raises:
        Skip: no GPU.
    """
    if stand_in:
        raise Skip("it measures a GPU's memory, and there is none")
    import pycuda.driver as cuda

    from serve_app.runtime.tensorrt.cuda import CudaDevice

    device = CudaDevice()
    try:
        with device.current():
            source, target = device.allocate(COPY_BYTES), device.allocate(COPY_BYTES)
            stream, began, ended = device.stream(), device.event(), device.event()
            best_ms = float("inf")
            for _ in range(8):
                began.record(stream)
                cuda.memcpy_dtod_async(target, source, COPY_BYTES, stream)
                ended.record(stream)
                ended.synchronize()
                best_ms = min(best_ms, ended.time_since(began))
            source.free()
            target.free()
            del stream, began, ended
    finally:
        device.close()
    return {"memory_gb_s": 2 * COPY_BYTES / best_ms / 1e6}
