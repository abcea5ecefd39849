"""An NVIDIA GPU through pycuda: memory, streams and events on the primary context, which TensorRT shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pycuda.driver as cuda
from numpy.typing import NDArray

from serve_app.runtime.tensorrt.graphs import CudaGraph, record

NON_BLOCKING = 1
"""Of a stream: work on the default stream, of whatever library, does not wait for it, nor it for that."""


class CudaDevice:
    """The first GPU this process may use (Ray hides the others); satisfies `gpu.device.Device`.

    Its primary context is used, not a new one: memory of another context means nothing to TensorRT.
    """

    def __init__(self) -> None:
        cuda.init()
        device = cuda.Device(0)
        self.name = str(device.name())
        self._context = device.retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        array: NDArray[Any] = cuda.pagelocked_empty(shape, dtype)
        return array

    def allocate(self, nbytes: int) -> cuda.DeviceAllocation:
        return cuda.mem_alloc(nbytes)

    def stream(self) -> cuda.Stream:
        return cuda.Stream(NON_BLOCKING)

    def event(self) -> cuda.Event:
        # Who waits for a blocking event sleeps. The default spins, on a core that could decode meanwhile.
        return cuda.Event(cuda.event_flags.BLOCKING_SYNC)

    def copy_in(self, target: Any, source: NDArray[Any], stream: Any) -> None:
        cuda.memcpy_htod_async(target, source, stream)

    def copy_out(self, target: NDArray[Any], source: Any, stream: Any) -> None:
        cuda.memcpy_dtoh_async(target, source, stream)

    def record(self, stream: Any, enqueue: Callable[[], None]) -> CudaGraph:
        return record(stream, enqueue)

    def memory_bytes(self) -> tuple[int, int]:
        free, total = cuda.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        # In the thread that retained it; elsewhere pycuda would silently do nothing.
        self._context.detach()
