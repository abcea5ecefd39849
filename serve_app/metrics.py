"""What a replica counts, by name. The numbers leave through Ray's Prometheus port as `ray_image_serve_*`."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Protocol, TypeVar

from serve_app.types import GpuMemory, GpuTimes, SentBecause, Timing

T = TypeVar("T")
FLUSH_INTERVAL_S = 1.0
"""Ray itself exports every few seconds."""

STAGE_BUCKETS_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000]
GPU_BUCKETS_MS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]
BATCH_BUCKETS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


class Metrics(Protocol):
    """Where the pipeline and the classifiers report."""

    def answered(self, timing: Timing) -> None:
        """One picture was answered."""

    def refused(self, code: str) -> None:
        """One picture, or a request before its pictures were known, ended in the error `code`."""

    def batch(self, pictures: int, inference_ms: float, because: SentBecause) -> None:
        """The engine ran one batch."""

    def gpu(self, times: GpuTimes) -> None:
        """A GPU ran one batch."""

    def gpu_memory(self, memory: GpuMemory) -> None:
        """What a GPU's memory holds at present."""


class NoMetrics:
    """Counts nothing: for use outside a replica."""

    def answered(self, timing: Timing) -> None:
        pass

    def refused(self, code: str) -> None:
        pass

    def batch(self, pictures: int, inference_ms: float, because: SentBecause) -> None:
        pass

    def gpu(self, times: GpuTimes) -> None:
        pass

    def gpu_memory(self, memory: GpuMemory) -> None:
        pass


class RayMetrics:
    """Reports through `ray.serve.metrics`, which adds application, deployment and replica.

    `image_serve_pictures` (counter by outcome: `ok` or an error code), `image_serve_stage_ms` (histogram by stage:
    queue, preprocess, inference), `image_serve_batch_pictures` and `image_serve_batch_ms` (histograms per batch),
    `image_serve_batches` (counter by why a batch was sent: full, deadline, idle). With a GPU also `image_serve_gpu_ms`
    (histogram per batch by step: copy_in, run, copy_out), `image_serve_gpu_padding` (counter of pictures that were
    run for nothing) and `image_serve_gpu_memory_bytes` (gauge by kind: buffers, engine, free, total).
    What is reported is kept, and handed to Ray every `FLUSH_INTERVAL_S` by a thread: five calls into Ray per picture,
    each with cold caches, cost as much as all of HTTP's parsing.
    """

    def __init__(self) -> None:
        from ray.serve import metrics  # here: the rest of this module is used without Ray

        self._pictures = metrics.Counter(
            "image_serve_pictures", description="Pictures by outcome.", tag_keys=("outcome",)
        )
        self._stage_ms = metrics.Histogram(
            "image_serve_stage_ms",
            description="Milliseconds a picture spent in a stage.",
            boundaries=STAGE_BUCKETS_MS,
            tag_keys=("stage",),
        )
        self._batch_pictures = metrics.Histogram(
            "image_serve_batch_pictures", description="Pictures per batch.", boundaries=BATCH_BUCKETS
        )
        self._batch_ms = metrics.Histogram(
            "image_serve_batch_ms", description="Milliseconds per batch.", boundaries=STAGE_BUCKETS_MS
        )
        self._sent = metrics.Counter(
            "image_serve_batches", description="Batches by why they were sent.", tag_keys=("reason",)
        )
        self._gpu_ms = metrics.Histogram(
            "image_serve_gpu_ms",
            description="Milliseconds of a batch on the GPU, by step.",
            boundaries=GPU_BUCKETS_MS,
            tag_keys=("step",),
        )
        self._gpu_padding = metrics.Counter(
            "image_serve_gpu_padding", description="Pictures that batches were padded with."
        )
        self._gpu_memory = metrics.Gauge(
            "image_serve_gpu_memory_bytes",
            description="Bytes of the GPU's memory, by what holds them.",
            tag_keys=("kind",),
        )
        # Deques: filled by the event loop and by engine threads, emptied by the flushing one, all without a lock.
        self._timings: deque[Timing] = deque()
        self._refusals: deque[str] = deque()
        self._batches: deque[tuple[int, float, SentBecause]] = deque()
        self._gpu_times: deque[GpuTimes] = deque()
        threading.Thread(target=self._flush_forever, name="metrics", daemon=True).start()

    def answered(self, timing: Timing) -> None:
        self._timings.append(timing)

    def refused(self, code: str) -> None:
        self._refusals.append(code)

    def batch(self, pictures: int, inference_ms: float, because: SentBecause) -> None:
        self._batches.append((pictures, inference_ms, because))

    def gpu(self, times: GpuTimes) -> None:
        self._gpu_times.append(times)

    def gpu_memory(self, memory: GpuMemory) -> None:
        for kind in ("buffers", "engine", "free", "total"):
            self._gpu_memory.set(getattr(memory, kind), tags={"kind": kind})

    def _flush_forever(self) -> None:
        while True:
            time.sleep(FLUSH_INTERVAL_S)
            self.flush()

    def flush(self) -> None:
        """Hands everything reported so far to Ray."""
        outcomes = Counter(_drain(self._refusals))
        for timing in _drain(self._timings):
            outcomes["ok"] += 1
            for stage in ("queue", "preprocess", "inference"):
                self._stage_ms.observe(getattr(timing, stage), tags={"stage": stage})
        for outcome, count in outcomes.items():
            self._pictures.inc(count, tags={"outcome": outcome})
        reasons: Counter[str] = Counter()
        for pictures, inference_ms, because in _drain(self._batches):
            reasons[because] += 1
            self._batch_pictures.observe(pictures)
            self._batch_ms.observe(inference_ms)
        for reason, count in reasons.items():
            self._sent.inc(count, tags={"reason": reason})
        self._flush_gpu()

    def _flush_gpu(self) -> None:
        padding = 0
        for times in _drain(self._gpu_times):
            padding += times.batch_size - times.pictures
            for step in ("copy_in", "run", "copy_out"):
                self._gpu_ms.observe(getattr(times, f"{step}_ms"), tags={"step": step})
        if padding:
            self._gpu_padding.inc(padding)


def _drain(items: deque[T]) -> Iterator[T]:
    """What is in there now; what is added meanwhile stays for the next time."""
    return (items.popleft() for _ in range(len(items)))
