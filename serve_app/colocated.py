"""Colocated placement: the thread that decodes a chunk of pictures runs the engine on it.

A stage in a thread of its own would only compete for the same core: measured here, two such threads cost each
other a third of their speed in lost cache and context switches. Event loop and threads meet once per chunk.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeAlias

import numpy as np

from serve_app.errors import DeadlineExceeded, InferenceFailed, NotReady, ServeError
from serve_app.postprocess import rank
from serve_app.stages import Scored, refuse
from serve_app.types import Logits, Picture, Pictures, Ranking

logger = logging.getLogger(__name__)
Clock: TypeAlias = Callable[[], float]

MIN_GATHER_S = 0.01
"""Decoding may hold decoded pictures back this long for the sake of a larger batch, or as long as that batch takes."""


@dataclass(slots=True)
class _Waiting:
    body: bytes
    k: int
    deadline_s: float
    since_s: float
    future: asyncio.Future[Scored]
    started_s: float = 0.0
    decoded_s: float = 0.0


class Colocated:
    """Decodes and classifies in threads of this process, each with an engine; satisfies `stages.Stages`.

    Each thread takes what waits, decodes it into a buffer of its own until nothing more waits, the chunk is full or
    its time is up, and runs the engine. So a lone picture leaves at once and chunks grow under load, with no timer.

    Args:
        engines: uint8 (n, *shape) -> float32 (n, classes); each is called by one thread.
        decode: a picture file -> uint8 of `shape`; called by all threads.
        shape: height, width, channels.
        max_chunk: most pictures in one run of the engine.
        knee: pictures a chunk may always have: larger ones hardly save anything, and are made of half of what waits.
        batch_ms: estimate of the engine's milliseconds for n pictures; bounds how long a chunk gathers.
        on_batch: told pictures and milliseconds of each run.
        clock: monotonic seconds, the same that deadlines are given in.
    """

    def __init__(
        self,
        engines: Sequence[Callable[[Pictures], Logits]],
        decode: Callable[[bytes], Picture],
        shape: tuple[int, int, int],
        *,
        max_chunk: int,
        knee: int,
        batch_ms: Callable[[int], float],
        on_batch: Callable[[int, float], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._decode = decode
        self._knee = min(knee, max_chunk)
        self._batch_ms = batch_ms
        self._on_batch = on_batch
        self._clock = clock
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(infer, np.empty((max_chunk, *shape), np.uint8)),
                name=f"pictures_{number}",
                daemon=True,
            )
            for number, infer in enumerate(engines)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Pictures no thread has taken yet."""
        return self._queue.qsize()

    async def score(self, body: bytes, k: int, deadline_s: float) -> Scored:
        """See `stages.Stages`."""
        if self._closed:
            raise NotReady("the service is shutting down; try again")
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Scored] = self._loop.create_future()
        self._queue.put(_Waiting(body, k, deadline_s, self._clock(), future))
        return await future

    async def close(self) -> None:
        """See `stages.Stages`."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _work(self, infer: Callable[[Pictures], Logits], buffer: Pictures) -> None:
        while (first := self._queue.get()) is not None:
            chunk = self._gather(first, buffer)
            if chunk:
                self._run(infer, chunk, buffer[: len(chunk)])

    def _gather(self, first: _Waiting, buffer: Pictures) -> list[_Waiting]:
        chunk: list[_Waiting] = []
        most = max(self._knee, min(len(buffer), (self.waiting + 1) // 2))
        began_s = self._clock()
        item: _Waiting | None = first
        while item is not None:
            if self._decode_into(item, buffer[len(chunk)]):
                chunk.append(item)
            if len(chunk) == most or (chunk and self._time_is_up(began_s, len(chunk))):
                break
            item = self._next_waiting()
        return chunk

    def _time_is_up(self, began_s: float, pictures: int) -> bool:
        return self._clock() - began_s >= max(MIN_GATHER_S, self._batch_ms(pictures) / 1e3)

    def _next_waiting(self) -> _Waiting | None:
        try:
            item = self._queue.get_nowait()
        except Empty:
            return None
        if item is None:  # the end, which is for `_work` to see
            self._queue.put(None)
        return item

    def _decode_into(self, item: _Waiting, slot: Picture) -> bool:
        if item.future.done():  # its caller was cancelled
            return False
        item.started_s = self._clock()
        if item.deadline_s <= item.started_s:
            self._fail([item], DeadlineExceeded("the time of this request was up before it could be decoded"))
            return False
        try:
            slot[:] = self._decode(item.body)
        except ServeError as error:
            self._fail([item], error)
            return False
        except Exception:
            logger.exception("a decoder failed")
            self._fail([item], ServeError("the decoder failed on this picture; the operator's log says why"))
            return False
        item.decoded_s = self._clock()
        return True

    def _run(self, infer: Callable[[Pictures], Logits], chunk: list[_Waiting], pictures: Pictures) -> None:
        try:
            started_s = self._clock()
            logits = infer(pictures)
            inference_ms = (self._clock() - started_s) * 1e3
            rankings = rank(logits, max(item.k for item in chunk))
        except Exception:
            logger.exception("a chunk of %d pictures failed", len(chunk))
            self._fail(chunk, InferenceFailed("the engine failed on this picture; the operator's log says why"))
            return
        self._on_batch(len(chunk), inference_ms)
        self._call(_answer, chunk, rankings, started_s, inference_ms)

    def _fail(self, items: list[_Waiting], error: ServeError) -> None:
        self._call(refuse, [item.future for item in items], error)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None  # whoever waits came through `score`
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.info("answers came after the end of the event loop")


def _answer(chunk: list[_Waiting], rankings: list[Ranking], inferred_s: float, inference_ms: float) -> None:
    for ranking, item in zip(rankings, chunk, strict=True):
        if not item.future.done():
            queue_ms = (item.started_s - item.since_s + inferred_s - item.decoded_s) * 1e3
            decode_ms = (item.decoded_s - item.started_s) * 1e3
            item.future.set_result(Scored(ranking, queue_ms, decode_ms, inference_ms))
