"""CUDA graphs by cuda-bindings, on pycuda's streams; pycuda has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuda.bindings import driver

from serve_app.errors import GpuFailed

_THREAD_LOCAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
"""Recording in the global mode makes calls of other threads fail meanwhile."""


class CudaGraph:
    """Recorded work with the addresses it was recorded with; satisfies `gpu.device.Graph`."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def launch(self, stream: Any) -> None:
        """Queues the work in a stream."""
        _checked("cuGraphLaunch", driver.cuGraphLaunch(self._executable, stream.handle))

    def close(self) -> None:
        """Frees it; the context must be current."""
        _checked("cuGraphExecDestroy", driver.cuGraphExecDestroy(self._executable))


def record(stream: Any, enqueue: Callable[[], None]) -> CudaGraph:
    """Records what `enqueue` queues in `stream`, which must be a non-blocking one with nothing in it.

    Raises:
        GpuFailed: it cannot be recorded; the stream is usable again.
    """
    _checked("cuStreamBeginCapture", driver.cuStreamBeginCapture(stream.handle, _THREAD_LOCAL))
    try:
        enqueue()
    except BaseException:
        _, part = driver.cuStreamEndCapture(stream.handle)  # or the stream would record for ever
        if part:
            driver.cuGraphDestroy(part)
        raise
    (graph,) = _checked("cuStreamEndCapture", driver.cuStreamEndCapture(stream.handle))
    try:
        (executable,) = _checked("cuGraphInstantiate", driver.cuGraphInstantiate(graph, 0))
    finally:
        driver.cuGraphDestroy(graph)
    return CudaGraph(executable)


def _checked(name: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of a call; cuda-bindings puts its error before them."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise GpuFailed(f"{name} failed: {error.name}")
    return tuple(values)
