"""CUDA graphs by cuda-bindings on pycuda's streams, on the stand-in for the driver. Run by test_fakecuda.py."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.gpu import fakecuda

cuda = fakecuda.load()

import pycuda.driver as drv  # noqa: E402
from cuda.bindings import driver as bindings  # noqa: E402

from tests.gpu.driver_helpers import NON_BLOCKING, THREAD_LOCAL, current, ok, pinned  # noqa: E402


@pytest.fixture(autouse=True)
def fresh() -> None:
    cuda.reset()


def double(address: int, count: int) -> None:
    cuda.view(address, (count,), np.float32)[:] *= 2


def captured(stream: Any, source: Any, memory: Any, target: Any) -> Any:
    """An executable graph: copy in, double, copy out."""
    address, count = int(memory), len(source)  # a kernel that held the objects would keep them from being freed
    ok(bindings.cuStreamBeginCapture(stream.handle, THREAD_LOCAL))
    drv.memcpy_htod_async(memory, source, stream)
    cuda.enqueue(stream.handle, lambda: double(address, count), uses=[(address, source.nbytes)])
    drv.memcpy_dtoh_async(target, memory, stream)
    assert ok(bindings.cuStreamIsCapturing(stream.handle)).name.endswith("ACTIVE")
    graph = ok(bindings.cuStreamEndCapture(stream.handle))
    executable = ok(bindings.cuGraphInstantiate(graph, 0))
    ok(bindings.cuGraphDestroy(graph))
    return executable


def test_a_graph_runs_as_often_as_it_is_launched() -> None:
    def launches() -> None:
        stream, memory = drv.Stream(NON_BLOCKING), drv.mem_alloc(8)
        source, target = pinned(1, 2), pinned(0, 0)
        executable = captured(stream, source, memory, target)
        stream.synchronize()
        assert target.tolist() == [0, 0]
        for factor in (1, 10):
            source[:] = [factor, 2 * factor]
            ok(bindings.cuGraphLaunch(executable, stream.handle))
            stream.synchronize()
            assert target.tolist() == [2 * factor, 4 * factor]
        ok(bindings.cuGraphExecDestroy(executable))

    with current():
        launches()
    cuda.report().check()


def test_a_graph_keeps_the_addresses_it_was_recorded_with() -> None:
    drv.init()
    primary = ok(bindings.cuDevicePrimaryCtxRetain(0))
    ok(bindings.cuCtxPushCurrent(primary))
    stream, memory = ok(bindings.cuStreamCreate(NON_BLOCKING)), ok(bindings.cuMemAlloc(4))
    ok(bindings.cuStreamBeginCapture(stream, THREAD_LOCAL))
    ok(bindings.cuMemsetD8Async(memory, 0, 4, stream))
    executable = ok(bindings.cuGraphInstantiate(ok(bindings.cuStreamEndCapture(stream)), 0))
    ok(bindings.cuMemFree(memory))
    ok(bindings.cuGraphLaunch(executable, stream))
    assert bindings.cuStreamSynchronize(stream)[0] == bindings.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    assert cuda.report().violations == ["a queued memset ran on freed device memory"]
    ok(bindings.cuCtxPopCurrent())


@pytest.mark.parametrize("breaking", ["allocate", "synchronize"])
def test_what_cannot_be_recorded_breaks_the_capture(breaking: str) -> None:
    with current():
        stream = drv.Stream(NON_BLOCKING)
        ok(bindings.cuStreamBeginCapture(stream.handle, THREAD_LOCAL))
        with pytest.raises(drv.Error, match="CAPTURE_UNSUPPORTED"):
            drv.mem_alloc(4) if breaking == "allocate" else stream.synchronize()
        invalidated = bindings.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        assert bindings.cuStreamEndCapture(stream.handle)[0] == invalidated
        stream.synchronize()  # usable again


def test_a_thread_local_capture_leaves_other_threads_alone() -> None:
    with current():
        stream = drv.Stream(NON_BLOCKING)
        primary = ok(bindings.cuCtxGetCurrent())
        errors: list[Any] = []

        def allocate() -> None:
            ok(bindings.cuCtxPushCurrent(primary))
            error, memory = bindings.cuMemAlloc(4)
            errors.append(error.name)
            if memory:
                ok(bindings.cuMemFree(memory))
            ok(bindings.cuCtxPopCurrent())

        for mode in (THREAD_LOCAL, bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL):
            ok(bindings.cuStreamBeginCapture(stream.handle, mode))
            thread = threading.Thread(target=allocate)
            thread.start()
            thread.join()
            bindings.cuStreamEndCapture(stream.handle)
        assert errors == ["CUDA_SUCCESS", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"]


def test_an_event_recorded_in_a_capture_cannot_be_waited_for() -> None:
    with current():
        stream, event = drv.Stream(NON_BLOCKING), drv.Event()
        ok(bindings.cuStreamBeginCapture(stream.handle, THREAD_LOCAL))
        event.record(stream)
        ok(bindings.cuStreamEndCapture(stream.handle))
        with pytest.raises(drv.Error):
            event.synchronize()
