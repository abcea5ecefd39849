"""What the cases on the stand-in for the CUDA driver share; to be imported after `fakecuda.load()`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pycuda.driver as drv
from cuda.bindings import driver as bindings

NON_BLOCKING = 1
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700
THREAD_LOCAL = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


@contextmanager
def current() -> Iterator[None]:
    """The primary context, retained, pushed, and given back; as a serving thread would."""
    drv.init()
    context = drv.Device(0).retain_primary_context()
    context.push()
    try:
        yield
    finally:
        gc.collect()  # frames of expected exceptions hold what was made in the context
        drv.Context.pop()
        context.detach()


def pinned(*values: float) -> Any:
    array = drv.pagelocked_empty(len(values), np.float32)
    array[:] = values
    return array


def ok(result: tuple[Any, ...]) -> Any:
    error, *values = result
    assert error == bindings.CUresult.CUDA_SUCCESS, error
    return values[0] if values else None
