"""What replicas count for figures that are asked for over HTTP: totals since they started, and the last seconds.

Ray's metrics leave every few seconds for a Prometheus that may not be there; these are in the process, and each replica
is asked for its own.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.errors import Fault
from serve_app.types import SentBecause, Timing

WINDOW_S = 10
"""Rates and percentiles are of so many last whole seconds."""
_STEP = 1.1
"""Latencies are kept in classes, each a tenth longer than the one before: percentiles are within 5 %."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """Of one model, since the replicas that counted started.

    Attributes:
        answered: pictures.
        failed: error code -> pictures, or requests whose pictures were not known yet.
        queue_ms, preprocess_ms, inference_ms: sums over the answered pictures.
        batches: batch size -> how many, and their milliseconds in the engine together.
        last_answer_unix_ms: 0 where there was none.
    """

    answered: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    queue_ms: float = 0.0
    preprocess_ms: float = 0.0
    inference_ms: float = 0.0
    batches: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    last_answer_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class Recent:
    """Of one model, in the last `WINDOW_S` seconds.

    Attributes:
        failed: as `ModelTotals.failed`.
        latency_classes: exponent of `_STEP` -> pictures whose answer took that many milliseconds or less.
        stage_ms: sums over the answered pictures: queue, preprocess, inference.
        batches: batch size -> how many.
    """

    answered: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    latency_classes: Mapping[int, int] = field(default_factory=dict)
    stage_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    batches: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What one replica says of one model.

    Attributes:
        version: of the engine that it serves; 0 where it only sends pictures to one.
        problem: why a newer version was not taken in, "" where none was refused.
    """

    totals: ModelTotals
    recent: Recent
    version: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What one replica says of itself: its deployment, its pictures that wait or are in work, and its models."""

    deployment: str
    backlog_pictures: float
    models: Mapping[str, ModelReport]


@dataclass(frozen=True, slots=True)
class Replicas:
    """Of one deployment: there or on their way, and serving."""

    desired: int
    running: int


@dataclass(slots=True)
class _Second:
    at_s: int
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    latency: Counter[int] = field(default_factory=Counter)
    stage_ms: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    batches: Counter[int] = field(default_factory=Counter)


class Tally:
    """Counts for one model in one process. Called by the event loop and by engine threads: each field has one writer.

    Args:
        clock: monotonic seconds.
        wall_clock: seconds since 1970.
    """

    def __init__(self, clock: Clock = time.monotonic, wall_clock: Clock = time.time) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._seconds = [_Second(-1) for _ in range(WINDOW_S + 2)]  # one is filled, one may just be overwritten
        self._answered = 0
        self._failed: Counter[str] = Counter()
        self._stage_ms = [0.0, 0.0, 0.0]
        self._batches: dict[int, tuple[int, float]] = {}
        self._last_answer_s = 0.0

    def answered(self, timing: Timing) -> None:
        """One picture was answered."""
        second = self._second()
        stages = (timing.queue, timing.preprocess, timing.inference)
        second.answered += 1
        second.latency[_class_of(sum(stages))] += 1
        self._answered += 1
        for place, stage_ms in enumerate(stages):
            second.stage_ms[place] += stage_ms
            self._stage_ms[place] += stage_ms
        self._last_answer_s = self._wall_clock()

    def failed(self, code: str) -> None:
        """One picture, or a request before its pictures were known, ended in the error `code`."""
        self._second().failed[code] += 1
        self._failed[code] += 1

    def batch(self, pictures: int, inference_ms: float, because: SentBecause) -> None:
        """The engine ran one batch."""
        self._second().batches[pictures] += 1
        count, total_ms = self._batches.get(pictures, (0, 0.0))
        self._batches[pictures] = (count + 1, total_ms + inference_ms)

    def totals(self) -> ModelTotals:
        """Since the start."""
        return ModelTotals(
            self._answered,
            dict(self._failed),
            *_triple(self._stage_ms),
            dict(self._batches),
            round(self._last_answer_s * 1e3),
        )

    def recent(self) -> Recent:
        """Of the last `WINDOW_S` whole seconds."""
        now_s = int(self._clock())
        return merged_recent(
            Recent(one.answered, dict(one.failed), dict(one.latency), _triple(one.stage_ms), dict(one.batches))
            for one in self._seconds
            if now_s - WINDOW_S <= one.at_s < now_s
        )

    def _second(self) -> _Second:
        now_s = int(self._clock())
        place = now_s % len(self._seconds)
        if self._seconds[place].at_s != now_s:
            self._seconds[place] = _Second(now_s)
        return self._seconds[place]


def merged_totals(parts: Iterable[ModelTotals]) -> ModelTotals:
    """Of several replicas together."""
    parts = list(parts)
    batches: dict[int, tuple[int, float]] = {}
    for part in parts:
        for size, (count, total_ms) in part.batches.items():
            before, before_ms = batches.get(size, (0, 0.0))
            batches[size] = (before + count, before_ms + total_ms)
    return ModelTotals(
        sum(part.answered for part in parts),
        _summed(part.failed for part in parts),
        sum(part.queue_ms for part in parts),
        sum(part.preprocess_ms for part in parts),
        sum(part.inference_ms for part in parts),
        batches,
        max((part.last_answer_unix_ms for part in parts), default=0),
    )


def merged_recent(parts: Iterable[Recent]) -> Recent:
    """Of several replicas, or seconds, together."""
    parts = list(parts)
    return Recent(
        sum(part.answered for part in parts),
        _summed(part.failed for part in parts),
        _summed(part.latency_classes for part in parts),
        _triple([sum(part.stage_ms[place] for part in parts) for place in range(3)]),
        _summed(part.batches for part in parts),
    )


def totals_of(reports: Iterable[ReplicaReport]) -> dict[str, ModelTotals]:
    """Of each model, all replicas together."""
    return {name: merged_totals(one.totals for one in parts) for name, parts in _by_model(reports).items()}


def live_view(
    reports: Iterable[ReplicaReport], replicas: Mapping[str, Replicas], fault_of: Mapping[str, Fault], unix_s: float
) -> dict[str, Any]:
    """JSON-ready: what the service does just now, for people who watch it.

    Args:
        reports: of the replicas that answered.
        replicas: of each deployment, in the order in which they are shown.
        fault_of: each error code's, see `errors.fault_of_codes`.
        unix_s: now.
    """
    reports = list(reports)
    return {
        "unix_s": round(unix_s, 3),
        "window_s": WINDOW_S,
        "replicas_reporting": len(reports),
        "models": {name: _described_model(parts, fault_of) for name, parts in _by_model(reports).items()},
        "stages": [
            {
                "deployment": name,
                "backlog_pictures": round(sum(one.backlog_pictures for one in reports if one.deployment == name), 1),
                "replicas": {"desired": count.desired, "running": count.running},
            }
            for name, count in replicas.items()
        ],
    }


def _by_model(reports: Iterable[ReplicaReport]) -> dict[str, list[ModelReport]]:
    models: dict[str, list[ModelReport]] = {}
    for report in reports:
        for name, model in report.models.items():
            models.setdefault(name, []).append(model)
    return models


def _described_model(parts: list[ModelReport], fault_of: Mapping[str, Fault]) -> dict[str, Any]:
    versions = Counter(str(part.version) for part in parts if part.version)
    problems = sorted({part.problem for part in parts if part.problem})
    return described(merged_recent(part.recent for part in parts), fault_of) | {
        "versions": dict(sorted(versions.items())),
        "refused_version": problems[0] if problems else None,
    }


def described(recent: Recent, fault_of: Mapping[str, Fault]) -> dict[str, Any]:
    """JSON-ready rates, percentiles and means.

    Args:
        fault_of: each error code's; what is not in it was failed by the service.
    """
    kinds: Counter[str] = Counter()
    for code, count in recent.failed.items():
        kinds[fault_of.get(code, "failed")] += count
    stages = zip(("queue", "preprocess", "inference"), recent.stage_ms, strict=True)
    batches = sum(recent.batches.values())
    return {
        "pictures_per_s": round(recent.answered / WINDOW_S, 2),
        **{f"{kind}_per_s": round(kinds[kind] / WINDOW_S, 2) for kind in ("shed", "rejected", "failed")},
        "latency_ms": {
            name: round(percentile_ms(recent.latency_classes, share), 1)
            for name, share in (("p50", 0.5), ("p99", 0.99))
        }
        if recent.answered
        else None,
        "stages_ms": {name: round(total_ms / recent.answered, 2) for name, total_ms in stages}
        if recent.answered
        else None,
        "batch_pictures": {
            "mean": round(sum(size * count for size, count in recent.batches.items()) / batches, 2),
            "sizes": {str(size): count for size, count in sorted(recent.batches.items())},
        }
        if batches
        else None,
    }


def percentile_ms(classes: Mapping[int, int], share: float) -> float:
    """The middle of the class in which the `share` (0..1) of the pictures is reached; there must be a picture."""
    wanted = share * sum(classes.values())
    seen = 0
    for exponent in sorted(classes):
        seen += classes[exponent]
        if seen >= wanted:
            return float(_STEP ** (exponent - 0.5))
    raise ValueError("no picture was counted")


def _class_of(milliseconds: float) -> int:
    return math.ceil(math.log(max(milliseconds, 0.01), _STEP))


def _summed(parts: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def _triple(values: list[float]) -> tuple[float, float, float]:
    queue_ms, preprocess_ms, inference_ms = values
    return queue_ms, preprocess_ms, inference_ms
