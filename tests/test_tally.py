from __future__ import annotations

import numpy as np
import pytest

from serve_app.errors import fault_of_codes
from serve_app.tally import (
    WINDOW_S,
    ModelReport,
    ModelTotals,
    ReplicaReport,
    Replicas,
    Tally,
    live_view,
    merged_recent,
    merged_totals,
    percentile_ms,
    totals_of,
)
from serve_app.types import Timing
from tests.fakes import FakeClock

FAULTS = fault_of_codes()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(100.0)


@pytest.fixture
def tally(clock: FakeClock) -> Tally:
    return Tally(clock, wall_clock=lambda: 1700.0)


def test_totals_are_since_the_start_and_recent_is_of_the_last_whole_seconds(tally: Tally, clock: FakeClock) -> None:
    for _ in range(3):
        tally.answered(Timing(1.0, 2.0, 7.0))
    tally.failed("overloaded")
    tally.batch(3, 7.5, "idle")
    assert tally.recent().answered == 0  # this second is not over
    clock.advance(1)
    recent = tally.recent()
    assert (recent.answered, recent.failed, recent.batches) == (3, {"overloaded": 1}, {3: 1})
    assert recent.stage_ms == (3.0, 6.0, 21.0)
    clock.advance(WINDOW_S - 1)
    assert tally.recent().answered == 3
    clock.advance(1)
    assert tally.recent().answered == 0
    totals = tally.totals()
    assert (totals.answered, totals.failed, totals.batches) == (3, {"overloaded": 1}, {3: (1, 7.5)})
    assert (totals.queue_ms, totals.preprocess_ms, totals.inference_ms) == (3.0, 6.0, 21.0)
    assert totals.last_answer_unix_ms == 1_700_000


def test_a_second_long_past_does_not_count_when_its_place_comes_again(tally: Tally, clock: FakeClock) -> None:
    for _ in range(5 * WINDOW_S):
        tally.answered(Timing(0.0, 1.0, 1.0))
        clock.advance(1)
    assert tally.recent().answered == WINDOW_S
    assert tally.totals().answered == 5 * WINDOW_S


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_percentiles_are_within_five_per_cent(tally: Tally, clock: FakeClock, share: float) -> None:
    taken_ms = np.random.default_rng(1).lognormal(3, 1, 20_000)
    for one in taken_ms:
        tally.answered(Timing(0.0, 0.0, float(one)))
    clock.advance(1)
    found = percentile_ms(tally.recent().latency_classes, share)
    assert found == pytest.approx(np.quantile(taken_ms, share), rel=0.06)


def test_an_answer_in_no_time_is_counted(tally: Tally, clock: FakeClock) -> None:
    tally.answered(Timing(0.0, 0.0, 0.0))
    clock.advance(1)
    assert 0 < percentile_ms(tally.recent().latency_classes, 0.5) < 0.02


def test_replicas_are_summed_model_by_model(clock: FakeClock) -> None:
    reports = []
    for replica in range(3):
        tally = Tally(clock, wall_clock=lambda: 1.0)
        for _ in range(replica + 1):
            tally.answered(Timing(1.0, 2.0, 3.0))
        tally.batch(4, 2.0, "full")
        clock.advance(1)
        model = ModelReport(tally.totals(), tally.recent(), version=1 + replica // 2)
        reports.append(ReplicaReport("Preprocessor", 1.5, {"cats": model, f"only {replica}": model}))
    totals = totals_of(reports)
    assert {name: one.answered for name, one in totals.items()} == {"cats": 6, "only 0": 1, "only 1": 2, "only 2": 3}
    assert totals["cats"].batches == {4: (3, 6.0)}
    live = live_view(reports, {"Preprocessor": Replicas(desired=4, running=3)}, FAULTS, 12.3456)
    assert live["replicas_reporting"] == 3
    assert live["unix_s"] == 12.346
    assert live["stages"] == [
        {"deployment": "Preprocessor", "backlog_pictures": 4.5, "replicas": {"desired": 4, "running": 3}}
    ]
    cats = live["models"]["cats"]
    assert cats["pictures_per_s"] == 0.6
    assert cats["latency_ms"]["p50"] == pytest.approx(6, rel=0.06)
    assert cats["stages_ms"] == {"queue": 1.0, "preprocess": 2.0, "inference": 3.0}
    assert cats["batch_pictures"] == {"mean": 4.0, "sizes": {"4": 3}}
    assert cats["versions"] == {"1": 2, "2": 1}
    assert cats["refused_version"] is None


def test_failures_are_told_apart_by_whose_they_are(tally: Tally, clock: FakeClock) -> None:
    for code, count in {"overloaded": 4, "broken_picture": 3, "inference_failed": 2, "unheard_of": 1}.items():
        for _ in range(count):
            tally.failed(code)
    clock.advance(1)
    report = ReplicaReport("Preprocessor", 0, {"cats": ModelReport(tally.totals(), tally.recent(), 1, "version 2 ...")})
    cats = live_view([report], {}, FAULTS, 0.0)["models"]["cats"]
    assert [cats[f"{kind}_per_s"] for kind in ("shed", "rejected", "failed")] == [0.4, 0.3, 0.3]
    assert cats["latency_ms"] is cats["stages_ms"] is cats["batch_pictures"] is None
    assert cats["refused_version"] == "version 2 ..."


def test_nothing_together_is_nothing() -> None:
    assert merged_totals([]) == ModelTotals()
    assert merged_recent([]).answered == 0
    assert live_view([], {}, FAULTS, 0.0)["models"] == {}
