from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from serve_app.errors import GpuFailed
from serve_app.runtime import GpuOptions, OverlappingRuntime
from serve_app.runtime.gpu.device import Device
from serve_app.runtime.gpu.runtime import MEASURED_RUNS, GpuRuntime
from serve_app.types import GpuMemory, GpuTimes
from tests.fakes import CLASSES, SHAPE
from tests.gpu_fakes import PATIENCE_S, FakeDevice, FakeExecution, assert_answers, noise


class Opened:
    """A runtime on a fake device."""

    def __init__(
        self,
        *,
        run_ms: Callable[[int], float] = lambda n: 1.0 + n,
        most: int = 8,
        slots: int = 2,
        graphs: bool = False,
    ) -> None:
        self.device = FakeDevice(run_ms=run_ms)
        self.seen: list[GpuTimes] = []
        options = GpuOptions(most, "stand_in", slots, graphs, self.seen.append)
        self.runtime = GpuRuntime(self.device.make, self._execution, options, "fp16")
        self.warmed = list(self.execution.batches)
        self.execution.batches.clear()

    def _execution(self, device: Device) -> FakeExecution:
        self.execution = FakeExecution(device)
        return self.execution


def ask(pool: ThreadPoolExecutor, runtime: GpuRuntime, pictures: np.ndarray) -> Future[np.ndarray]:
    return pool.submit(runtime.infer, pictures)


def test_what_it_is() -> None:
    at = Opened(slots=3)
    assert isinstance(at.runtime, OverlappingRuntime)
    info = at.runtime.info
    assert (info.backend, info.inference_precision, info.device) == ("tensorrt", "fp16", "fake GPU")
    assert (at.runtime.callers, len(at.runtime.buffers)) == (3, 3)
    assert {buffer.shape for buffer in at.runtime.buffers} == {(8, *SHAPE)}
    buffers = 3 * 8 * (int(np.prod(SHAPE)) + 4 * CLASSES)
    assert at.runtime.memory() == GpuMemory(buffers, engine=7, free=30, total=100)
    at.runtime.close()
    assert at.device.strays == []


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("graphs", [False, True])
def test_many_callers_get_their_own_answers_from_every_kind_of_memory(slots: int, graphs: bool) -> None:
    """The device reads only when somebody waits, so a buffer that is overwritten before shows as a wrong answer."""
    # Odd sizes are slow, so they are padded.
    at = Opened(run_ms=lambda n: 1.0 + n + 9 * (n % 2), slots=slots, graphs=graphs)
    free = list(at.runtime.buffers)
    gate = threading.Barrier(slots + 3)

    def caller(number: int) -> None:
        random = np.random.default_rng(number)
        mine = free[number] if number < slots else None
        gate.wait(PATIENCE_S)
        for _ in range(60):
            pictures = random.integers(0, 256, (int(random.integers(1, 9)), *SHAPE), np.uint8)
            given: np.ndarray = pictures.copy()
            if mine is not None:
                given = mine[: len(pictures)]
                given[:] = pictures
            elif random.random() < 0.5:
                given = np.repeat(pictures, 2, axis=2)[:, :, ::2]
                assert not given.flags.c_contiguous
            logits = at.runtime.infer(given)
            given[:] = 0  # it is the caller's again
            assert_answers(logits, pictures)

    with ThreadPoolExecutor(slots + 3) as pool:
        for done in [pool.submit(caller, number) for number in range(slots + 3)]:
            done.result(3 * PATIENCE_S)
    assert at.device.most_on_their_way <= slots
    assert len(at.seen) == 60 * (slots + 3)
    assert all(times.batch_size % 2 == 0 for times in at.seen)
    assert (at.device.counts["launch"] > len(at.seen)) == graphs
    free.clear()
    at.runtime.close()
    assert at.device.strays == []
    assert at.device.alive() == ["FakeExecution"]


def test_the_second_batch_is_copied_before_the_first_is_done() -> None:
    at = Opened()
    at.device.journal.clear()
    at.device.idle_until_copies = at.device.counts["copy_in"] + 2  # alone, the first would wait for ever
    with ThreadPoolExecutor(2) as pool:
        first, second = (ask(pool, at.runtime, noise(count, seed=count)) for count in (5, 3))
        assert_answers(first.result(PATIENCE_S), noise(5, seed=5))
        assert_answers(second.result(PATIENCE_S), noise(3, seed=3))
    done = [call for call in at.device.journal if call.startswith(("copy_in", "run", "copied"))]
    assert done[:2] == ["copy_in", "copy_in"]
    assert at.device.most_on_their_way == 2
    at.runtime.close()


def test_no_more_batches_are_on_the_device_than_there_are_slots() -> None:
    at = Opened(slots=2)
    at.device.idle_until_copies = at.device.counts["copy_in"] + 6
    with ThreadPoolExecutor(6) as pool:
        for answer in [ask(pool, at.runtime, noise(2)) for _ in range(6)]:
            answer.result(PATIENCE_S)
    assert at.device.most_on_their_way == 2
    at.runtime.close()


def test_every_size_has_run_before_it_is_ready_and_the_largest_in_every_slot() -> None:
    at = Opened(most=3, slots=2)
    assert at.warmed[:4] == [3, 3, 2, 1]
    assert at.warmed[4:] == [3] * MEASURED_RUNS + [1] * MEASURED_RUNS + [2] * MEASURED_RUNS + [3] * MEASURED_RUNS
    assert at.seen == []  # that was nobody's batch
    assert at.runtime.latency.as_dict() == {1: 2.0, 2: 3.0, 3: 4.0}
    at.runtime.close()


@pytest.mark.parametrize(
    ("run_ms", "sizes"),
    [
        (lambda n: 1.0 + n, [1, 2, 3, 4, 5, 6]),
        (lambda n: 9.0 if n < 4 else 1.0 + n, [4, 4, 4, 4, 5, 6]),
        (lambda n: 10.0, [1, 2, 3, 4, 5, 6]),
        # Slow engines are measured at 1, 2, 4 and 6 only; 3 and 5 are thought to lie between.
        (lambda n: 100.0 + 90 * (n % 2), [2, 2, 3, 4, 5, 6]),
    ],
)
def test_batches_run_in_the_size_that_is_fastest(run_ms: Callable[[int], float], sizes: list[int]) -> None:
    at = Opened(run_ms=run_ms, most=6)
    for count in range(1, 7):
        assert_answers(at.runtime.infer(noise(count, seed=count)), noise(count, seed=count))
    assert at.execution.batches == sizes
    at.runtime.close()


@pytest.mark.parametrize(("run_ms", "sizes"), [(40.0, [1, 2, 3, 4, 5, 6]), (51.0, [1, 2, 4, 6])])
def test_slow_engines_are_measured_and_recorded_at_powers_of_two_only(run_ms: float, sizes: list[int]) -> None:
    at = Opened(run_ms=lambda n: run_ms, most=6, graphs=True)
    assert list(at.runtime.latency.sizes) == sizes
    assert at.device.counts["record"] == 2 * len(sizes)
    assert_answers(at.runtime.infer(noise(5)), noise(5))
    at.runtime.close()


def test_pictures_in_its_own_buffers_are_not_copied_again() -> None:
    at = Opened()
    given: list[np.ndarray] = []
    copy_in = at.device.copy_in

    def noted(target: object, source: np.ndarray, stream: object) -> None:
        if source.dtype == np.uint8:
            given.append(source)
        copy_in(target, source, stream)  # type: ignore[arg-type]

    at.device.copy_in = noted  # type: ignore[method-assign]
    buffer = at.runtime.buffers[1]
    buffer[:4] = noise(4)
    assert_answers(at.runtime.infer(buffer[:4]), noise(4))
    assert_answers(at.runtime.infer(buffer[1:3]), noise(4)[1:3])
    foreign = noise(2)
    at.runtime.infer(foreign)
    odd = at.runtime.infer(buffer[0:4:2])  # in a buffer, but not in one piece
    assert_answers(odd, noise(4)[::2])
    shared = [np.shares_memory(source, buffer) for source in given]
    assert shared == [True, True, False, False]
    assert not np.shares_memory(given[2], foreign)
    given.clear()
    at.runtime.close()


def test_more_pictures_than_the_largest_batch_are_refused() -> None:
    at = Opened(most=3)
    with pytest.raises(GpuFailed, match="a batch of 4 pictures; 3 is the largest"):
        at.runtime.infer(noise(4))
    assert_answers(at.runtime.infer(noise(3)), noise(3))
    at.runtime.close()


def test_pictures_of_another_shape_are_refused_and_their_slot_is_free_again() -> None:
    at = Opened(slots=1)
    with pytest.raises(ValueError, match="broadcast"):
        at.runtime.infer(np.zeros((2, 5, 5, 3), np.uint8))
    assert_answers(at.runtime.infer(noise(3)), noise(3))
    at.runtime.close()


def test_an_engine_is_found_that_does_not_write_its_output() -> None:
    at = Opened()
    assert_answers(at.runtime.probe(noise(1)), noise(1))
    assert at.seen == []
    at.execution.writes = False
    for ask in (at.runtime.infer, at.runtime.probe) * 2:  # in whichever slot
        with pytest.raises(GpuFailed, match="did not write its output"):
            ask(noise(1))
    at.runtime.close()


def test_a_refused_batch_fails_its_caller_only() -> None:
    at = Opened()
    at.device.arm("enqueue", 3)
    outcomes = []
    for seed in range(5):
        try:
            assert_answers(at.runtime.infer(noise(2, seed)), noise(2, seed))
            outcomes.append("answered")
        except GpuFailed:
            outcomes.append("failed")
    assert outcomes == ["answered", "answered", "failed", "answered", "answered"]
    at.runtime.close()


def test_after_the_end_nothing_is_answered_and_nothing_hangs() -> None:
    at = Opened()
    own = at.runtime.buffers[0][:1].copy()
    at.runtime.close()
    at.runtime.close()
    assert len(at.runtime.buffers) == 0
    for call in (at.runtime.infer, at.runtime.probe):
        with pytest.raises(GpuFailed, match="closed"):
            call(own)
    with pytest.raises(GpuFailed, match="closed"):
        at.runtime.memory()


def test_callers_that_wait_when_it_ends_are_answered_or_told() -> None:
    at = Opened()
    at.device.stuck.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [ask(pool, at.runtime, noise(2, seed)) for seed in range(6)]
        ends = [pool.submit(at.runtime.close) for _ in range(2)]
        at.device.stuck.set()
        for seed, answer in enumerate(asked):
            error = answer.exception(PATIENCE_S)
            if error is None:
                assert_answers(answer.result(), noise(2, seed))
            else:
                assert isinstance(error, GpuFailed)
                assert str(error) == "the engine was closed"
        assert [end.result(PATIENCE_S) for end in ends] == [None, None]
    assert at.device.strays == []
    assert at.device.journal[-2:] == ["leave", "close_device"]


@pytest.mark.parametrize("call", ["enqueue", "record", "copy_out", "launch"])
def test_a_warm_up_that_fails_frees_everything(call: str) -> None:
    device = FakeDevice().arm(call)
    with pytest.raises(GpuFailed, match=f"FakeGpuError: {call}"):
        GpuRuntime(device.make, FakeExecution, GpuOptions(4, cuda_graphs=True), "fp32")
    assert device.journal[-2:] == ["leave", "close_device"]
    assert device.counts["free"] == 4
    assert set(device.alive()) <= {"FakeExecution"}


def test_of_two_failures_the_first_is_told() -> None:
    device = FakeDevice()
    device.fail_runs = 1
    with pytest.raises(GpuFailed, match="FakeGpuError: run"):
        GpuRuntime(device.make, FakeExecution, GpuOptions(4), "fp32")
    assert device.journal[-2:] == ["leave", "close_device"]
