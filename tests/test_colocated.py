from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from serve_app.colocated import Colocated
from serve_app.errors import BrokenPicture, DeadlineExceeded, InferenceFailed, NotReady, ServeError
from serve_app.types import Logits, Picture, Pictures
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


def stages(
    engine: FakeEngine,
    *,
    threads: int = 1,
    max_chunk: int = 8,
    knee: int = 8,
    decode: Callable[[bytes], Picture] = decode,
    clock: Callable[[], float] | None = None,
) -> Colocated:
    return Colocated(
        [engine.infer] * threads,
        decode,
        SHAPE,
        max_chunk=max_chunk,
        knee=knee,
        batch_ms=lambda pictures: 1.0 * pictures,
        on_batch=lambda pictures, batch_ms: None,
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
