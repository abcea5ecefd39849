"""Classifier side of the split placement: chunks of several senders become one batch of the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve_app import tracing
from serve_app.autoscaling.signals import BACKLOG, KNEE, OFFERED, RATE
from serve_app.batching import SEEN_S
from serve_app.engines import Engine, EngineThread
from serve_app.metrics import Metrics
from serve_app.recent import RecentlySeen
from serve_app.runtime import OverlappingRuntime
from serve_app.settings import BatchingSettings
from serve_app.tuning import Tuner
from serve_app.types import Chunk, ChunkScores, Logits, Pictures, SentBecause

Clock = Callable[[], float]
CHECK_TIMEOUT_S = 10.0
"""A health check waits for its turn behind the batches that run."""


@dataclass(slots=True, eq=False)
class Arrived:
    """A chunk, and when it came by this process's clock."""

    chunk: Chunk
    since_s: float

    def __len__(self) -> int:
        return len(self.chunk.pictures)


@dataclass(slots=True, eq=False)
class _Opened:
    """An engine, what belongs to it, and how many batches are in it."""

    engine: Engine
    tuner: Tuner
    thread: EngineThread
    buffers: list[Pictures]
    batches: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self.batches += 1
        try:
            yield
        finally:
            self.batches -= 1
            self.left.set()

    async def unused(self) -> None:
        """Waits for the batches that are in it."""
        while self.batches:
            self.left.clear()
            await self.left.wait()

    def close(self) -> None:
        self.buffers.clear()  # they may be the engine's
        self.thread.close()


def _opened(engine: Engine, batching: BatchingSettings) -> _Opened:
    spec, thread = engine.manifest.input, EngineThread(engine.runtimes[0])
    buffers = thread.buffers(engine.max_batch_size, (spec.height, spec.width, 3))
    return _Opened(engine, Tuner(engine.latency, batching), thread, buffers)


class Merger:
    """Runs merged chunks through one engine, without the pictures that are late by then.

    Lives on one event loop; as many batches run at once as the engine takes (`concurrent_batches`).

    Args:
        engine: warmed up to its `max_batch_size`.
        batching: settings.
        metrics: told of each batch.
        name: of this replica, for its senders.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: Engine,
        batching: BatchingSettings,
        metrics: Metrics,
        *,
        name: str = "",
        clock: Clock = time.monotonic,
    ) -> None:
        self._opened = _opened(engine, batching)
        self.concurrent_batches = self._opened.thread.callers
        self._metrics = metrics
        self._clock = clock
        self._held: set[Arrived] = set()
        self._name = name
        self._senders = RecentlySeen(SEEN_S, clock)
        self._sender_count = 1
        self._offered = 0

    @property
    def engine(self) -> Engine:
        return self._opened.engine

    @property
    def tuner(self) -> Tuner:
        return self._opened.tuner

    async def replace(self, engine: Engine, batching: BatchingSettings) -> None:
        """Runs batches on `engine` from now on; returns when those before are done and their engine is closed."""
        before, self._opened = self._opened, _opened(engine, batching)
        await before.unused()
        await asyncio.to_thread(before.close)

    def arrived(self, chunk: Chunk) -> Arrived:
        """Counts a chunk in, until `left`."""
        arrived = Arrived(chunk, self._clock())
        self._held.add(arrived)
        self._offered += chunk.offered_pictures
        self._sender_count = self._senders.saw(chunk.sender)
        return arrived

    def left(self, arrived: Arrived) -> None:
        """Its caller has its answer, or went away."""
        self._held.discard(arrived)

    def counted_size(self, chunks: Sequence[Arrived]) -> int:
        """Pictures in `chunks`, where one that is larger than the present bound counts as just as large: it was sent
        before the bound was lowered, and is to run alone, not to be refused."""
        return sum(min(len(chunk), self.tuner.plan.max_batch_size) for chunk in chunks)

    def signals(self) -> dict[str, float]:
        """What this replica reports for autoscaling: the pictures it has, and those that wait for it at the senders."""
        return {
            BACKLOG: sum(len(one) + one.chunk.behind_pictures for one in self._held),
            OFFERED: self._offered,
            RATE: self.tuner.pictures_per_s(),
            KNEE: self.tuner.plan.knee,
        }

    async def run(self, batch: Sequence[Arrived]) -> list[ChunkScores]:
        """One engine run for all of them (several if they are more than the engine takes).

        Returns:
            The scores of each chunk, in order.
        """
        opened, now_s = self._opened, self._clock()
        lengths = [len(one) for one in batch]
        late = np.concatenate([one.chunk.remaining_s <= now_s - one.since_s for one in batch])
        with opened.in_use():
            logits, inference_ms = await _infer(opened, [one.chunk.pictures for one in batch], late)
        if tracing.on():
            self._trace(batch, inference_ms, opened.engine.manifest.version)
        if count := len(late) - int(late.sum()):
            self._metrics.batch(count, inference_ms, self._because(batch, now_s))
            opened.tuner.observe(count, inference_ms)
        ends = np.cumsum(lengths)[:-1]
        return [
            ChunkScores(
                rows,
                inference_ms,
                len(late),
                late=lost if lost.any() else None,
                max_batch_size=self.tuner.plan.max_batch_size,
                replica=self._name,
                senders=self._sender_count,
                version=opened.engine.manifest.version,
            )
            for rows, lost in zip(np.split(logits, ends), np.split(late, ends), strict=True)
        ]

    def _trace(self, batch: Sequence[Arrived], inference_ms: float, version: int) -> None:
        ended_s, pictures = self._clock(), sum(len(one) for one in batch)
        began_s = ended_s - inference_ms / 1e3
        for one in batch:
            about = {"batch_size": pictures, "queue_ms": (began_s - one.since_s) * 1e3, "version": version}
            for traceparent in one.chunk.traceparents:
                if parent := tracing.parent_of(traceparent):
                    tracing.record("engine", parent, self._clock, began_s, ended_s, about)

    def _because(self, batch: Sequence[Arrived], now_s: float) -> SentBecause:
        """Serve's batching does not say; this is what its rule must have been."""
        plan = self.tuner.plan
        if self.counted_size(batch) >= plan.max_batch_size:
            return "full"
        waited_s = now_s - min(one.since_s for one in batch)
        return "deadline" if 0 < plan.wait_s <= waited_s else "idle"

    async def check(self) -> None:
        """See `check_engine`."""
        await check_engine(self._opened.thread, self.engine, self._metrics)

    def close(self) -> None:
        """Waits for running batches, then frees the engine."""
        self._opened.close()


async def _infer(opened: _Opened, chunks: Sequence[Pictures], late: NDArray[np.bool_]) -> tuple[Logits, float]:
    """Logits of all pictures, zeros for the late ones, and milliseconds of the engine."""
    size, buffers = opened.engine.max_batch_size, opened.buffers
    if len(late) <= size and not late.any() and buffers:  # nearly always
        buffer = buffers.pop()
        try:
            return await opened.thread.run(np.concatenate(chunks, out=buffer[: len(late)]))
        finally:
            buffers.append(buffer)
    wanted = np.concatenate(chunks)[~late]
    logits = np.zeros((len(late), opened.engine.manifest.num_classes), np.float32)
    rows, total_ms = [], 0.0
    for start in range(0, len(wanted), size):
        part, inference_ms = await opened.thread.run(wanted[start : start + size])
        rows.append(part)
        total_ms += inference_ms
    if rows:
        logits[~late] = np.concatenate(rows)
    return logits, total_ms


async def check_engine(thread: EngineThread, engine: Engine, metrics: Metrics) -> None:
    """Runs the engine behind `thread` on one picture.

    Raises:
        InferenceFailed: it fails, or does not answer in time; its cause is `GpuFailed` where the GPU failed.
        GpuFailed: the GPU does not say how much memory it has.
    """
    spec, runtime = engine.manifest.input, engine.runtimes[0]
    await thread.check(np.zeros((1, spec.height, spec.width, 3), np.uint8), CHECK_TIMEOUT_S)
    if isinstance(runtime, OverlappingRuntime):
        metrics.gpu_memory(await asyncio.to_thread(runtime.memory))
