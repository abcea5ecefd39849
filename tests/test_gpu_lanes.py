from __future__ import annotations

import numpy as np
import pytest

from serve_app.errors import GpuFailed
from serve_app.runtime.gpu.lanes import Lanes, Slot
from serve_app.types import GpuTimes, Pictures
from tests.fakes import CLASSES, SHAPE
from tests.gpu_fakes import FakeDevice, FakeExecution, assert_answers, noise

MOST = 4


class OnDevice:
    """Lanes on a fake device that is this thread's."""

    def __init__(self, slots: int = 2) -> None:
        self.device = FakeDevice().make()
        self._current = self.device.current()
        self._current.__enter__()
        self.execution = FakeExecution(self.device)
        self.lanes = Lanes(self.device, self.execution, slots=slots, max_batch_size=MOST)
        self.device.journal.clear()

    def staged(self, slot: Slot, count: int, seed: int = 0) -> Pictures:
        slot.staging[:count] = noise(count, seed)
        return slot.staging[:count]

    def runs(self) -> list[str]:
        """What the device did, without the waiting."""
        done = ("copy_in", "enqueue", "launch", "copy_out", "run", "copied_out")
        return [call for call in self.device.journal if call.split()[0] in done]


@pytest.fixture
def at() -> OnDevice:
    return OnDevice()


def test_nothing_runs_before_somebody_waits_and_then_in_order(at: OnDevice) -> None:
    slot = at.lanes.slots[0]
    pictures = at.staged(slot, 3)
    at.lanes.submit(slot, pictures)
    assert at.runs() == ["copy_in", "enqueue", "copy_out"]
    assert slot.held[0] is pictures
    logits, times = at.lanes.finish(slot)
    assert at.runs()[3:] == ["run 3", "copied_out"]
    assert_answers(logits, pictures)
    assert times == GpuTimes(3, 3, copy_in_ms=0.25, run_ms=4.0, copy_out_ms=0.125)
    assert slot.held == []


def test_answers_are_the_callers_own(at: OnDevice) -> None:
    slot = at.lanes.slots[0]
    at.lanes.submit(slot, first := at.staged(slot, 2, seed=1).copy())
    logits, _ = at.lanes.finish(slot)
    at.lanes.submit(slot, at.staged(slot, 2, seed=2))
    at.lanes.finish(slot)
    assert_answers(logits, first)


def test_two_batches_are_on_the_device_at_once(at: OnDevice) -> None:
    first, second = at.lanes.slots
    at.lanes.submit(first, at.staged(first, 2, seed=1))
    at.lanes.submit(second, at.staged(second, 4, seed=2))
    assert at.device.most_on_their_way == 2
    assert not any(call.startswith("run") for call in at.runs())
    assert_answers(at.lanes.finish(first)[0], noise(2, seed=1))
    assert_answers(at.lanes.finish(second)[0], noise(4, seed=2))


def test_a_batch_is_padded_to_its_planned_size_and_only_its_own_rows_come_back(at: OnDevice) -> None:
    slot = at.lanes.slots[0]
    at.lanes.sizes[:] = [0, 4, 2, 4, 4]
    for count, size in [(4, 4), (3, 4), (2, 2), (1, 4)]:
        at.lanes.submit(slot, at.staged(slot, count, seed=count))
        logits, times = at.lanes.finish(slot)
        assert (times.pictures, times.batch_size) == (count, size)
        assert_answers(logits, noise(count, seed=count))
    assert at.execution.batches == [4, 4, 2, 4]
    at.lanes.submit(slot, at.staged(slot, 1), batch_size=1)
    assert at.lanes.finish(slot)[1].batch_size == 1


def test_an_output_that_is_not_written_is_seen(at: OnDevice) -> None:
    slot = at.lanes.slots[0]
    at.lanes.submit(slot, at.staged(slot, 2), poisoned=True)
    assert_answers(at.lanes.finish(slot)[0], noise(2))
    at.execution.writes = False
    at.lanes.submit(slot, at.staged(slot, 2, seed=1))
    with pytest.raises(GpuFailed, match="did not write its output"):  # not what was there from before
        at.lanes.finish(slot)
    assert np.isnan(slot.fetched[0, 0])
    assert not np.isnan(slot.fetched[1]).any()  # one number is enough, and cheap
    at.lanes.submit(slot, at.staged(slot, 2, seed=1), poisoned=True)
    with pytest.raises(GpuFailed, match="did not write its output"):
        at.lanes.finish(slot)
    assert np.isnan(slot.fetched[:2]).all()
    at.execution.writes = True
    at.lanes.submit(slot, at.staged(slot, 2))
    assert_answers(at.lanes.finish(slot)[0], noise(2))


def test_each_slot_has_a_graph_of_each_size_and_other_sizes_do_without(at: OnDevice) -> None:
    at.lanes.record_graphs([4, 1])
    assert at.execution.batches == [4] * 4 + [1] * 4
    # A run and a wait before each recording: the first run of a shape prepares memory.
    assert at.device.journal[:4] == ["enqueue", "synchronize", "run 4", "record"]
    at.device.journal.clear()
    for count in (1, 3, 4):
        for slot in at.lanes.slots:
            at.lanes.submit(slot, at.staged(slot, count, seed=count))
            assert_answers(at.lanes.finish(slot)[0], noise(count, seed=count))
    assert (at.device.counts["launch"], at.execution.batches[8:]) == (4, [3, 3])


def test_buffers_are_there_once_for_the_largest_batch(at: OnDevice) -> None:
    picture_bytes, row_bytes = int(np.prod(SHAPE)), 4 * CLASSES
    assert at.lanes.buffer_bytes == 2 * MOST * (picture_bytes + row_bytes)
    assert [buffer.shape for buffer in at.lanes.callers_buffers] == [(MOST, *SHAPE)] * 2
    made = at.device.counts["pinned"], at.device.counts["allocate"], at.device.counts["event"]
    slot = at.lanes.slots[0]
    for count in range(1, MOST + 1):
        at.lanes.submit(slot, at.staged(slot, count))
        at.lanes.finish(slot)
    assert made == (at.device.counts["pinned"], at.device.counts["allocate"], at.device.counts["event"])


def test_graphs_go_before_the_engine_and_buffers_last(at: OnDevice) -> None:
    at.lanes.record_graphs([2])
    slot = at.lanes.slots[0]
    at.lanes.submit(slot, at.staged(slot, 2))
    at.device.journal.clear()
    at.lanes.close()
    order = [call for call in at.device.journal if call != "synchronize"]
    assert order == ["run 2", "copied_out", "close_graph", "close_graph", "close_execution"] + ["free"] * 4
    assert slot.staging.size == slot.fetched.size == 0
    assert set(at.device.alive()) == {"FakeExecution"}  # whose owner keeps the empty object


def test_what_a_broken_device_may_still_use_is_not_freed(at: OnDevice) -> None:
    slot = at.lanes.slots[0]
    at.device.fail_runs = 1
    at.lanes.submit(slot, at.staged(slot, 2))
    with pytest.raises(GpuFailed, match="did not come to rest: run"):
        at.lanes.close()
    assert at.device.counts["free"] == at.device.counts["close_execution"] == 0
