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

from serve_app import tracing
from serve_app.autoscaling.signals import BACKLOG, KNEE, OFFERED, RATE
from serve_app.errors import DeadlineExceeded, InferenceFailed, NotReady, ServeError
from serve_app.postprocess import rank
from serve_app.queueing import AgeingQueue
from serve_app.settings import BatchingSettings
from serve_app.stages import Scored, refuse
from serve_app.tuning import Tuner
from serve_app.types import Input, Logits, Picture, Pictures, Priority, Ranking, SentBecause

logger = logging.getLogger(__name__)
Clock: TypeAlias = Callable[[], float]

FIRST_DECODE_S = 0.003
"""What a picture is thought to cost beside the engine until one was measured."""
MIN_GATHER_S = 0.01
"""Decoding may hold decoded pictures back this long for the sake of a larger batch, or as long as that batch takes."""


@dataclass(slots=True)
class _Waiting:
    body: Input
    k: int
    deadline_s: float
    since_s: float
    future: asyncio.Future[Scored]
    traced: tracing.Parent | None
    started_s: float = 0.0
    decoded_s: float = 0.0


class Colocated:
    """Decodes and classifies in threads of this process, each with an engine; satisfies `stages.Stages`.

    Each thread takes what waits, decodes it into a buffer of its own until nothing more waits, the chunk is full or
    its time is up, and runs the engine. So a lone picture leaves at once and chunks grow under load, with no timer.
    A chunk is at most half of what waits, or the knee of the latency table: larger ones hardly save anything.

    Args:
        engines: uint8 (n, *shape) -> float32 (n, classes); each is called by one thread.
        decode: a picture -> uint8 of `shape`; called by all threads.
        shape: height, width, channels.
        max_chunk: size of the buffers; the plan's bound is never above it.
        tuner: of one engine; bounds chunks, and how long they gather.
        ageing_s: see `queueing.AgeingQueue`.
        on_batch: told pictures and milliseconds of each run, and why it was sent.
        clock: monotonic seconds, the same that deadlines are given in.
    """

    def __init__(
        self,
        engines: Sequence[Callable[[Pictures], Logits]],
        decode: Callable[[Input], Picture],
        shape: tuple[int, int, int],
        *,
        max_chunk: int,
        tuner: Tuner,
        ageing_s: float,
        on_batch: Callable[[int, float, SentBecause], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._decode = decode
        self._tuner = tuner
        self._tuning = threading.Lock()
        self._on_batch = on_batch
        self._clock = clock
        self._items: AgeingQueue[_Waiting] = AgeingQueue(ageing_s, clock)
        # One True for every item, and one False for every thread at the end.
        self._turns: SimpleQueue[bool] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._inside = 0
        self._offered = 0
        self._beside_engine_s = FIRST_DECODE_S
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
        return self._turns.qsize()

    async def score(self, body: Input, k: int, deadline_s: float, priority: Priority = "interactive") -> Scored:
        """See `stages.Stages`."""
        if self._closed:
            raise NotReady("the service is shutting down; try again")
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Scored] = self._loop.create_future()
        self._offered += 1
        self._inside += 1
        self._items.put(_Waiting(body, k, deadline_s, self._clock(), future, tracing.here()), priority)
        self._turns.put(True)
        try:
            return await future
        finally:
            self._inside -= 1

    def refused(self, pictures: int) -> None:
        """See `stages.Stages`."""
        self._offered += pictures

    def signals(self) -> dict[str, float]:
        """See `stages.Stages`. Decoding and classifying are one stage here."""
        per_picture_s = self._beside_engine_s + 1 / self._tuner.pictures_per_s()
        return {
            BACKLOG: self._inside,
            OFFERED: self._offered,
            RATE: len(self._threads) / per_picture_s,
            KNEE: len(self._threads) * self._tuner.plan.knee,
        }

    def tune(self, batching: BatchingSettings) -> None:
        """See `stages.Stages`."""
        with self._tuning:
            self._tuner.batching = batching

    async def close(self) -> None:
        """See `stages.Stages`."""
        self._closed = True
        for _ in self._threads:
            self._turns.put(False)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _work(self, infer: Callable[[Pictures], Logits], buffer: Pictures) -> None:
        while self._turns.get():
            chunk, because = self._gather(buffer)
            chunk = self._in_time(chunk, buffer)
            if chunk:
                self._run(infer, chunk, buffer[: len(chunk)], because)

    def _gather(self, buffer: Pictures) -> tuple[list[_Waiting], SentBecause]:
        chunk: list[_Waiting] = []
        plan = self._tuner.plan
        most = max(plan.knee, min(plan.max_batch_size, (self.waiting + 1) // 2))
        began_s = self._clock()
        while True:
            item = self._items.pop()
            if self._decode_into(item, buffer[len(chunk)]):
                chunk.append(item)
            if len(chunk) == most:
                return chunk, "full"
            if chunk and self._time_is_up(began_s, len(chunk)):
                return chunk, "deadline"
            if not self._another():
                return chunk, "idle"

    def _time_is_up(self, began_s: float, pictures: int) -> bool:
        engine_s = self._tuner.model.table.estimate_ms(pictures) / 1e3
        return self._clock() - began_s >= max(MIN_GATHER_S, engine_s)

    def _another(self) -> bool:
        """Whether another picture waits, which is this thread's then."""
        try:
            turn = self._turns.get_nowait()
        except Empty:
            return False
        if not turn:  # the end, which is for `_work` to see
            self._turns.put(False)
        return turn

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

    def _in_time(self, chunk: list[_Waiting], buffer: Pictures) -> list[_Waiting]:
        """The pictures that are not late, and the buffer without the others."""
        now_s = self._clock()
        late = [item for item in chunk if item.deadline_s <= now_s]
        if not late:
            return chunk
        self._fail(late, DeadlineExceeded("the time of this request was up before it could be classified"))
        kept = [at for at, item in enumerate(chunk) if item.deadline_s > now_s]
        buffer[: len(kept)] = buffer[kept]
        return [chunk[at] for at in kept]

    def _run(
        self, infer: Callable[[Pictures], Logits], chunk: list[_Waiting], pictures: Pictures, because: SentBecause
    ) -> None:
        try:
            started_s = self._clock()
            logits = infer(pictures)
            inference_ms = (self._clock() - started_s) * 1e3
            rankings = rank(logits, max(item.k for item in chunk))
        except Exception:
            logger.exception("a chunk of %d pictures failed", len(chunk))
            self._fail(chunk, InferenceFailed("the engine failed on this picture; the operator's log says why"))
            return
        self._on_batch(len(chunk), inference_ms, because)
        self._call(_answer, chunk, rankings, started_s, inference_ms)
        if tracing.on():
            self._trace(chunk, started_s, inference_ms)
        self._measure(chunk, inference_ms)

    def _trace(self, chunk: list[_Waiting], inferred_s: float, inference_ms: float) -> None:
        ended_s, size = inferred_s + inference_ms / 1e3, len(chunk)
        for item in chunk:
            if parent := item.traced:
                wait_ms, queue_ms = (item.started_s - item.since_s) * 1e3, (inferred_s - item.decoded_s) * 1e3
                about = {**tracing.about_picture(item.body), "queue_ms": wait_ms}
                tracing.record("decode", parent, self._clock, item.started_s, item.decoded_s, about)
                tracing.record("queue", parent, self._clock, item.decoded_s, inferred_s)
                about = {"batch_size": size, "queue_ms": queue_ms}
                tracing.record("engine", parent, self._clock, inferred_s, ended_s, about)

    def _measure(self, chunk: list[_Waiting], inference_ms: float) -> None:
        beside_s = (self._clock() - chunk[0].started_s - inference_ms / 1e3) / len(chunk)
        with self._tuning:
            self._beside_engine_s += 0.05 * (beside_s - self._beside_engine_s)
            self._tuner.observe(len(chunk), inference_ms)

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
