from __future__ import annotations

from typing import Any

import pytest

from serve_app import metrics
from serve_app.metrics import NoMetrics, RayMetrics
from serve_app.types import GpuMemory, GpuTimes


class Noted:
    """Takes the place of a counter, histogram or gauge of Ray, which needs a cluster to report to."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options
        self.told: list[tuple[float, str]] = []

    def _note(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert set(tags or {}) == set(self.options.get("tag_keys", ()))
        self.told.append((value, next(iter((tags or {}).values()), "")))

    observe = inc = set = _note


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> RayMetrics:
    from ray.serve import metrics as ray_metrics

    monkeypatch.setattr(metrics, "FLUSH_INTERVAL_S", 10**6)  # the test flushes
    for kind in ("Counter", "Histogram", "Gauge"):
        monkeypatch.setattr(ray_metrics, kind, Noted)
    return RayMetrics()


def told(metric: Any) -> list[tuple[float, str]]:
    assert isinstance(metric, Noted)
    return metric.told


def test_a_gpus_batches_are_told_by_step_and_padding(reported: RayMetrics) -> None:
    reported.gpu(GpuTimes(3, 4, copy_in_ms=0.5, run_ms=2.0, copy_out_ms=0.25))
    reported.gpu(GpuTimes(6, 8, copy_in_ms=0.75, run_ms=3.0, copy_out_ms=0.5))
    assert told(reported._gpu_ms) == []  # Ray is told later, by another thread
    reported.flush()
    steps = [(0.5, "copy_in"), (2.0, "run"), (0.25, "copy_out"), (0.75, "copy_in"), (3.0, "run"), (0.5, "copy_out")]
    assert told(reported._gpu_ms) == steps
    assert told(reported._gpu_padding) == [(3, "")]
    reported.gpu(GpuTimes(4, 4, 0.5, 2.0, 0.25))
    reported.flush()
    assert told(reported._gpu_padding) == [(3, "")]  # a counter takes no zero
    reported.flush()
    assert len(told(reported._gpu_ms)) == 9


def test_a_gpus_memory_is_told_by_what_holds_it(reported: RayMetrics) -> None:
    reported.gpu_memory(GpuMemory(buffers=1, engine=2, free=3, total=4))
    assert told(reported._gpu_memory) == [(1, "buffers"), (2, "engine"), (3, "free"), (4, "total")]


def test_outside_a_replica_nothing_is_counted() -> None:
    quiet = NoMetrics()
    quiet.gpu(GpuTimes(1, 1, 0.1, 0.1, 0.1))
    quiet.gpu_memory(GpuMemory(1, 2, 3, 4))
