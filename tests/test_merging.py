from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from serve_app.engines import Engine
from serve_app.errors import InferenceFailed
from serve_app.latency import LatencyTable
from serve_app.merging import Merger
from serve_app.metrics import NoMetrics
from serve_app.runtime import RuntimeInfo
from serve_app.settings import BatchingSettings
from serve_app.types import Chunk, GpuMemory, Logits, Pictures, SentBecause
from tests.fakes import CLASSES, SHAPE, FakeClock, manifest, picture, scores_of


class FakeRuntime:
    """Answers by `scores_of`."""

    info = RuntimeInfo("fake", "fp32", 1)

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.closed = False

    def infer(self, pictures: Pictures) -> Logits:
        self.batches.append(len(pictures))
        return scores_of(pictures)

    def close(self) -> None:
        self.closed = True


class NotingMetrics(NoMetrics):
    def __init__(self) -> None:
        self.reasons: list[tuple[int, SentBecause]] = []
        self.memory: list[GpuMemory] = []

    def gpu_memory(self, memory: GpuMemory) -> None:
        self.memory.append(memory)

    def batch(self, pictures: int, inference_ms: float, because: SentBecause) -> None:
        self.reasons.append((pictures, because))


class Setup:
    def __init__(self, most: int = 8, **batching: float) -> None:
        self.runtime, self.metrics, self.clock = FakeRuntime(), NotingMetrics(), FakeClock()
        # A knee of 4: below it a picture costs more.
        engine = Engine(manifest(), (self.runtime,), LatencyTable.of({1: 2.0, 4: 4.0, 8: 8.0}), most)
        self.merger = Merger(
            engine, BatchingSettings(max_batch_size=most, **batching), self.metrics, name="c1", clock=self.clock
        )


@pytest.fixture
def at() -> Setup:
    return Setup()


def chunk(*values: int, remaining_s: float | list[float] = 9.0, behind: float = 0.0, offered: int = 0) -> Chunk:
    pictures = np.stack([picture(value) for value in values])
    return Chunk(pictures, np.broadcast_to(np.float32(remaining_s), len(values)), behind, offered)


def classes(logits: Logits) -> list[int]:
    return [int(row) for row in logits.argmax(axis=1)]


async def test_chunks_run_together_and_each_gets_its_rows(at: Setup) -> None:
    one, two = await at.merger.run([at.merger.arrived(chunk(1, 2, 3)), at.merger.arrived(chunk(4))])
    assert (classes(one.logits), classes(two.logits)) == ([1, 2, 3], [4])
    assert at.runtime.batches == [4]
    assert (one.batch_size, one.max_batch_size, one.late) == (4, 8, None)


async def test_pictures_whose_time_is_up_do_not_run(at: Setup) -> None:
    first = at.merger.arrived(chunk(1, 2, 3, remaining_s=[1.0, 5.0, 2.0]))
    second = at.merger.arrived(chunk(4, remaining_s=9.0))
    at.clock.advance(2.0)
    one, two = await at.merger.run([first, second])
    assert at.runtime.batches == [2]
    assert one.late is not None
    assert one.late.tolist() == [True, False, True]
    assert two.late is None
    assert (classes(one.logits)[1], classes(two.logits)) == (2, [4])


async def test_a_batch_of_late_pictures_does_not_run_at_all(at: Setup) -> None:
    arrived = at.merger.arrived(chunk(1, 2, remaining_s=1.0))
    at.clock.advance(3)
    [scores] = await at.merger.run([arrived])
    assert at.runtime.batches == []
    assert scores.late is not None
    assert scores.late.all()
    assert scores.logits.shape == (2, CLASSES)
    assert at.metrics.reasons == []


async def test_more_than_the_engine_takes_is_run_in_parts(at: Setup) -> None:
    batch = [at.merger.arrived(chunk(*range(8))), at.merger.arrived(chunk(*range(5)))]
    one, two = await at.merger.run(batch)
    assert at.runtime.batches == [8, 5]
    assert (classes(one.logits), classes(two.logits)) == ([0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4])


async def test_a_chunk_from_before_the_bound_was_lowered_counts_as_a_whole_batch(at: Setup) -> None:
    large, small = at.merger.arrived(chunk(*range(8))), at.merger.arrived(chunk(1))
    at.merger.tuner.batching = BatchingSettings(max_batch_size=4)
    assert at.merger.counted_size([large]) == 4
    assert at.merger.counted_size([large, small]) == 5
    assert (await at.merger.run([large]))[0].max_batch_size == 4


async def test_the_signals_are_what_is_here_and_what_waits_behind_it(at: Setup) -> None:
    held = at.merger.arrived(chunk(1, 2, behind=10.5, offered=30))
    at.merger.arrived(chunk(3, behind=4, offered=5))
    signals = at.merger.signals()
    assert (signals["backlog_pictures"], signals["offered_pictures"]) == (17.5, 35)
    assert (signals["knee_pictures"], signals["pictures_per_s"]) == (4, pytest.approx(1000))
    at.merger.left(held)
    at.merger.left(held)  # whatever ends first
    assert at.merger.signals()["backlog_pictures"] == 5
    assert at.merger.signals()["offered_pictures"] == 35


async def test_why_a_batch_was_sent_is_told() -> None:
    at = Setup(merge_wait_s=0.01)
    await at.merger.run([at.merger.arrived(chunk(*range(8)))])
    waited = at.merger.arrived(chunk(1))
    at.clock.advance(0.011)
    await at.merger.run([waited])
    await at.merger.run([at.merger.arrived(chunk(1, 2))])
    assert at.metrics.reasons == [(8, "full"), (1, "deadline"), (2, "idle")]


async def test_close_frees_the_engine(at: Setup) -> None:
    await asyncio.to_thread(at.merger.close)
    assert at.runtime.closed
    assert at.merger._opened.buffers == []


async def test_senders_are_told_which_replica_it_was_and_how_many_they_are(at: Setup) -> None:
    for name in ("p1", "p2", "p1"):
        [scores] = await at.merger.run([at.merger.arrived(replace(chunk(1), sender=name))])
    assert (scores.replica, scores.senders) == ("c1", 2)
    at.clock.advance(11)
    [scores] = await at.merger.run([at.merger.arrived(replace(chunk(1), sender="p1"))])
    assert scores.senders == 1


class OverlappingRuntime(FakeRuntime):
    """Two callers at once; `during` is called with the pictures of each batch."""

    callers = 2

    def __init__(self, during: Callable[[Pictures], None] = lambda pictures: None) -> None:
        super().__init__()
        self.buffers: Sequence[Pictures] = [np.zeros((8, *SHAPE), np.uint8) for _ in range(self.callers)]
        self.during = during
        self.probed: list[int] = []
        self.buffers_at_close: int | None = None
        self.still_held: Callable[[], int] = lambda: 0

    def infer(self, pictures: Pictures) -> Logits:
        self.during(pictures)
        return super().infer(pictures)

    def probe(self, pictures: Pictures) -> Logits:
        self.probed.append(len(pictures))
        return scores_of(pictures)

    def memory(self) -> GpuMemory:
        return GpuMemory(1, 2, 3, 4)

    def close(self) -> None:
        self.buffers_at_close = self.still_held()
        super().close()


class Overlapped:
    """A merger in front of it, and which memory each batch lay in: the number of a buffer, or -1."""

    def __init__(self, gate: Callable[[int], None] = lambda number: None) -> None:
        self.places: list[int] = []
        self.gate = gate
        self.runtime, self.metrics = OverlappingRuntime(self._during), NotingMetrics()
        engine = Engine(manifest(), (self.runtime,), LatencyTable.of({1: 2.0, 4: 4.0, 8: 8.0}), 8)
        self.merger = Merger(engine, BatchingSettings(max_batch_size=8), self.metrics, clock=FakeClock())

    def _during(self, pictures: Pictures) -> None:
        owners = [at for at, buffer in enumerate(self.runtime.buffers) if np.shares_memory(buffer, pictures)]
        self.places.append(owners[0] if owners else -1)
        self.gate(len(self.places))

    async def run(self, *values: int) -> list[int]:
        [scores] = await self.merger.run([self.merger.arrived(chunk(*values))])
        return classes(scores.logits)


async def test_batches_at_once_lie_in_different_buffers_and_one_too_many_is_copied() -> None:
    entered, gate = threading.Semaphore(0), threading.Event()

    def wait(_: int) -> None:
        entered.release()
        assert gate.wait(10)

    at = Overlapped(wait)
    assert at.merger.concurrent_batches == 2
    running = [asyncio.create_task(at.run(*values)) for values in ([1, 2], [3], [4, 0])]
    for _ in running:  # the third takes the place that is kept for health checks
        assert await asyncio.to_thread(entered.acquire, timeout=10)
    gate.set()
    assert await asyncio.gather(*running) == [[1, 2], [3], [4, 0]]
    assert sorted(at.places) == [-1, 0, 1]
    assert await at.run(2, 2) == [2, 2]
    assert at.places[-1] in (0, 1)
    assert len(at.merger._opened.buffers) == 2
    await asyncio.to_thread(at.merger.close)


async def test_a_buffer_comes_back_from_a_batch_that_fails() -> None:
    def fail(_: int) -> None:
        raise RuntimeError("refused")

    at = Overlapped(fail)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="refused"):
            await at.run(1)
    at.gate = lambda _: None
    assert await at.run(1) == [1]
    assert -1 not in at.places
    await asyncio.to_thread(at.merger.close)


async def test_buffers_are_let_go_before_the_engine_closes() -> None:
    at = Overlapped()
    at.runtime.still_held = lambda: len(at.merger._opened.buffers)
    await at.run(1)
    await asyncio.to_thread(at.merger.close)
    assert at.runtime.closed
    assert at.runtime.buffers_at_close == 0


async def test_a_check_probes_the_engine_and_tells_what_memory_it_holds() -> None:
    at = Overlapped()
    await at.merger.check()
    assert at.runtime.probed == [1]
    assert at.metrics.memory == [GpuMemory(1, 2, 3, 4)]
    assert at.metrics.reasons == []  # it is no batch of anybody's
    await asyncio.to_thread(at.merger.close)


async def test_a_check_of_a_simple_engine_tells_of_no_memory(at: Setup) -> None:
    await at.merger.check()
    assert at.runtime.batches == [1]
    assert at.metrics.memory == []


async def test_a_check_that_fails_is_said_so(at: Setup) -> None:
    at.runtime.infer = lambda pictures: 1 / 0  # type: ignore[assignment, return-value, method-assign]
    with pytest.raises(InferenceFailed, match="division by zero"):
        await at.merger.check()
