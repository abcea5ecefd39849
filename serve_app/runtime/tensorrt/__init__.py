"""TensorRT 11 engines on an NVIDIA GPU. Everything here but this file needs the `gpu` extra and a driver."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import GpuMissing

INSTEAD = (
    "serve on the CPU with configs/cpu.yaml, or rehearse a GPU configuration: image-serve start CONFIG "
    "--stand-in-gpus 1"
)


@contextmanager
def gpu_packages() -> Iterator[None]:
    """A block that imports them, or asks the driver for its GPU.

    Raises:
        GpuMissing: the driver, a package or the GPU is not there; says which, and what to do.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise GpuMissing(
            f"this machine has no NVIDIA driver (libcuda.so.1), and so no GPU for a TensorRT engine; {INSTEAD}"
        ) from None
    try:
        yield
    except ImportError as error:
        what = error.name.partition(".")[0] if error.name else "a GPU package"
        raise GpuMissing(
            f"{what} is not installed or does not load ({error}); install the GPU packages as 'Use a GPU' in README.md "
            f"says, or {INSTEAD}"
        ) from None
    except Exception as error:
        # What pycuda raises without a GPU is its own, and cannot be named without importing it.
        if type(error).__module__.partition(".")[0] not in ("pycuda", "cuda"):
            raise
        raise GpuMissing(
            f"this machine has no NVIDIA GPU that CUDA can use ({error}); look at nvidia-smi, or {INSTEAD}"
        ) from None
