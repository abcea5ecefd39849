"""What the stand-in for the CUDA driver refuses, and failures it is told to have. Run by test_fakecuda.py."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.gpu import fakecuda

cuda = fakecuda.load()

import pycuda.driver as drv  # noqa: E402
from cuda.bindings import driver as bindings  # noqa: E402

from tests.gpu.driver_helpers import ILLEGAL_ADDRESS, NON_BLOCKING, OUT_OF_MEMORY, current, ok, pinned  # noqa: E402


@pytest.fixture(autouse=True)
def fresh() -> None:
    cuda.reset()


def test_memory_runs_out_and_comes_back() -> None:
    cuda.device(total_bytes=1000)
    with current():
        memory = drv.mem_alloc(600)
        with pytest.raises(drv.MemoryError):
            drv.mem_alloc(401)
        assert drv.mem_get_info() == (400, 1000)
        memory.free()
        assert drv.mem_get_info() == (1000, 1000)


def refused(call: Any, *arguments: Any) -> str:
    """The one violation that a refused call is recorded as."""
    before = len(cuda.report().violations)
    with pytest.raises(drv.Error):
        call(*arguments)
    [violation] = cuda.report().violations[before:]
    return violation


def test_copies_out_of_bounds_are_refused_and_recorded() -> None:
    with current():
        stream, memory = drv.Stream(NON_BLOCKING), drv.mem_alloc(8)
        large = pinned(1, 2, 3)
        for call, arguments in (
            (drv.memcpy_htod_async, (memory, large, stream)),
            (drv.memcpy_dtoh_async, (large, memory, stream)),
            (drv.memcpy_htod, (int(memory) + 4, large[:2])),
            (drv.memset_d32, (memory, 0, 3)),
        ):
            assert "12 bytes of device memory that has 8" in refused(call, *arguments)
        assert "never allocated" in refused(drv.memcpy_htod_async, 4096, large, stream)
        address = int(memory)
        memory.free()
        assert "freed device memory" in refused(drv.memcpy_htod_async, address, large[:1], stream)


def test_memory_that_queued_work_uses_is_not_freed_unnoticed() -> None:
    with current():
        stream, memory = drv.Stream(NON_BLOCKING), drv.mem_alloc(4)
        source = pinned(1)
        drv.memcpy_htod_async(memory, source, stream)
        memory.free()
        memory = drv.mem_alloc(4)
        drv.memcpy_htod_async(memory, source, stream)
        del source
        stream.synchronize()
        cuda.enqueue(stream.handle, lambda: None, uses=[(int(memory), 4)])
        memory.free()
        violations = cuda.report().violations
    assert [text.split()[0] for text in violations] == ["cuMemFree_v2", "cuMemFreeHost", "cuMemFree_v2"]
    assert all("queued operations still use" in text for text in violations)


def test_a_stream_with_work_is_not_destroyed_unnoticed() -> None:
    with current():
        stream = drv.Stream(NON_BLOCKING)
        cuda.enqueue(stream.handle, lambda: None)
        del stream
        assert cuda.report().violations == ["cuStreamDestroy_v2 of a stream with work in it"]


def test_work_without_a_context_is_refused() -> None:
    drv.init()
    error, _ = bindings.cuMemAlloc(4)
    assert error == bindings.CUresult.CUDA_ERROR_INVALID_CONTEXT
    error, _ = bindings.cuCtxPopCurrent()
    assert error == bindings.CUresult.CUDA_ERROR_INVALID_CONTEXT
    assert cuda.report().violations == [
        "cuMemAlloc_v2 without a current context",
        "cuCtxPopCurrent_v2 from an empty stack",
    ]


def test_nothing_works_before_init() -> None:
    assert bindings.cuDeviceGetCount()[0] == bindings.CUresult.CUDA_ERROR_NOT_INITIALIZED


def test_what_belongs_to_another_context_is_refused() -> None:
    with current():
        stream = drv.Stream(NON_BLOCKING)
        other = ok(bindings.cuCtxCreate(None, 0, 0))
        assert bindings.cuStreamSynchronize(stream.handle)[0] == bindings.CUresult.CUDA_ERROR_INVALID_HANDLE
        ok(bindings.cuCtxDestroy(other))
        assert cuda.report().violations == ["cuStreamSynchronize with a stream of another context"]


def test_the_stacks_are_counted_by_thread() -> None:
    drv.init()
    context = drv.Device(0).retain_primary_context()

    def work() -> None:
        bindings.cuCtxPushCurrent(primary)
        bindings.cuCtxPushCurrent(primary)
        bindings.cuCtxPopCurrent()

    primary = ok(bindings.cuDevicePrimaryCtxRetain(0))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    report = cuda.report()
    assert not report.is_balanced()
    assert report.threads[str(thread.native_id)] == [2, 1]
    assert report.leaks() == {"primary_references": 2}
    with pytest.raises(AssertionError, match="pushed and popped"):
        report.check()
    ok(bindings.cuDevicePrimaryCtxRelease(0))
    context.push()
    drv.Context.pop()
    context.detach()
    assert cuda.report().leaks() == {}


def test_what_is_left_in_a_context_that_is_given_back_is_recorded() -> None:
    drv.init()
    primary = ok(bindings.cuDevicePrimaryCtxRetain(0))
    ok(bindings.cuCtxPushCurrent(primary))
    ok(bindings.cuMemAlloc(4))
    ok(bindings.cuStreamCreate(NON_BLOCKING))
    ok(bindings.cuCtxPopCurrent())
    assert cuda.report().leaks() == {"device_blocks": 1, "streams": 1, "primary_references": 1}
    ok(bindings.cuDevicePrimaryCtxRelease(0))
    [violation] = cuda.report().violations
    assert violation.endswith("of a context in which 2 objects were not freed")


def test_the_nth_call_fails_as_it_is_told_to() -> None:
    with current():
        cuda.fail("cuMemAlloc_v2", OUT_OF_MEMORY, call=2, times=2)
        memories = [drv.mem_alloc(4)]
        with pytest.raises(drv.MemoryError):
            drv.mem_alloc(4)
        memories.append(drv.mem_alloc(4))
        cuda.fail("cuMemAlloc_v2", OUT_OF_MEMORY)
        memories.append(drv.mem_alloc(4))  # pycuda tries twice


def test_a_broken_context_stays_broken() -> None:
    drv.init()
    primary = ok(bindings.cuDevicePrimaryCtxRetain(0))
    ok(bindings.cuCtxPushCurrent(primary))
    stream = ok(bindings.cuStreamCreate(NON_BLOCKING))
    ran: list[int] = []
    cuda.enqueue(int(stream), lambda: ran.append(1))
    cuda.fail("cuStreamSynchronize", ILLEGAL_ADDRESS, sticky=True)
    illegal = bindings.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    assert bindings.cuStreamSynchronize(stream)[0] == illegal
    assert bindings.cuStreamSynchronize(stream)[0] == illegal
    assert bindings.cuMemAlloc(4)[0] == illegal
    assert ran == []
    bindings.cuStreamDestroy(stream)
    ok(bindings.cuCtxPopCurrent())
    ok(bindings.cuDevicePrimaryCtxRelease(0))
    cuda.report().check()
    with current():  # retained anew, it is a new one
        drv.mem_alloc(4).free()


def test_a_kernel_that_raises_breaks_the_context() -> None:
    drv.init()
    primary = ok(bindings.cuDevicePrimaryCtxRetain(0))
    ok(bindings.cuCtxPushCurrent(primary))

    def kernel() -> None:
        raise ValueError('of "shape" 3')

    cuda.enqueue(0, kernel)
    assert bindings.cuCtxSynchronize()[0] == bindings.CUresult.CUDA_ERROR_LAUNCH_FAILED
    assert cuda.report().violations == ["""a kernel raised ValueError('of "shape" 3')"""]
    assert [type(error) for error in cuda.kernel_errors] == [ValueError]
    ok(bindings.cuCtxPopCurrent())


def test_a_kernel_may_not_touch_what_is_not_allocated() -> None:
    with current():
        memory = drv.mem_alloc(8)
        cuda.view(int(memory), (2,), np.float32)[:] = 3
        with pytest.raises(IndexError):
            cuda.view(int(memory), (3,), np.float32)
        assert cuda.report().violations == ["a kernel touched 12 bytes of device memory that has 8"]


def test_threads_may_wait_for_the_same_kernel() -> None:
    started, go = threading.Event(), threading.Event()

    def kernel() -> None:
        started.set()
        assert go.wait(10)

    drv.init()
    primary = ok(bindings.cuDevicePrimaryCtxRetain(0))
    ok(bindings.cuCtxPushCurrent(primary))
    stream = ok(bindings.cuStreamCreate(NON_BLOCKING))
    cuda.enqueue(int(stream), kernel)

    def wait() -> None:
        ok(bindings.cuCtxPushCurrent(primary))
        ok(bindings.cuStreamSynchronize(stream))
        ok(bindings.cuCtxPopCurrent())

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    assert bindings.cuStreamQuery(stream)[0] == bindings.CUresult.CUDA_ERROR_NOT_READY
    go.set()
    for thread in threads:
        thread.join(10)
    ok(bindings.cuStreamQuery(stream))
    ok(bindings.cuStreamDestroy(stream))
    ok(bindings.cuCtxPopCurrent())
    ok(bindings.cuDevicePrimaryCtxRelease(0))
    cuda.report().check()
