"""Split placement: pictures are decoded in threads here, gather on the event loop, and go to a classifier elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from serve_app import tracing
from serve_app.autoscaling.signals import BACKLOG, KNEE, OFFERED, RATE
from serve_app.batching import Clock, Gatherer
from serve_app.errors import DeadlineExceeded
from serve_app.queueing import AgeingQueue
from serve_app.settings import BatchingSettings
from serve_app.stages import Scored
from serve_app.types import Input, Picture, Priority

Decode = Callable[[Input], Picture]

FIRST_DECODE_MS = 3.0
"""What a picture is thought to take until one was measured."""


class DecodeThreads:
    """`threads` places for decoding, for all models of a replica; who finds none free waits in an `AgeingQueue`."""

    def __init__(self, threads: int, *, ageing_s: float = 0.0, clock: Clock = time.monotonic) -> None:
        self.threads = threads
        self.clock = clock
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self.decode_ms = FIRST_DECODE_MS
        self._free = threads
        self._waiting: AgeingQueue[asyncio.Future[None]] = AgeingQueue(ageing_s, clock)

    @property
    def taken(self) -> int:
        """Places in use, and turns that are waited for; those of cancelled callers too, until they come."""
        return len(self._waiting) + self.threads - self._free

    async def place(self, priority: Priority) -> None:
        """Waits for a place, which is the caller's until `release`."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(turn, priority)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Hands the place to who waits for one."""
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def took(self, decode_ms: float) -> None:
        """Follows the mean time of late."""
        self.decode_ms += 0.05 * (decode_ms - self.decode_ms)


class DecodePool:
    """Decodes one model's pictures in threads, `threads` at a time.

    A decode that has begun cannot be stopped, so its place is freed when its thread is done, not when its caller
    has gone away.

    Args:
        decode: a picture file, or a client's tensor -> a picture.
        threads: how many, or those that other models' pools use too.
    """

    def __init__(
        self,
        decode: Decode,
        threads: int | DecodeThreads,
        *,
        ageing_s: float = 0.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._decode = decode
        self._owns_threads = isinstance(threads, int)
        if isinstance(threads, int):
            threads = DecodeThreads(threads, ageing_s=ageing_s, clock=clock)
        self._threads = threads
        self._clock = self._threads.clock
        self._inside = 0

    @property
    def threads(self) -> int:
        return self._threads.threads

    @property
    def backlog(self) -> int:
        """This model's pictures that wait for a thread or are being decoded."""
        return self._inside

    def pictures_per_s(self) -> float:
        """What the threads do together, by the mean time of late."""
        return self.threads * 1e3 / self._threads.decode_ms

    async def decode(
        self, body: Input, deadline_s: float, priority: Priority = "interactive"
    ) -> tuple[Picture, float, float]:
        """Decodes one picture.

        Returns:
            The picture, milliseconds waited for a thread, milliseconds of decoding.

        Raises:
            DeadlineExceeded: the deadline passed before a thread was free.
            RequestError: the file is refused.
        """
        since_s = self._clock()
        self._inside += 1
        try:
            await self._threads.place(priority)
        except asyncio.CancelledError:
            self._inside -= 1
            raise
        started_s = self._clock()
        if started_s >= deadline_s:
            self._release()
            raise DeadlineExceeded("the time of this request was up before it could be decoded")
        work: Future[tuple[Picture, float]] = self._threads.executor.submit(self._timed, body)
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release))
        picture, decode_ms = await asyncio.wrap_future(work)
        self._threads.took(decode_ms)
        wait_ms = (started_s - since_s) * 1e3
        if parent := tracing.here():
            about = {**tracing.about_picture(body), "queue_ms": wait_ms}
            tracing.record("decode", parent, self._clock, started_s, started_s + decode_ms / 1e3, about)
        return picture, wait_ms, decode_ms

    def _release(self) -> None:
        self._inside -= 1
        self._threads.release()

    def _timed(self, body: Input) -> tuple[Picture, float]:
        started_s = self._clock()
        picture = self._decode(body)
        return picture, (self._clock() - started_s) * 1e3

    def close(self) -> None:
        """Threads that others use too go on."""
        if self._owns_threads:
            self._threads.executor.shutdown(wait=False)


class Split:
    """Decode threads in front of a gatherer; satisfies `stages.Stages`.

    Args:
        pool: decodes.
        gatherer: sends what was decoded.
    """

    def __init__(self, pool: DecodePool, gatherer: Gatherer) -> None:
        self._pool = pool
        self._gatherer = gatherer
        self._offered = 0

    async def score(self, body: Input, k: int, deadline_s: float, priority: Priority = "interactive") -> Scored:
        """See `stages.Stages`."""
        self._count(1)
        picture, wait_ms, decode_ms = await self._pool.decode(body, deadline_s, priority)
        gathered = await self._gatherer.submit(picture, k, deadline_s, priority)
        return Scored(gathered.ranking, wait_ms + gathered.queue_ms, decode_ms, gathered.inference_ms, gathered.version)

    def refused(self, pictures: int) -> None:
        """See `stages.Stages`."""
        self._count(pictures)

    def _count(self, pictures: int) -> None:
        self._offered += pictures
        self._gatherer.offered(pictures)

    def signals(self) -> dict[str, float]:
        """See `stages.Stages`. Of decoding only: what waits for the classifier is the classifier's backlog."""
        return {
            BACKLOG: self._pool.backlog,
            OFFERED: self._offered,
            RATE: self._pool.pictures_per_s(),
            KNEE: self._pool.threads,
        }

    def tune(self, batching: BatchingSettings) -> None:
        """See `stages.Stages`."""
        self._gatherer.bound(batching.max_batch_size)

    async def close(self) -> None:
        """See `stages.Stages`."""
        await self._gatherer.close()
        self._pool.close()
