"""What a replica counts, by name. The numbers leave through Ray's Prometheus port as `ray_image_serve_*`."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from serve_app.metric_names import REPLICA_METRICS, MetricName
from serve_app.tally import Tally
from serve_app.types import GpuMemory, GpuTimes, SentBecause, Timing

T = TypeVar("T")
FLUSH_INTERVAL_S = 1.0
"""Ray itself exports every few seconds."""


class Metrics(Protocol):
    """Where the pipeline and the classifiers of one model report."""

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

    def version(self, version: int) -> None:
        """The engine's version that serves from now on."""

    def version_refused(self) -> None:
        """A version of the engine was not taken in."""


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

    def version(self, version: int) -> None:
        pass

    def version_refused(self) -> None:
        pass


class RayMetrics:
    """Reports through `ray.serve.metrics`, which adds application, deployment and replica; see `metric_names`.

    What is reported is kept, and handed to Ray every `FLUSH_INTERVAL_S` by a thread: five calls into Ray per picture,
    each with cold caches, cost as much as all of HTTP's parsing.
    """

    def __init__(self) -> None:
        self._ray = {metric.name: _ray_metric(metric) for metric in REPLICA_METRICS}
        self._models: dict[str, ModelMetrics] = {}
        threading.Thread(target=self._flush_forever, name="metrics", daemon=True).start()

    def of(self, model: str) -> ModelMetrics:
        """Where one model reports, by its public name."""
        if model not in self._models:
            self._models[model] = ModelMetrics(model, self._ray)
        return self._models[model]

    def _flush_forever(self) -> None:
        while True:
            time.sleep(FLUSH_INTERVAL_S)
            self.flush()

    def flush(self) -> None:
        """Hands everything reported so far to Ray."""
        for model in list(self._models.values()):
            model.flush()


class ModelMetrics:
    """Satisfies `Metrics` for one model, and counts into a tally of its own besides.

    Args:
        model: public name, the value of the tag `model`.
        ray: Ray's metrics by name.
    """

    def __init__(self, model: str, ray: dict[str, Any]) -> None:
        self.tally = Tally()
        self._model = model
        self._ray = ray
        # Deques: filled by the event loop and by engine threads, emptied by the flushing one, all without a lock.
        self._timings: deque[Timing] = deque()
        self._refusals: deque[str] = deque()
        self._batches: deque[tuple[int, float, SentBecause]] = deque()
        self._gpu_times: deque[GpuTimes] = deque()
        # Ray forgets a gauge that is not set again within a few of its reports.
        self._gauges: dict[tuple[str, str], float] = {}

    def answered(self, timing: Timing) -> None:
        self._timings.append(timing)
        self.tally.answered(timing)

    def refused(self, code: str) -> None:
        self._refusals.append(code)
        self.tally.failed(code)

    def batch(self, pictures: int, inference_ms: float, because: SentBecause) -> None:
        self._batches.append((pictures, inference_ms, because))
        self.tally.batch(pictures, inference_ms, because)

    def gpu(self, times: GpuTimes) -> None:
        self._gpu_times.append(times)

    def gpu_memory(self, memory: GpuMemory) -> None:
        for kind in ("buffers", "engine", "free", "total"):
            self._gauges["image_serve_gpu_memory_bytes", kind] = getattr(memory, kind)

    def version(self, version: int) -> None:
        self._gauges["image_serve_model_version", ""] = version

    def version_refused(self) -> None:
        self._tell("image_serve_version_refused", "inc", 1)

    def flush(self) -> None:
        """See `RayMetrics.flush`."""
        outcomes = Counter(_drain(self._refusals))
        for timing in _drain(self._timings):
            outcomes["ok"] += 1
            for stage in ("queue", "preprocess", "inference"):
                self._tell("image_serve_stage_ms", "observe", getattr(timing, stage), stage=stage)
            self._tell("image_serve_request_ms", "observe", timing.queue + timing.preprocess + timing.inference)
        for outcome, count in outcomes.items():
            self._tell("image_serve_pictures", "inc", count, outcome=outcome)
        reasons: Counter[str] = Counter()
        for pictures, inference_ms, because in _drain(self._batches):
            reasons[because] += 1
            self._tell("image_serve_batch_pictures", "observe", pictures)
            self._tell("image_serve_batch_ms", "observe", inference_ms)
        for reason, count in reasons.items():
            self._tell("image_serve_batches", "inc", count, reason=reason)
        for (name, kind), value in list(self._gauges.items()):
            self._tell(name, "set", value, **({"kind": kind} if kind else {}))
        self._flush_gpu()

    def _flush_gpu(self) -> None:
        padding = 0
        for times in _drain(self._gpu_times):
            padding += times.batch_size - times.pictures
            for step in ("copy_in", "run", "copy_out"):
                self._tell("image_serve_gpu_ms", "observe", getattr(times, f"{step}_ms"), step=step)
        if padding:
            self._tell("image_serve_gpu_padding", "inc", padding)

    def _tell(self, name: str, action: str, value: float, **tags: str) -> None:
        getattr(self._ray[name], action)(value, tags={"model": self._model, **tags})


def _ray_metric(metric: MetricName) -> Any:
    from ray.serve import metrics  # here: the rest of this module is used without Ray

    make: Callable[..., Any] = {"counter": metrics.Counter, "gauge": metrics.Gauge, "histogram": metrics.Histogram}[
        metric.kind
    ]
    buckets = {"boundaries": list(metric.buckets)} if metric.buckets else {}
    return make(metric.name, description=metric.description, tag_keys=metric.tags, **buckets)


def _drain(items: deque[T]) -> Iterator[T]:
    """What is in there now; what is added meanwhile stays for the next time."""
    return (items.popleft() for _ in range(len(items)))
