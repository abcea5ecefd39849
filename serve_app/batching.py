"""Form at dispatch: pictures gather while chunks are in flight, and leave together when a place is free.

A call per picture costs more than the picture. There is no timer: a lone picture leaves at once, and under load
chunks grow by themselves to what arrived during the last one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve_app import tracing
from serve_app.errors import DeadlineExceeded, InferenceFailed, NotReady, ServeError
from serve_app.postprocess import rank
from serve_app.queueing import AgeingQueue
from serve_app.recent import RecentlySeen
from serve_app.stages import refuse
from serve_app.types import Chunk, ChunkScores, Picture, Pictures, Priority, Ranking

logger = logging.getLogger(__name__)
SEEN_S = 10.0
"""Senders and classifiers that were not heard of for so long are gone."""
Clock = Callable[[], float]


class Classifier(Protocol):
    """Where chunks go: an engine in this process, or replicas behind a handle. Callers do not know which."""

    async def classify(self, chunk: Chunk) -> ChunkScores:
        """n pictures -> n rows of logits. The pictures' memory is the caller's again once this returns.

        Raises:
            ServeError: the whole chunk failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Gathered:
    """One picture's likeliest classes, how long it waited for its chunk, the engine's time and version."""

    ranking: Ranking
    queue_ms: float
    inference_ms: float
    version: int = 1


@dataclass(slots=True)
class _Waiting:
    picture: Picture
    k: int
    deadline_s: float
    since_s: float
    future: asyncio.Future[Gathered]
    traced: tracing.Parent | None


class Gatherer:
    """Sends gathered pictures to a classifier in chunks.

    Lives on one event loop. Any caller may be cancelled at any time: its picture is skipped if it has not left
    yet, else its row is thrown away; the other pictures of the chunk never notice.

    Args:
        classifier: where chunks go.
        shape: height, width, channels of every picture.
        max_chunk: most pictures in one chunk; fewer when the classifier says so.
        max_in_flight: most chunks at once at each replica of the classifier, from all senders together. How many of
            both there are shows in the answers; before the first, one of each is assumed.
        ageing_s: see `queueing.AgeingQueue`.
        name: of this sender, for the classifier.
        clock: monotonic seconds, the same that deadlines are given in.
    """

    def __init__(
        self,
        classifier: Classifier,
        shape: tuple[int, int, int],
        *,
        max_chunk: int,
        max_in_flight: int,
        ageing_s: float = 0.0,
        name: str = "",
        clock: Clock = time.monotonic,
    ) -> None:
        self.max_chunk = max_chunk
        self._classifier = classifier
        self._largest_chunk = self._buffer_size = max_chunk
        self._per_replica = self.most_in_flight = max_in_flight
        self._replicas = RecentlySeen(SEEN_S, clock)
        self._name = name
        self._clock = clock
        self._offered = 0
        self._waiting: AgeingQueue[_Waiting] = AgeingQueue(ageing_s, clock)
        # One buffer per chunk in flight, allocated when as many are for the first time, and used again from then on.
        self._shape = (max_chunk, *shape)
        self._buffers: list[Pictures] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Pictures that have not left yet, those of cancelled callers among them until they are skipped."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Chunks at the classifier."""
        return len(self._tasks)

    def bound(self, max_chunk: int) -> None:
        """No larger chunks from now on; never above what the buffers were made for."""
        self._largest_chunk = min(max_chunk, self._buffer_size)
        self.max_chunk = self._largest_chunk

    def offered(self, pictures: int) -> None:
        """Pictures that came to this sender, whatever became of them: the classifier is told with the next chunk."""
        self._offered += pictures

    async def submit(self, picture: Picture, k: int, deadline_s: float, priority: Priority = "interactive") -> Gathered:
        """Waits for the picture's turn and its answer.

        Args:
            picture: uint8 of the gatherer's shape.
            k: classes wanted; the ranking may have more.
            deadline_s: on the gatherer's clock; a picture that is late when its chunk is formed, or when the
                classifier would run it, does not run.
            priority: see `queueing`.

        Raises:
            DeadlineExceeded: it was late.
            ServeError: its chunk failed.
        """
        if self._closed:
            raise NotReady("the service is shutting down; try again")
        future: asyncio.Future[Gathered] = asyncio.get_running_loop().create_future()
        self._waiting.put(_Waiting(picture, k, deadline_s, self._clock(), future, tracing.here()), priority)
        self._dispatch()
        return await future

    async def close(self) -> None:
        """Takes no more pictures, and returns when all that were taken are answered."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _dispatch(self) -> None:
        while len(self._tasks) < self.most_in_flight and (chunk := self._next_chunk()):
            buffer = self._buffers.pop() if self._buffers else np.empty(self._shape, np.uint8)
            traced = [item.traced for item in chunk if item.traced] if tracing.on() else []
            # In a context of its own: Serve keeps the current request in one, and would cancel a call made in it
            # together with that request, though the chunk carries other clients' pictures too.
            run = self._run(chunk, buffer, traced)
            task = asyncio.get_running_loop().create_task(run, context=tracing.context_below(traced))
            self._tasks.add(task)
            task.add_done_callback(self._chunk_done)

    def _next_chunk(self) -> list[_Waiting]:
        chunk: list[_Waiting] = []
        now_s = self._clock()
        while self._waiting and len(chunk) < self.max_chunk:
            item = self._waiting.pop()
            if item.future.done():  # its caller was cancelled
                continue
            if item.deadline_s <= now_s:
                item.future.set_exception(DeadlineExceeded("the time of this request was up before its turn came"))
                continue
            chunk.append(item)
        return chunk

    async def _run(self, chunk: list[_Waiting], buffer: Pictures, traced: list[tracing.Parent]) -> None:
        try:
            started_s = self._clock()
            packed = self._packed(chunk, buffer, started_s, tuple(one.traceparent for one in traced))
            scores = await self._classifier.classify(packed)
            self._adapt(scores)
            self._answer(chunk, scores, started_s)
        except ServeError as error:
            refuse((item.future for item in chunk), error)
        except asyncio.CancelledError:
            refuse((item.future for item in chunk), NotReady("the service is shutting down; try again"))
            raise
        except Exception:
            logger.exception("a chunk of %d pictures failed", len(chunk))
            refuse(
                (item.future for item in chunk),
                InferenceFailed("the engine failed on this picture; the operator's log says why"),
            )
        finally:
            self._buffers.append(buffer)

    def _packed(self, chunk: list[_Waiting], buffer: Pictures, now_s: float, traceparents: tuple[str, ...]) -> Chunk:
        pictures = buffer[: len(chunk)]
        for slot, item in zip(pictures, chunk, strict=True):
            slot[:] = item.picture
        # Nothing waits unless all places in flight are taken, so each chunk there stands for its share of what does.
        behind, offered, self._offered = len(self._waiting) / self.most_in_flight, self._offered, 0
        remaining_s = np.array([item.deadline_s - now_s for item in chunk], np.float32)
        return Chunk(pictures, remaining_s, behind, offered, self._name, traceparents)

    def _adapt(self, scores: ChunkScores) -> None:
        """To what the classifier takes at once, and to how many of its replicas there are for each sender."""
        if scores.max_batch_size is not None:
            self.max_chunk = min(scores.max_batch_size, self._largest_chunk)
        replicas = self._replicas.saw(scores.replica)
        most = math.ceil(self._per_replica * replicas / scores.senders)
        if most != self.most_in_flight:
            self.most_in_flight = most
            logger.info("%d classifier(s) for %d sender(s): up to %d chunk(s) at once", replicas, scores.senders, most)

    def _answer(self, chunk: list[_Waiting], scores: ChunkScores, started_s: float) -> None:
        if scores.late is not None:
            late = [item.future for item, is_late in zip(chunk, scores.late, strict=True) if is_late]
            refuse(late, DeadlineExceeded("the time of this request was up before it could be classified"))
        rankings = rank(scores.logits, max(item.k for item in chunk))
        for ranking, item in zip(rankings, chunk, strict=True):
            if not item.future.done():
                queue_ms = (started_s - item.since_s) * 1e3
                if item.traced:
                    tracing.record("queue", item.traced, self._clock, item.since_s, started_s)
                item.future.set_result(Gathered(ranking, queue_ms, scores.inference_ms, scores.version))

    def _chunk_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._dispatch()
