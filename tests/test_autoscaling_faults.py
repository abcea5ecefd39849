"""Faults of the policies that were found by reading, each kept as a test."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import yaml

from serve_app.autoscaling import PipelinePolicy, StagePolicy
from serve_app.autoscaling.sizing import Memory, Replicas, decide
from serve_app.errors import ConfigError
from serve_app.settings import parse_goal
from tests.autoscaling_helpers import GOAL as KWARGS
from tests.autoscaling_helpers import NOON_S, Controlled, Pipeline, context, ident
from tests.test_autoscaling_sizing import FITS, GOAL, Stage, load


def test_a_stage_at_its_maximum_forgets_that_it_needed_all_of_it() -> None:
    stage = Stage(target=4, bounds=(1, 4))
    stage.run(load(3.5 * FITS), 100)  # begins to remember
    stage.run(load(6 * FITS), 100)  # needs six and has four
    assert stage.decide(load(10)).replicas == 4  # keep_s has not passed


def test_nor_does_a_stage_that_was_held() -> None:
    pipeline = Pipeline()

    def tick(second: int, arrivals: float, backlog: float) -> int:
        at_s = NOON_S + second
        return pipeline.tick(
            context("Preprocessor", arrivals, target=2, now_s=at_s),
            context("Classifier", 300, backlog, target=8, now_s=at_s),
        )["Preprocessor"]

    for second in range(70):
        tick(second, 100, 0)
    for second in range(70, 140):
        assert tick(second, 300, 9000) == 2  # needs more, is held
    assert tick(140, 10, 9000) == 2


def test_a_replica_that_a_request_started_stays_for_keep_last_s() -> None:
    stage = Controlled(bounds=(0, 8), keep_last_s=100)
    assert [stage.tick(0) for _ in range(101)][-1] == 0
    for _ in range(200):
        stage.tick(None)
    assert stage.tick(None, total_num_requests=1.0) == 1  # Ray's cold start
    for _ in range(5):
        assert stage.tick(None, current_num_replicas=0, total_num_requests=1.0) == 1
    # The request is answered before the replica's first report, so no counter ever grows.
    assert [stage.tick(0) for _ in range(100)] == [1] * 100


def test_a_time_without_data_is_not_a_time_without_need() -> None:
    stage = Stage(target=4)
    stage.run(load(3.5 * FITS), 100)
    stage.run(None, 100)
    assert stage.decide(load(10)).replicas == 4


FLOORS = [{"start": "11:00", "end": "13:00", "min_replicas": 5}]


def test_a_held_stage_has_its_scheduled_minimum() -> None:
    stages = {"Preprocessor": KWARGS | {"floors": FLOORS}, "Classifier": KWARGS}
    counts = Pipeline(stages=stages).tick(
        context("Preprocessor", 300, target=2), context("Classifier", 300, 9000, target=8)
    )
    assert counts["Preprocessor"] == 5


def test_a_held_stage_still_measures_its_start() -> None:
    pipeline = Pipeline()

    def tick(second: int, running: int, target: int, backlog: float) -> None:
        at_s = NOON_S + second
        pipeline.tick(
            context("Preprocessor", 700, target=target, now_s=at_s, current_num_replicas=running),
            context("Classifier", 300, backlog, target=8, now_s=at_s),
        )

    pipeline.tick(context("Preprocessor", 200, target=1, now_s=NOON_S), context("Classifier", 300, target=8))
    tick(6, 4, 4, 9000)  # they are there after six seconds, and the stage is held, for a minute
    tick(60, 4, 4, 9000)
    tick(66, 4, 4, 0)
    assert pipeline.states[ident("Preprocessor")]["start_up_s"] == 6


def test_a_floor_holds_until_its_end_however_long_starts_take() -> None:
    policy = StagePolicy(**KWARGS, floors=[{"start": "11:00", "end": "12:00", "min_replicas": 3}])
    # Ten seconds before its end, with a measured start-up time of thirty.
    assert policy(context(now_s=NOON_S - 10, state={"start_up_s": 30.0}))[0] == 3


@pytest.mark.parametrize(
    "floor",
    [
        "{start: 08:00, end: 18:00, min_replicas: 2}",  # YAML 1.1: 18:00 is the number 1080, pydantic: 00:18 UTC, aware
        "{start: '08:00+02:00', end: '18:00', min_replicas: 2}",
        "{start: '08:00Z', end: '18:00Z', min_replicas: 2}",
        "{start: '08:00', end: '08:00', min_replicas: 2}",  # holds never
        "{start: '08:00', end: '18:00', min_replicas: 2, days: []}",  # holds never
        "{start: '08:00', end: '18:00', min_replicas: 2, timezone: Europe}",  # IsADirectoryError, not ConfigError
    ],
)
def test_floors_that_cannot_work_are_refused(floor: str) -> None:
    with pytest.raises(ConfigError):
        parse_goal({"floors": [yaml.safe_load(floor)]})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"order": 3},
        {"order": [["Preprocessor"]]},
        {"order": "Classifier"},  # taken for ten stages of one letter
        {"stages": 3},
        {"stages": ["Classifier"]},
        {"stages": {"Classifier": None}},  # `stages: {Classifier: }`
        {"stages": {"Classifier": 3}},
        {"stages": {"Classifier": {"floors": [FLOORS[0] | {"timezone": "Europe"}]}}},
    ],
    ids=repr,
)
def test_no_kwargs_make_a_constructor_raise(kwargs: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        policy = PipelinePolicy(**kwargs)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records, "silent"
    assert policy({ident("Classifier"): context(arrivals_per_s=300)}) == ({}, {})


def test_a_delay_of_rays_is_no_start_up_time() -> None:
    """With upscale_delay_s at Ray's default of 30 the target stays as it is for 300 decisions."""
    memory = Memory()
    for tick in range(5):
        decision = decide(load(5 * FITS), Replicas(2, 2, 1, 10), GOAL, memory, tick * 0.1)
        memory = decision.memory
    assert decision.start_up_s == 4


@pytest.mark.parametrize(("arrivals", "rate"), [(1e9, 1e-300), (1e308, 1e-3), (1.0, 5e-324)])
def test_no_finite_load_raises(arrivals: float, rate: float) -> None:
    assert decide(load(arrivals, rate=rate), Replicas(1, 1, 1, 4), GOAL, Memory(), 0.0).replicas == 4


def test_a_maximum_is_not_called_a_minimum() -> None:
    assert decide(None, Replicas(5, 5, 1, 3), GOAL, Memory(), 0.0).reason == "maximum"


def test_what_cannot_be_told_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gauge(*_: Any, **__: Any) -> None:
        raise RuntimeError("no metrics here")

    monkeypatch.setattr("ray.util.metrics.Gauge", no_gauge)
    assert StagePolicy(**KWARGS)(context(arrivals_per_s=300))[0] == 5


def test_a_clock_that_is_set_back_measures_no_negative_time() -> None:
    stage = Stage(target=1)
    stage.decide(load(2 * FITS), running=1)
    stage.now_s = -20.0
    assert stage.decide(load(0), running=3).start_up_s >= 0


def test_a_replica_that_ray_started_by_itself_is_kept_however_quick_its_start() -> None:
    """Its cold start does not ask the policy; what was needed before it says nothing."""
    goal = parse_goal({"keep_s": 4, "keep_last_s": 6})
    memory, idle = Memory(), load(0)
    for second in range(20):
        memory = decide(idle, Replicas(0, 0, 0, 2), goal, memory, float(second)).memory
    counts = []
    for second in range(20, 30):
        decision = decide(idle, Replicas(1, 1, 0, 2), goal, memory, float(second))
        memory = decision.memory
        counts.append(decision.replicas)
    assert counts == [1] * 6 + [0] * 4


def test_a_target_that_ray_lowers_late_is_not_a_start() -> None:
    """With `downscale_delay_s`, the target stays above what the policy decided for a while."""
    goal = parse_goal({"keep_s": 2})
    memory = Memory()
    for second in range(8):
        decision = decide(load(10), Replicas(5, 5, 1, 8), goal, memory, float(second))
        memory = decision.memory
    assert decision.replicas == 1
