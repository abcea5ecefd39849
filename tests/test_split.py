from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from serve_app.errors import DeadlineExceeded
from serve_app.split import DecodePool
from serve_app.types import Picture
from tests.fakes import FakeClassifier, picture, split


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
