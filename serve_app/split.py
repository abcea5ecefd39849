"""Split placement: pictures are decoded in threads here, gather on the event loop, and go to a classifier elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from serve_app.batching import Clock, Gatherer
from serve_app.errors import DeadlineExceeded
from serve_app.stages import Scored
from serve_app.types import Picture

Decode = Callable[[bytes], Picture]


class DecodePool:
    """Decodes in threads, `threads` pictures at a time, first come first served.

    A decode that has begun cannot be stopped, so its place is freed when its thread is done, not when its caller
    has gone away.
    """

    def __init__(self, decode: Decode, threads: int, clock: Clock = time.monotonic) -> None:
        self._decode = decode
        self._clock = clock
        self._places = asyncio.Semaphore(threads)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(self, body: bytes, deadline_s: float) -> tuple[Picture, float, float]:
        """Decodes one picture file.

        Returns:
            The picture, milliseconds waited for a thread, milliseconds of decoding.

        Raises:
            DeadlineExceeded: the deadline passed before a thread was free.
            RequestError: the file is refused.
        """
        since_s = self._clock()
        await self._places.acquire()
        started_s = self._clock()
        if started_s >= deadline_s:
            self._places.release()
            raise DeadlineExceeded("the time of this request was up before it could be decoded")
        work: Future[tuple[Picture, float]] = self._executor.submit(self._timed, body)
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._places.release))
        picture, decode_ms = await asyncio.wrap_future(work)
        return picture, (started_s - since_s) * 1e3, decode_ms

    def _timed(self, body: bytes) -> tuple[Picture, float]:
        started_s = self._clock()
        picture = self._decode(body)
        return picture, (self._clock() - started_s) * 1e3

    def close(self) -> None:
        self._executor.shutdown(wait=False)


class Split:
    """Decode threads in front of a gatherer; satisfies `stages.Stages`.

    Args:
        pool: decodes.
        gatherer: sends what was decoded.
    """

    def __init__(self, pool: DecodePool, gatherer: Gatherer) -> None:
        self._pool = pool
        self._gatherer = gatherer

    async def score(self, body: bytes, k: int, deadline_s: float) -> Scored:
        """See `stages.Stages`."""
        picture, wait_ms, decode_ms = await self._pool.decode(body, deadline_s)
        gathered = await self._gatherer.submit(picture, k, deadline_s)
        return Scored(gathered.ranking, wait_ms + gathered.queue_ms, decode_ms, gathered.inference_ms)

    async def close(self) -> None:
        """See `stages.Stages`."""
        await self._gatherer.close()
        self._pool.close()
