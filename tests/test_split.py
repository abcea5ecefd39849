from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from serve_app.batching import Gatherer
from serve_app.errors import DeadlineExceeded
from serve_app.split import DecodePool, Split
from serve_app.types import Picture
from tests.fakes import SHAPE, FakeClassifier, FakeClock, picture, split


async def test_a_picture_that_is_late_for_its_thread_is_not_decoded() -> None:
    decoded: list[bytes] = []
    release = threading.Event()

    def slow(body: bytes) -> Picture:
        decoded.append(body)
        release.wait(10)
        return picture(body[0])

    pool = DecodePool(slow, threads=1)
    first = asyncio.create_task(pool.decode(b"\x01", float("inf")))
    late = asyncio.create_task(pool.decode(b"\x02", pool._clock()))
    await asyncio.sleep(0.01)
    release.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await late
    assert decoded == [b"\x01"]
    pool.close()


async def test_a_cancelled_decode_keeps_its_place_until_its_thread_is_done() -> None:
    running, most, release = 0, 0, threading.Event()
    lock = threading.Lock()

    def slow(body: bytes) -> Picture:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        release.wait(10)
        with lock:
            running -= 1
        return picture(body[0])

    pool = DecodePool(slow, threads=1)
    gone = asyncio.create_task(pool.decode(b"\x01", float("inf")))
    await asyncio.sleep(0.01)
    gone.cancel()
    after = asyncio.create_task(pool.decode(b"\x02", float("inf")))
    await asyncio.sleep(0.01)
    assert not after.done()
    release.set()
    decoded, _, _ = await after
    assert np.array_equal(decoded, picture(2))
    assert most == 1
    pool.close()


async def test_a_picture_goes_through_both_stages() -> None:
    stages = split(FakeClassifier(), lambda body: picture(body[0]))
    scored = await stages.score(b"\x03", 2, float("inf"))
    assert scored.ranking.class_ids == [3, 0]
    assert scored.inference_ms == 1.5
    assert scored.decode_ms > 0
    await stages.close()


async def test_interactive_pictures_are_decoded_first() -> None:
    decoded = bytearray()
    release = threading.Event()

    def slow(body: bytes) -> Picture:
        decoded.extend(body)
        release.wait(10)
        return picture(body[0])

    pool = DecodePool(slow, threads=1, ageing_s=5, clock=FakeClock())
    order = ((0, "interactive"), (1, "batch"), (2, "interactive"), (3, "batch"), (4, "interactive"))
    tasks = [asyncio.create_task(pool.decode(bytes([value]), float("inf"), priority)) for value, priority in order]
    await asyncio.sleep(0.01)
    assert pool.backlog == 5
    release.set()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)
    assert list(decoded) == [0, 2, 4, 1, 3]
    assert pool.backlog == 0
    pool.close()


async def test_a_picture_cancelled_while_it_waits_gives_its_place_to_the_next() -> None:
    release = threading.Event()

    def slow(body: bytes) -> Picture:
        release.wait(10)
        return picture(body[0])

    pool = DecodePool(slow, threads=1)
    first, gone, last = (asyncio.create_task(pool.decode(bytes([value]), float("inf"))) for value in range(3))
    await asyncio.sleep(0.01)
    gone.cancel()
    release.set()
    await asyncio.gather(first, last)
    with pytest.raises(asyncio.CancelledError):
        await gone
    await asyncio.sleep(0)
    assert pool.backlog == 0
    await pool.decode(b"\x01", float("inf"))
    pool.close()


async def test_the_signals_are_of_decoding_and_not_of_what_waits_for_the_classifier() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    clock = FakeClock()

    def slow(body: bytes) -> Picture:
        clock.advance(0.01)
        return picture(body[0])

    pool = DecodePool(slow, 2, clock=clock)
    gatherer = Gatherer(classifier, SHAPE, max_chunk=4, max_in_flight=1)
    stages = Split(pool, gatherer)
    tasks = [asyncio.create_task(stages.score(b"\x01", 1, float("inf"))) for _ in range(100)]
    while gatherer.waiting < 99:
        await asyncio.sleep(0.001)
    stages.refused(7)
    signals = stages.signals()
    assert (signals["backlog_pictures"], signals["offered_pictures"], signals["knee_pictures"]) == (0, 107, 2)
    assert signals["pictures_per_s"] == pytest.approx(200, rel=0.1)
    classifier.gate.set()
    await asyncio.gather(*tasks)
    assert sum(chunk.offered_pictures for chunk in classifier.told) == 107
    await stages.close()
