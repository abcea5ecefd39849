from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from serve_app.colocated import Colocated
from serve_app.errors import BrokenPicture, DeadlineExceeded, InferenceFailed, NotReady, ServeError
from serve_app.latency import LatencyTable
from serve_app.settings import BatchingSettings
from serve_app.tuning import Tuner
from serve_app.types import Logits, Picture, Pictures, Priority, SentBecause
from tests.fakes import SHAPE, FakeClock, picture, scores_of

NEVER_S = float("inf")


def decode(body: bytes) -> Picture:
    """Not a picture format: the first byte is the class; `!` is broken, `?` breaks the decoder."""
    if body == b"!":
        raise BrokenPicture("broken")
    if body == b"?":
        raise OSError("a fault")
    return picture(body[0])


class FakeEngine:
    """Answers by `scores_of`; while `gate` is closed a chunk waits in it. `errors` are raised first, one per chunk."""

    def __init__(self) -> None:
        self.chunks: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.errors: list[Exception] = []

    def infer(self, pictures: Pictures) -> Logits:
        self.chunks.append(len(pictures))
        self.entered.release()
        assert self.gate.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        return scores_of(pictures)


def tuner(knee: int, most: int) -> Tuner:
    """Of an engine that takes 1 ms per picture, and 2 ms for less than the knee."""
    sizes = sorted({1, knee, most})
    table = LatencyTable.of({size: 1.0 * size if size >= knee else 2.0 * size for size in sizes})
    return Tuner(table, BatchingSettings(max_batch_size=most))


def stages(
    engine: FakeEngine,
    *,
    threads: int = 1,
    max_chunk: int = 8,
    knee: int = 8,
    decode: Callable[[bytes], Picture] = decode,
    on_batch: Callable[[int, float, SentBecause], None] = lambda pictures, batch_ms, because: None,
    clock: Callable[[], float] | None = None,
) -> Colocated:
    return Colocated(
        [engine.infer] * threads,
        decode,
        SHAPE,
        max_chunk=max_chunk,
        tuner=tuner(knee, max_chunk),
        ageing_s=5.0,
        on_batch=on_batch,
        clock=clock or FakeClock(),
    )


async def entered(engine: FakeEngine) -> None:
    """Until a chunk is in the engine."""
    assert await asyncio.to_thread(engine.entered.acquire, timeout=10)


async def best(line: Colocated, value: int) -> int:
    return (await line.score(bytes([value]), 1, NEVER_S)).ranking.class_ids[0]


async def test_a_lone_picture_leaves_at_once() -> None:
    engine = FakeEngine()
    line = stages(engine)
    assert await best(line, 3) == 3
    assert engine.chunks == [1]
    await line.close()


async def test_what_arrives_while_the_engine_runs_leaves_together() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    line = stages(engine)
    answers = [asyncio.create_task(best(line, 0))]
    await entered(engine)
    answers += [asyncio.create_task(best(line, value)) for value in range(1, 12)]
    await asyncio.sleep(0)
    assert line.waiting == 11
    engine.gate.set()
    assert await asyncio.gather(*answers) == [value % 5 for value in range(12)]
    assert engine.chunks == [1, 8, 3]
    await line.close()


async def test_chunks_have_half_of_what_waits_but_the_knee_at_least() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    line = stages(engine, max_chunk=8, knee=2)
    answers = [asyncio.create_task(best(line, 0))]
    await entered(engine)
    answers += [asyncio.create_task(best(line, value)) for value in range(1, 21)]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(*answers)
    assert engine.chunks == [1, 8, 6, 3, 2, 1]
    await line.close()


async def test_a_chunk_whose_time_is_up_leaves_without_what_still_waits() -> None:
    clock = FakeClock()
    engine = FakeEngine()
    engine.gate.clear()

    def slow(body: bytes) -> Picture:
        clock.advance(0.006)
        return decode(body)

    line = stages(engine, decode=slow, clock=clock)
    answers = [asyncio.create_task(best(line, 0))]
    await entered(engine)
    answers += [asyncio.create_task(best(line, value)) for value in range(1, 6)]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(*answers)
    assert engine.chunks == [1, 2, 2, 1]  # 2 x 6 ms is more than the 10 ms a chunk may gather
    await line.close()


async def test_pictures_of_several_threads_are_not_mixed_up() -> None:
    engine = FakeEngine()
    line = stages(engine, threads=4, max_chunk=3)
    answers = await asyncio.gather(*(best(line, value % 30) for value in range(500)))
    assert answers == [(value % 30) % 5 for value in range(500)]
    assert sum(engine.chunks) == 500
    await line.close()


async def test_one_bad_picture_does_not_touch_the_others() -> None:
    engine = FakeEngine()
    line = stages(engine)
    bodies = [b"\x01", b"!", b"\x02", b"?", b"\x03"]
    results = await asyncio.gather(*(line.score(body, 1, NEVER_S) for body in bodies), return_exceptions=True)
    assert [type(result) for result in (results[1], results[3])] == [BrokenPicture, ServeError]
    assert [results[at].ranking.class_ids for at in (0, 2, 4)] == [[1], [2], [3]]
    await line.close()


async def test_each_picture_gets_as_many_classes_as_it_asked_for() -> None:
    line = stages(FakeEngine())
    one, four = await asyncio.gather(line.score(b"\x01", 1, NEVER_S), line.score(b"\x02", 4, NEVER_S))
    assert one.ranking.class_ids[:1] == [1]
    assert four.ranking.class_ids == [2, 0, 1, 3]
    await line.close()


async def test_a_late_picture_is_not_decoded() -> None:
    decoded: list[bytes] = []

    def noting(body: bytes) -> Picture:
        decoded.append(body)
        return decode(body)

    clock = FakeClock()
    line = stages(FakeEngine(), decode=noting, clock=clock)
    with pytest.raises(DeadlineExceeded):
        await line.score(b"\x01", 1, clock())
    assert decoded == []
    await line.close()


async def test_an_engine_that_fails_costs_its_chunk_only() -> None:
    engine = FakeEngine()
    engine.errors = [RuntimeError("out of memory")]
    line = stages(engine)
    with pytest.raises(InferenceFailed):
        await line.score(b"\x01", 1, NEVER_S)
    assert await best(line, 2) == 2
    await line.close()


async def test_a_cancelled_picture_is_skipped_and_its_neighbours_are_not() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    line = stages(engine)
    running = asyncio.create_task(best(line, 1))
    await entered(engine)
    gone, stays = asyncio.create_task(best(line, 2)), asyncio.create_task(best(line, 3))
    await asyncio.sleep(0)
    gone.cancel()
    running_too = asyncio.create_task(best(line, 4))
    await asyncio.sleep(0)
    engine.gate.set()
    assert await asyncio.gather(running, stays, running_too) == [1, 3, 4]
    assert engine.chunks == [1, 2]
    await line.close()


async def test_close_answers_what_was_taken_and_takes_no_more() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    line = stages(engine, threads=2)
    answers = [asyncio.create_task(best(line, value)) for value in range(5)]
    await entered(engine)
    closing = asyncio.create_task(line.close())
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await line.score(b"\x01", 1, NEVER_S)
    engine.gate.set()
    await closing
    assert await asyncio.gather(*answers) == [0, 1, 2, 3, 4]


async def test_times_are_told_apart() -> None:
    clock = FakeClock()

    def slow(body: bytes) -> Picture:
        clock.advance(0.004)
        return decode(body)

    def infer(pictures: Pictures) -> Logits:
        clock.advance(0.02)
        return np.asarray(scores_of(pictures))

    engine = FakeEngine()
    engine.infer = infer  # type: ignore[method-assign]
    line = stages(engine, decode=slow, clock=clock)
    scored = await line.score(b"\x01", 1, NEVER_S)
    assert (scored.queue_ms, scored.decode_ms, scored.inference_ms) == pytest.approx((0, 4, 20), abs=1e-6)
    await line.close()


async def test_interactive_pictures_go_before_batch_ones_that_have_not_aged() -> None:
    clock, engine, decoded = FakeClock(), FakeEngine(), bytearray()

    def noting(body: bytes) -> Picture:
        decoded.extend(body)
        return decode(body)

    engine.gate.clear()
    line = stages(engine, decode=noting, clock=clock)
    answers = [asyncio.create_task(best(line, 0))]
    await entered(engine)

    def send(value: int, priority: Priority) -> None:
        answers.append(asyncio.create_task(line.score(bytes([value]), 1, NEVER_S, priority)))

    send(1, "batch")
    await asyncio.sleep(0)
    clock.advance(4)
    send(2, "batch")
    send(3, "interactive")
    await asyncio.sleep(0)
    clock.advance(2)  # picture 1 has waited 6 s by now, more than the 5 by which interactive ones may push in
    send(4, "interactive")
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(*answers)
    assert list(decoded) == [0, 3, 1, 4, 2]
    await line.close()


async def test_a_picture_that_is_late_once_it_is_decoded_does_not_run() -> None:
    clock, engine = FakeClock(), FakeEngine()

    def slow(body: bytes) -> Picture:
        clock.advance(0.004)
        return decode(body)

    line = stages(engine, decode=slow, clock=clock)
    tasks = [line.score(bytes([value]), 1, clock() + left_s) for value, left_s in ((1, 0.006), (2, 9), (3, 9))]
    late, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(late, DeadlineExceeded)
    assert [scored.ranking.class_ids for scored in others] == [[2], [3]]
    assert sum(engine.chunks) == 2
    await line.close()


async def test_why_a_chunk_was_sent_is_told() -> None:
    clock, engine = FakeClock(), FakeEngine()
    told: list[tuple[int, SentBecause]] = []

    def slow(body: bytes) -> Picture:
        clock.advance(body[0] / 1e3)
        return decode(body)

    engine.gate.clear()
    line = stages(
        engine, max_chunk=4, knee=4, decode=slow, clock=clock, on_batch=lambda n, ms, because: told.append((n, because))
    )
    answers = [asyncio.create_task(best(line, 0))]
    await entered(engine)
    answers += [asyncio.create_task(best(line, value)) for value in (0, 0, 0, 0, 20, 0)]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(*answers)
    await line.close()
    assert told == [(1, "idle"), (4, "full"), (1, "deadline"), (1, "idle")]


async def test_the_signals_are_this_stages_backlog_demand_and_rate() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    line = stages(engine, threads=2, max_chunk=8, knee=4)
    answers = [asyncio.create_task(best(line, value)) for value in range(6)]
    await entered(engine)
    line.refused(10)
    signals = line.signals()
    assert (signals["backlog_pictures"], signals["offered_pictures"], signals["knee_pictures"]) == (6, 16, 8)
    assert signals["pictures_per_s"] == pytest.approx(2 / (0.003 + 0.001))
    engine.gate.set()
    await asyncio.gather(*answers)
    assert line.signals()["backlog_pictures"] == 0
    await line.close()


async def test_the_rate_follows_what_pictures_cost() -> None:
    clock = FakeClock()

    def slow(body: bytes) -> Picture:
        clock.advance(0.009)
        return decode(body)

    def infer(pictures: Pictures) -> Logits:
        clock.advance(0.001 * len(pictures))
        return np.asarray(scores_of(pictures))

    engine = FakeEngine()
    engine.infer = infer  # type: ignore[method-assign]
    line = stages(engine, knee=1, decode=slow, clock=clock)
    for _ in range(200):
        await best(line, 1)
    assert line.signals()["pictures_per_s"] == pytest.approx(100, rel=0.02)
    await line.close()


async def test_a_lower_bound_holds_from_the_next_chunk_on() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    line = stages(engine)
    answers = [asyncio.create_task(best(line, 0))]
    await entered(engine)
    line.tune(BatchingSettings(max_batch_size=2))
    answers += [asyncio.create_task(best(line, value)) for value in range(1, 6)]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(*answers)
    assert engine.chunks == [1, 2, 2, 1]
    await line.close()
