"""pycuda on the stand-in for the CUDA driver: memory, streams, events. Run by test_fakecuda.py."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu import fakecuda

cuda = fakecuda.load()

import pycuda.driver as drv  # noqa: E402
from cuda.bindings import driver as bindings  # noqa: E402

from tests.gpu.driver_helpers import NON_BLOCKING, current, ok, pinned  # noqa: E402


@pytest.fixture(autouse=True)
def fresh() -> None:
    cuda.reset()


def test_the_card_is_what_it_is_said_to_be() -> None:
    cuda.device("Fake T4", compute_capability=(7, 5), sm_count=40, total_bytes=1000, reserved_bytes=300)
    with current():
        device = drv.Device(0)
        assert (device.name(), device.compute_capability(), device.total_memory()) == ("Fake T4", (7, 5), 1000)
        assert device.get_attribute(drv.device_attribute.MULTIPROCESSOR_COUNT) == 40
        assert drv.mem_get_info() == (700, 1000)
        assert drv.get_driver_version() >= 13000


def test_a_round_trip_leaves_nothing_behind() -> None:
    def trip() -> None:
        stream, memory = drv.Stream(NON_BLOCKING), drv.mem_alloc(12)
        source, target = pinned(1, 2, 3), pinned(0, 0, 0)
        drv.memcpy_htod_async(memory, source, stream)
        drv.memcpy_dtoh_async(target, memory, stream)
        stream.synchronize()
        assert target.tolist() == [1, 2, 3]
        assert int(memory) % 256 == 0
        memory.free()

    with current():
        trip()
    report = cuda.report()
    report.check()
    assert list(report.threads.values()) == [[2, 2]]  # one of each by pycuda's detach()
    assert report.calls[-1] == "cuDevicePrimaryCtxRelease_v2"
    assert report.pageable_copies == 0


def test_a_copy_is_not_there_before_somebody_waits() -> None:
    with current():
        stream, memory = drv.Stream(NON_BLOCKING), drv.mem_alloc(8)
        source, target = pinned(1, 2), pinned(0, 0)
        drv.memcpy_htod_async(memory, source, stream)
        drv.memcpy_dtoh_async(target, memory, stream)
        assert target.tolist() == [0, 0]
        source[:] = 7  # too early
        stream.synchronize()
        assert target.tolist() == [7, 7]


def test_pageable_memory_makes_copies_synchronous() -> None:
    with current():
        stream, memory = drv.Stream(NON_BLOCKING), drv.mem_alloc(8)
        source, target = np.array([1, 2], np.float32), np.zeros(2, np.float32)
        drv.memcpy_htod_async(memory, source, stream)
        source[:] = 7
        drv.memcpy_dtoh_async(target, memory, stream)
        assert target.tolist() == [1, 2]
        assert cuda.report().pageable_copies == 2


def test_a_query_advances_one_operation() -> None:
    with current():
        stream, memory, event = drv.Stream(NON_BLOCKING), drv.mem_alloc(4), drv.Event()
        source = pinned(1)
        drv.memcpy_htod_async(memory, source, stream)
        drv.memset_d32_async(memory, 0, 1, stream)
        event.record(stream)
        assert [event.query() for _ in range(4)] == [False, False, True, True]
        assert stream.is_done()


def between_streams(wait: bool) -> list[float]:
    """What a copy out in another stream sees of a copy in."""
    into, out = drv.Stream(NON_BLOCKING), drv.Stream(NON_BLOCKING)
    memory, copied, target = drv.mem_alloc(4), drv.Event(), pinned(0)
    source = pinned(5)
    drv.memcpy_htod(memory, pinned(1))
    drv.memcpy_htod_async(memory, source, into)
    copied.record(into)
    if wait:
        out.wait_for_event(copied)
    drv.memcpy_dtoh_async(target, memory, out)
    out.synchronize()
    into.synchronize()
    values: list[float] = target.tolist()
    return values


def test_streams_overlap_unless_they_wait_for_each_other() -> None:
    with current():
        assert between_streams(wait=True) == [5]
        assert between_streams(wait=False) == [1]


@pytest.mark.parametrize("wait", [True, False])
def test_shuffling_keeps_the_rules_and_finds_what_they_do_not_cover(wait: bool) -> None:
    seen = set()
    with current():
        for seed in range(30):
            cuda.shuffle(seed)
            seen.add(between_streams(wait)[0])
    assert seen == ({5.0} if wait else {1.0, 5.0})


def test_an_event_waited_for_is_the_one_recorded_before() -> None:
    with current():
        first, second, event = drv.Stream(NON_BLOCKING), drv.Stream(NON_BLOCKING), drv.Event()
        ran: list[str] = []
        cuda.enqueue(first.handle, lambda: ran.append("before"))
        event.record(first)
        second.wait_for_event(event)
        cuda.enqueue(first.handle, lambda: ran.append("after"))
        event.record(first)
        second.synchronize()
        assert ran == ["before"]
        first.synchronize()
        assert ran == ["before", "after"]


def test_the_legacy_stream_orders_blocking_streams_only() -> None:
    with current():
        blocking, other = drv.Stream(0), drv.Stream(NON_BLOCKING)
        memory, ran = drv.mem_alloc(4), list[str]()
        cuda.enqueue(blocking.handle, lambda: ran.append("blocking"))
        cuda.enqueue(other.handle, lambda: ran.append("other"))
        drv.memcpy_htod(memory, pinned(1))
        assert ran == ["blocking"]
        cuda.enqueue(blocking.handle, lambda: ran.append("blocking again"))
        drv.memset_d32(memory, 0, 1)  # queued
        assert ran == ["blocking"]
        ok(bindings.cuStreamSynchronize(0))
        assert ran == ["blocking", "blocking again"]
        other.synchronize()


@pytest.mark.parametrize(("flags", "waits"), [(0, True), (NON_BLOCKING, False)])
def test_blocking_streams_wait_for_the_legacy_stream(flags: int, waits: bool) -> None:
    with current():
        stream, memory, seen = drv.Stream(flags), drv.mem_alloc(4), list[int]()
        address = int(memory)
        drv.memset_d32(memory, 5, 1)
        cuda.enqueue(stream.handle, lambda: seen.append(int(cuda.view(address, (1,), np.uint32)[0])))
        stream.synchronize()
        assert (seen == [5]) == waits


def test_times_are_those_of_the_script() -> None:
    cuda.times(htod=2, kernel=5)
    with current():
        into, run, memory = drv.Stream(NON_BLOCKING), drv.Stream(NON_BLOCKING), drv.mem_alloc(4)
        begun, copied, computed = drv.Event(), drv.Event(), drv.Event()
        source = pinned(1)
        begun.record(into)
        drv.memcpy_htod_async(memory, source, into)
        copied.record(into)
        run.wait_for_event(copied)
        cuda.enqueue(run.handle, lambda: None)
        cuda.enqueue(run.handle, lambda: None, ms=0.5)
        computed.record(run)
        with pytest.raises(drv.Error, match="cuEventElapsedTime"):
            computed.time_since(begun)
        computed.synchronize()
        assert (copied.time_since(begun), computed.time_since(begun)) == (2, 7.5)
