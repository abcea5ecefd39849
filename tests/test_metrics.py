from __future__ import annotations

from typing import Any

import pytest

from serve_app import metrics
from serve_app.metric_names import CONTROLLER_METRICS, REPLICA_METRICS
from serve_app.metrics import NoMetrics, RayMetrics
from serve_app.types import GpuMemory, GpuTimes, Timing

TOLD: dict[str, list[tuple[float, dict[str, str]]]] = {}


class Noted:
    """Takes the place of a counter, histogram or gauge of Ray, which needs a cluster to report to."""

    def __init__(self, name: str, **options: Any) -> None:
        assert options["description"]
        self.name, self.tags = name, options["tag_keys"]
        TOLD[name] = []

    def _note(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tags)
        TOLD[self.name].append((value, tags))


class Counter(Noted):
    inc = Noted._note


class Gauge(Noted):
    set = Noted._note


class Histogram(Noted):
    def __init__(self, name: str, *, boundaries: list[float], **options: Any) -> None:
        assert boundaries == sorted(boundaries)
        super().__init__(name, **options)

    observe = Noted._note


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> RayMetrics:
    from ray.serve import metrics as ray_metrics

    monkeypatch.setattr(metrics, "FLUSH_INTERVAL_S", 10**6)  # the test flushes
    for kind in (Counter, Histogram, Gauge):
        monkeypatch.setattr(ray_metrics, kind.__name__, kind)
    TOLD.clear()
    return RayMetrics()


def told(name: str, tag: str = "model") -> list[tuple[float, str]]:
    return [(value, tags[tag]) for value, tags in TOLD[f"image_serve_{name}"]]


def test_an_answer_is_told_by_stage_and_as_a_whole(reported: RayMetrics) -> None:
    model = reported.of("cats")
    model.answered(Timing(1.0, 2.0, 4.0))
    model.answered(Timing(3.0, 5.0, 7.0))
    model.refused("overloaded")
    assert told("stage_ms") == []  # Ray is told later, by another thread
    reported.flush()
    assert told("request_ms") == [(7.0, "cats"), (15.0, "cats")]
    assert told("stage_ms", "stage")[:3] == [(1.0, "queue"), (2.0, "preprocess"), (4.0, "inference")]
    assert sorted(told("pictures", "outcome")) == [(1, "overloaded"), (2, "ok")]
    totals = model.tally.totals()
    assert (totals.answered, totals.failed) == (2, {"overloaded": 1})


def test_models_are_told_apart(reported: RayMetrics) -> None:
    assert reported.of("cats") is reported.of("cats")
    for name, pictures in (("cats", 2), ("dogs", 3)):
        reported.of(name).batch(pictures, 5.0, "full")
    reported.flush()
    assert told("batch_pictures") == [(2, "cats"), (3, "dogs")]
    assert told("batches", "reason") == [(1, "full"), (1, "full")]
    assert reported.of("dogs").tally.totals().batches == {3: (1, 5.0)}


def test_versions_are_told_again_and_again_and_refusals_once(reported: RayMetrics) -> None:
    reported.of("cats").version(1)
    reported.of("cats").version(2)
    reported.of("cats").version_refused()
    for _ in range(2):  # Ray forgets a gauge that is not set again
        reported.flush()
    assert told("model_version") == [(2, "cats"), (2, "cats")]
    assert told("version_refused") == [(1, "cats")]


def test_a_gpus_batches_are_told_by_step_and_padding(reported: RayMetrics) -> None:
    model = reported.of("cats")
    model.gpu(GpuTimes(3, 4, copy_in_ms=0.5, run_ms=2.0, copy_out_ms=0.25))
    model.gpu(GpuTimes(6, 8, copy_in_ms=0.75, run_ms=3.0, copy_out_ms=0.5))
    assert told("gpu_ms") == []
    reported.flush()
    steps = [(0.5, "copy_in"), (2.0, "run"), (0.25, "copy_out"), (0.75, "copy_in"), (3.0, "run"), (0.5, "copy_out")]
    assert told("gpu_ms", "step") == steps
    assert told("gpu_padding") == [(3, "cats")]
    model.gpu(GpuTimes(4, 4, 0.5, 2.0, 0.25))
    reported.flush()
    assert told("gpu_padding") == [(3, "cats")]  # a counter takes no zero
    reported.flush()
    assert len(told("gpu_ms")) == 9


def test_a_gpus_memory_is_told_by_what_holds_it(reported: RayMetrics) -> None:
    reported.of("cats").gpu_memory(GpuMemory(buffers=1, engine=2, free=3, total=4))
    reported.flush()
    assert told("gpu_memory_bytes", "kind") == [(1, "buffers"), (2, "engine"), (3, "free"), (4, "total")]


def test_every_metric_is_made_once_and_named_with_its_unit() -> None:
    names = [metric.name for metric in (*REPLICA_METRICS, *CONTROLLER_METRICS)]
    assert len(set(names)) == len(names)
    for metric in (*REPLICA_METRICS, *CONTROLLER_METRICS):
        assert metric.name.startswith("image_serve_")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert not metric.name.endswith("_total")  # Ray adds it


def test_outside_a_replica_nothing_is_counted() -> None:
    quiet = NoMetrics()
    quiet.gpu(GpuTimes(1, 1, 0.1, 0.1, 0.1))
    quiet.gpu_memory(GpuMemory(1, 2, 3, 4))
    quiet.version(1)
    quiet.version_refused()
