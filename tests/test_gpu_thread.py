from __future__ import annotations

import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.errors import EngineError, GpuFailed
from serve_app.runtime.gpu.device import Device
from serve_app.runtime.gpu.lanes import Lanes
from serve_app.runtime.gpu.thread import Batch, GpuThread
from serve_app.types import Pictures
from tests.gpu_fakes import PATIENCE_S, FakeDevice, FakeExecution, FakeGpuError, assert_answers, noise

MOST = 4


def open_on(
    device: FakeDevice, make_execution: Callable[[Device], FakeExecution] = FakeExecution, slots: int = 2
) -> GpuThread:
    return GpuThread(device.make, make_execution, slots=slots, max_batch_size=MOST)


def batch(thread: GpuThread, slot: int, pictures: Pictures) -> Batch:
    """Submitted; the pictures lie in the slot's own staging."""
    into = thread.lanes.slots[slot]
    into.staging[: len(pictures)] = pictures
    submitted = Batch(into, into.staging[: len(pictures)])
    thread.submit(submitted)
    return submitted


def gpu_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gpu"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in gpu_threads():
        thread.join(PATIENCE_S)
    assert gpu_threads() == []


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Whatever is freed was let go, not found by the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def assert_orderly(device: FakeDevice) -> None:
    """One thread did it all, entered and left once, and the device was given back last."""
    assert device.strays == []
    assert (device.counts["enter"], device.counts["leave"], device.counts["close_device"]) == (1, 1, 1)
    assert device.journal[-2:] == ["leave", "close_device"]


def assert_freed_in_time(device: FakeDevice) -> None:
    assert [kind for kind in device.alive() if kind != "FakeExecution"] == []
    assert {(where, current) for _, where, current in device.freed} <= {("gpu", True)}


@pytest.mark.usefixtures("uncollected")
def test_from_the_first_call_to_the_last_it_is_one_thread() -> None:
    thread = open_on(device := FakeDevice())
    first, second = batch(thread, 0, noise(3, seed=1)), batch(thread, 1, noise(1, seed=2))
    assert_answers(first.answer.result(PATIENCE_S)[0], noise(3, seed=1))
    assert_answers(second.answer.result(PATIENCE_S)[0], noise(1, seed=2))
    thread.call(lambda lanes: lanes.record_graphs([1, 2]))
    del first, second
    thread.close()
    assert_orderly(device)
    assert_freed_in_time(device)
    order = [call for call in device.journal if call.startswith(("close", "free", "leave"))]
    assert order == ["close_graph"] * 4 + ["close_execution"] + ["free"] * 4 + ["leave", "close_device"]
    kinds = Counter(kind for kind, _, _ in device.freed)
    assert (kinds["ndarray"], kinds["FakeStream"], kinds["FakeEvent"], kinds["FakeGraph"]) == (7, 3, 12, 4)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(
    ("call", "nth"),
    [("stream", 2), ("pinned", 1), ("pinned", 3), ("pinned", 6), ("allocate", 1), ("allocate", 4), ("event", 8)],
)
def test_an_allocation_that_fails_leaves_nothing_behind(call: str, nth: int, caplog: pytest.LogCaptureFixture) -> None:
    device = FakeDevice().arm(call, nth)
    with pytest.raises(GpuFailed, match=f"the GPU failed: FakeGpuError: {call}") as caught:
        open_on(device)
    assert_orderly(device)
    assert device.counts["close_execution"] == 1
    assert device.alive() == []
    assert_freed_in_time(device)
    assert device.freed
    # Both are there yet: the error that the caller has, and the log's record, which names the place all the same.
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "_slot" in caplog.text or "__init__" in caplog.text


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(
    "failure", [GpuFailed("no context", ["out of memory"]), EngineError("mend it"), FakeGpuError()]
)
def test_an_engine_that_does_not_open_leaves_nothing_behind(failure: Exception) -> None:
    device = FakeDevice()
    kind, arguments = type(failure), failure.__reduce__()[1]
    assert isinstance(arguments, tuple)

    def make(device: Device) -> FakeExecution:
        half = FakeExecution(device)
        try:
            raise KeyError(half.batches)
        except KeyError as cause:
            raise kind(*arguments) from cause

    with pytest.raises((GpuFailed, EngineError)) as caught:
        open_on(device, make)
    assert isinstance(caught.value, GpuFailed if isinstance(failure, FakeGpuError) else kind)
    if isinstance(failure, GpuFailed):
        assert (caught.value.args, caught.value.lines) == (failure.args, failure.lines)  # type: ignore[attr-defined]
    assert_orderly(device)
    assert device.alive() == []
    assert_freed_in_time(device)


@pytest.mark.parametrize("call", ["make", "enter"])
def test_a_device_that_cannot_be_had_is_said_so(call: str) -> None:
    device = FakeDevice().arm(call)
    with pytest.raises(GpuFailed, match=f"FakeGpuError: {call}"):
        open_on(device)
    assert device.counts["close_device"] == (call == "enter")


@pytest.mark.parametrize("call", ["free", "close_execution", "leave", "close_device"])
def test_an_end_that_fails_is_said_so_and_the_device_given_back(call: str) -> None:
    thread = open_on(device := FakeDevice().arm(call))
    with pytest.raises(GpuFailed, match=f"FakeGpuError: {call}"):
        thread.close()
    thread.close()
    assert_orderly(device)


@pytest.mark.parametrize("call", ["copy_in", "enqueue", "copy_out"])
def test_one_refused_batch_leaves_the_others_alone(call: str) -> None:
    thread = open_on(device := FakeDevice())
    device.idle_until_copies = 2  # the first is on its way when the second is refused
    first = batch(thread, 0, noise(2, seed=1))
    thread.lanes.slots[1].staging[:] = 0
    device.arm(call, 2 - device.counts[call])
    second = batch(thread, 1, noise(2, seed=2))
    with pytest.raises(GpuFailed, match=f"FakeGpuError: {call}"):
        second.answer.result(PATIENCE_S)
    assert_answers(first.answer.result(PATIENCE_S)[0], noise(2, seed=1))
    device.idle_until_copies = 0
    third = batch(thread, 1, noise(4, seed=3))
    assert_answers(third.answer.result(PATIENCE_S)[0], noise(4, seed=3))
    thread.close()
    assert_orderly(device)


def test_the_device_is_at_rest_before_a_refused_batch_gives_its_buffers_back() -> None:
    thread = open_on(device := FakeDevice())
    device.arm("copy_out")
    refused = batch(thread, 0, noise(2))
    with pytest.raises(GpuFailed):
        refused.answer.result(PATIENCE_S)
    assert device.journal[-1] in ("run 2", "synchronize")
    assert "run 2" in device.journal
    thread.close()


def test_the_device_is_at_rest_before_a_failed_wait_gives_its_buffers_back() -> None:
    thread = open_on(device := FakeDevice(), slots=1)
    device.arm("synchronize")
    failed = batch(thread, 0, noise(2))
    with pytest.raises(GpuFailed, match="synchronize"):
        failed.answer.result(PATIENCE_S)
    assert "copied_out" in device.journal
    thread.close()


def test_after_an_error_on_the_device_everybody_is_told_and_it_ends() -> None:
    thread = open_on(device := FakeDevice())
    device.fail_runs, device.idle_until_copies = 1, 2
    asked = [batch(thread, slot, noise(2)) for slot in (0, 1)]
    for one in asked:
        with pytest.raises(GpuFailed, match="FakeGpuError: run"):
            one.answer.result(PATIENCE_S)
    later = batch(thread, 0, noise(1))
    with pytest.raises(GpuFailed, match="FakeGpuError: run"):
        later.answer.result(PATIENCE_S)
    with pytest.raises(GpuFailed, match="did not come to rest"):
        thread.close()
    assert_orderly(device)


def test_what_is_called_runs_between_batches_and_its_error_is_raised() -> None:
    thread = open_on(device := FakeDevice())
    device.idle_until_copies = 10**6
    asked = batch(thread, 0, noise(2))

    def on_the_way(lanes: Lanes) -> int:
        assert threading.current_thread().name == "gpu"
        return device._on_their_way

    assert thread.call(on_the_way, PATIENCE_S) == 0
    assert asked.answer.done()

    def fail(lanes: Lanes) -> None:
        raise FakeGpuError("no graph")

    with pytest.raises(GpuFailed, match="no graph"):
        thread.call(fail, PATIENCE_S)
    assert thread.call(lambda lanes: len(lanes.slots), PATIENCE_S) == 2
    thread.close()


def test_what_was_asked_before_the_end_is_answered_and_later_refused() -> None:
    thread = open_on(device := FakeDevice(), slots=3)
    device.idle_until_copies = 10**6  # all three are there when it ends
    asked = [batch(thread, slot, noise(2, seed=slot)) for slot in range(3)]
    thread.close()
    for seed, one in enumerate(asked):
        assert_answers(one.answer.result(0)[0], noise(2, seed=seed))
    with pytest.raises(GpuFailed, match="the engine was closed"):
        thread.call(lambda lanes: None)
    assert_orderly(device)


def test_a_lone_batch_is_answered_however_late_its_thread_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to wait for another batch may be over before the waiting begins, on a busy machine."""
    monkeypatch.setattr("serve_app.runtime.gpu.thread.POLL_S", 1e-6)
    thread = open_on(device := FakeDevice())
    slot = thread.lanes.slots[0]
    for _ in range(3000):
        asked = Batch(slot, slot.staging[:1])
        thread.call(lambda lanes, asked=asked: thread.submit(asked), PATIENCE_S)  # type: ignore[misc]
        asked.answer.result(PATIENCE_S)
    thread.close()
    assert_orderly(device)


def test_closing_twice_and_from_two_threads() -> None:
    thread = open_on(device := FakeDevice())
    device.stuck.clear()
    asked = batch(thread, 0, noise(2))
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(thread.close) for _ in range(2)]
        device.stuck.set()
        assert [end.result(PATIENCE_S) for end in ends] == [None, None]
    thread.close()
    assert asked.answer.done()
    assert_orderly(device)


def test_a_stuck_device_is_given_up_and_whoever_waits_is_told() -> None:
    thread = open_on(device := FakeDevice())
    device.stuck.clear()
    asked = [batch(thread, slot, noise(2)) for slot in (0, 1)]
    for _ in range(2):
        with pytest.raises(GpuFailed, match="did not come to rest within 0 s; end this process"):
            thread.close(timeout_s=0)
    for one in asked:
        with pytest.raises(GpuFailed, match="did not come to rest"):
            one.answer.result(0)
    device.stuck.set()  # it goes on after all: nobody waits, nothing breaks
    thread.close()
    assert_orderly(device)


def test_a_fault_of_the_thread_itself_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = open_on(device := FakeDevice())
    device.stuck.clear()
    monkeypatch.setattr("serve_app.runtime.gpu.thread._is_done", lambda batch: 1 / 0)
    monkeypatch.setattr("serve_app.runtime.gpu.thread._end", lambda lanes, batch: 1 / 0)
    asked = batch(thread, 0, noise(2))
    device.stuck.set()
    with pytest.raises(GpuFailed, match="the engine was closed"):
        asked.answer.result(PATIENCE_S)
    with pytest.raises(GpuFailed, match="ZeroDivisionError"):
        thread.close()
    assert_orderly(device)


def test_a_device_error_is_logged_with_its_place_once(caplog: pytest.LogCaptureFixture) -> None:
    thread = open_on(device := FakeDevice())
    device.arm("enqueue")
    with caplog.at_level(logging.ERROR), pytest.raises(GpuFailed):
        batch(thread, 0, noise(1)).answer.result(PATIENCE_S)
    (record,) = caplog.records
    assert "in enqueue" in record.getMessage()
    assert record.exc_info is None
    thread.close()
