"""The policies as Ray's controller calls them: its own contexts, through its own wrappers, without a Ray process."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingPolicy

from scripts.local_service import ROOT
from serve_app.autoscaling import PipelinePolicy, StagePolicy
from serve_app.autoscaling.policies import stage_decision
from serve_app.autoscaling.signals import RATE
from serve_app.settings import parse_goal
from tests.autoscaling_helpers import GOAL, NOON_S, RATE_PER_S, Controlled, Pipeline, context, ident, reported

Log = Callable[[str], list[str]]


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def log() -> Iterator[Log]:
    """Everything the controller's log was told, by level."""
    handler = Records()
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda name: [record.getMessage() for record in handler.records if record.levelname == name]
    logger.removeHandler(handler)
    logger.setLevel(level)


def decisions(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("autoscaling ")) for line in lines]


def test_metrics_and_policies_start_no_ray(log: Log) -> None:
    assert StagePolicy(**GOAL)(context(arrivals_per_s=300))[0] == 5
    assert not ray.is_initialized()
    assert log("ERROR") == log("WARNING") == []


def test_under_ray_a_stage_grows_at_once_and_shrinks_late() -> None:
    stage = Controlled()
    assert stage.tick(300) == 5
    assert [stage.tick(10) for _ in range(61)] == [5] * 60 + [1]


def test_under_ray_a_stage_goes_to_zero_and_comes_back() -> None:
    stage = Controlled(bounds=(0, 8), keep_last_s=100)
    assert [stage.tick(0) for _ in range(101)] == [1] * 100 + [0]
    assert stage.tick(None) == 0
    assert stage.tick(None, total_num_requests=1.0) == 1
    assert stage.tick(None, current_num_replicas=0) == 1
    assert stage.tick(300) == 5


def test_under_ray_several_replicas_go_to_zero_by_way_of_one() -> None:
    stage = Controlled(target=3, bounds=(0, 8), keep_s=5, keep_last_s=5)
    assert [stage.tick(0) for _ in range(7)] == [3] * 5 + [1, 0]


def test_under_ray_the_start_up_time_is_remembered() -> None:
    stage = Controlled()
    stage.tick(300, current_num_replicas=1)
    for _ in range(19):
        stage.tick(300, current_num_replicas=1)
    stage.tick(300)
    assert stage_decision(context(state=stage.state), parse_goal(GOAL)).start_up_s == 20


def test_a_floor_is_asked_for_ahead_by_the_start_up_time() -> None:
    floors = [{"start": "12:01", "end": "14:00", "min_replicas": 3, "days": ["wed"]}]

    def count(seconds_before: float, state: dict[str, Any], most: int = 8) -> int:
        given = context(now_s=NOON_S + 60 - seconds_before, state=state, bounds=(1, most))
        return StagePolicy(**GOAL, floors=floors)(given)[0]

    assert [count(seconds, {}) for seconds in (5, 4)] == [1, 3]
    assert [count(seconds, {"start_up_s": 30.0}) for seconds in (31, 30)] == [1, 3]
    assert count(0, {}, most=2) == 2


def test_a_floor_holds_without_data() -> None:
    floors = [{"start": "11:00", "end": "13:00", "min_replicas": 3}]
    assert StagePolicy(**GOAL, floors=floors)(context(arrivals_per_s=None))[0] == 3


def test_stale_reports_are_no_data() -> None:
    policy = StagePolicy(**GOAL, stale_after_s=10)
    old = reported("Classifier", NOON_S - 10.5, 300)
    assert policy(context(raw_metrics=old))[0] == 1
    assert policy(context(raw_metrics=reported("Classifier", NOON_S - 10, 300)))[0] == 5


def test_a_decision_is_explained_when_it_changes(log: Log) -> None:
    policy = StagePolicy(**GOAL)
    policy(context(arrivals_per_s=200, backlog=58))
    assert decisions(log("INFO")) == [
        {
            "deployment": "Classifier",
            "desired": 4,
            "before": 1,
            "running": 1,
            "reason": "arrivals",
            "needed": 3.57,
            "start_up_s": 4.0,
            "backlog_pictures": 58.0,
            "arrivals_per_s": 200.0,
            "pictures_per_s_per_replica": 100.0,
            "knee_pictures": 8,
            "reporting": 1,
        }
    ]


def test_a_decision_without_data_is_explained_too(log: Log) -> None:
    StagePolicy(**GOAL)(context(arrivals_per_s=None, target=2))
    (line,) = decisions(log("INFO"))
    assert (line["reason"], line["desired"], line["needed"]) == ("no_data", 2, None)
    assert "arrivals_per_s" not in line


@pytest.mark.parametrize(("goal", "seconds"), [({}, 60), ({"log_every_s": 10}, 10)], ids=["default", "given"])
def test_a_decision_that_stays_is_told_now_and_then(goal: dict[str, Any], seconds: int, log: Log) -> None:
    stage = Controlled(target=2, keep_s=600, **goal)
    for _ in range(seconds):
        stage.tick(100)
    assert len(log("INFO")) == 1
    for _ in range(seconds // 2):
        stage.tick(100)
    assert len(log("INFO")) == 2
    stage.tick(10)
    assert [line["reason"] for line in decisions(log("INFO"))] == ["enough", "enough", "keeping"]


def test_a_decision_is_told_as_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, float] = {}
    made: list[str] = []

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert tag_keys == ("application", "deployment")
            made.append(name.removeprefix("image_serve_autoscaling_"))
            self._name = made[-1]

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tags == {"application": "image-serve", "deployment": "Classifier"}
            told[self._name] = value

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    policy = StagePolicy(**GOAL)
    policy(context(arrivals_per_s=None))
    assert told == {"desired_replicas": 1, "running_replicas": 1, "start_up_s": 4}
    policy(context(arrivals_per_s=300, backlog=8))
    assert told == {
        "desired_replicas": 5,
        "running_replicas": 1,
        "start_up_s": 4,
        "backlog_pictures": 8,
        "arrivals_per_s": 300,
        "pictures_per_s": 100,
    }
    assert made == list(told)


def raises() -> Any:
    raise RuntimeError("the metrics are gone")


@pytest.mark.parametrize(
    "broken",
    [
        {"raw_metrics": raises},
        {"raw_metrics": 3},
        {"raw_metrics": {RATE: None}},
        {"raw_metrics": {RATE: {"r": [3]}}},
        {"raw_metrics": {RATE: {"r": [TimeStampedValue(NOON_S, "fast")]}}},
        {"raw_metrics": {RATE: {"r": [TimeStampedValue(None, 1.0)]}}},
        {"raw_metrics": reported("Classifier", NOON_S, float("nan"))},
        {"raw_metrics": reported("Classifier", NOON_S, float("inf"))},
        {"policy_state": 3},
        {"policy_state": {"wishes": 3}},
        {"policy_state": {"wishes": [["x", None]]}},
        {"policy_state": {"asked": [1]}},
        {"policy_state": {"since_s": "x"}, "raw_metrics": reported("Classifier", NOON_S, 100, replicas=2)},
        {"policy_state": {"start_up_s": "x"}},
        {"current_num_replicas": None},
        {"capacity_adjusted_min_replicas": None},
        {"capacity_adjusted_max_replicas": "many"},
        {"current_time": "noon"},
        {"current_time": float("nan")},
        {"current_time": 1e18},
    ],
    ids=repr,
)
def test_whatever_is_wrong_with_a_context_its_target_is_kept(broken: dict[str, Any], log: Log) -> None:
    given = context("Classifier", 300, target=2, **broken)
    assert StagePolicy(**GOAL)(given)[0] == 2
    assert "failed" in log("ERROR")[0]
    counts, _ = PipelinePolicy(stages={"Classifier": GOAL})({ident("Classifier"): given})
    assert counts.get(ident("Classifier"), 2) == 2


@pytest.mark.parametrize(
    "absent", ["raw_metrics", "policy_state", "app_name", "current_time", "config", "aggregated_metrics"]
)
def test_what_a_context_may_lack(absent: str, log: Log) -> None:
    without: dict[str, Any] = {absent: None}
    assert StagePolicy(**GOAL)(context(target=2, **without))[0] == 2
    assert log("ERROR") == []


@pytest.mark.parametrize(
    ("goal", "problem"),
    [
        ({"utilisation": 0.5}, "policy_kwargs.utilisation: unknown key; did you mean 'utilization'?"),
        ({"utilization": 2}, "policy_kwargs.utilization: Input should be less than or equal to 1"),
        ({"floors": [{"start": "08:00"}]}, "policy_kwargs.floors.0.end: Field required"),
    ],
)
def test_wrong_kwargs_are_logged_and_replicas_left_alone(goal: dict[str, Any], problem: str, log: Log) -> None:
    policy = StagePolicy(**goal)
    assert policy(context(arrivals_per_s=300, target=3)) == (3, {})
    pipeline = PipelinePolicy(stages={"Classifier": goal})
    assert pipeline({ident("Classifier"): context(arrivals_per_s=300, target=3)}) == ({}, {})
    assert [problem in line for line in log("ERROR")] == [True, True]


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"stage": {}}, "policy_kwargs.stage: unknown key"),
        ({"stages": {"Clasifier": {}}}, "policy_kwargs.stages.Clasifier: no such stage"),
    ],
)
def test_wrong_kwargs_of_a_pipeline_turn_it_off(kwargs: dict[str, Any], problem: str, log: Log) -> None:
    policy = PipelinePolicy(**kwargs)
    contexts = {ident(name): context(name, 300) for name in ("Preprocessor", "Classifier")}
    assert policy(contexts) == ({}, {})
    assert problem in log("ERROR")[0]


BUSY = 300.0
FULL = 8 * RATE_PER_S * GOAL["max_wait_s"] / 2 + 1
"""Pictures that are too many for eight classifiers."""


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("target", "backlog", "decoders"),
    [(8, FULL, 2), (8, FULL - 1, 5), (7, 2 * FULL, 5)],
    ids=["full and backlogged", "full", "backlogged"],
)
def test_decoders_do_not_grow_in_front_of_a_full_classifier(
    target: int, backlog: float, decoders: int, reverse: bool
) -> None:
    stages = [context("Preprocessor", BUSY, target=2), context("Classifier", BUSY, backlog, target=target)]
    assert Pipeline().tick(*stages[:: -1 if reverse else 1]) == {
        "Preprocessor": decoders,
        "Classifier": 8,
    }


@pytest.mark.parametrize(("backlog", "decoders"), [(FULL, 2), (0.0, 5)], ids=["both full", "one full"])
def test_classifiers_of_several_models_stand_side_by_side(backlog: float, decoders: int) -> None:
    stages = [
        context("Classifier-cats", BUSY, FULL, target=8),
        context("Preprocessor", BUSY, target=2),
        context("Classifier-dogs", BUSY, backlog, target=8),
    ]
    for order in itertools.permutations(stages):
        counts = Pipeline().tick(*order)
        assert (counts["Preprocessor"], counts["Classifier-cats"]) == (decoders, 8)


def test_a_classifier_of_one_model_may_have_a_goal_of_its_own() -> None:
    pipeline = Pipeline(stages={"Classifier": GOAL, "Classifier-dogs": GOAL | {"utilization": 0.05}})
    counts = pipeline.tick(*(context(f"Classifier-{name}", 10, target=1) for name in ("cats", "dogs")))
    assert counts["Classifier-dogs"] > counts["Classifier-cats"] == 1


def test_a_held_stage_says_so_and_shrinks_all_the_same(log: Log) -> None:
    pipeline = Pipeline()
    pipeline.states[ident("Preprocessor")] = {"start_up_s": 30.0}
    counts = [
        pipeline.tick(
            context("Preprocessor", arrivals, target=2, now_s=NOON_S + second),
            context("Classifier", BUSY, FULL, target=8, now_s=NOON_S + second),
        )["Preprocessor"]
        for second, arrivals in enumerate([BUSY] + [10] * 61)
    ]
    assert counts == [2] * 61 + [1]
    held = next(line for line in decisions(log("INFO")) if line["deployment"] == "Preprocessor")
    assert (held["reason"], held["desired"], held["before"]) == ("held", 2, 2)
    assert held["needed"] > 2
    assert pipeline.states[ident("Preprocessor")]["start_up_s"] == 30


def test_a_deployment_that_is_no_stage_is_left_alone() -> None:
    others = [context("Other", BUSY), context("Classifier", BUSY)]
    assert Pipeline().tick(*others) == {"Classifier": 5}
    assert Pipeline(order=["Other"], stages={"Other": GOAL}).tick(*others) == {"Other": 5}


def test_one_stage_that_fails_does_not_stop_the_others(log: Log) -> None:
    stages = [context("Preprocessor", BUSY), context("Classifier", raw_metrics=raises)]
    assert Pipeline().tick(*stages) == {"Preprocessor": 5}
    assert log("ERROR") == ["the autoscaling policy failed; Classifier keeps its replicas"]


def test_each_stage_has_its_own_goal_and_memory() -> None:
    pipeline = Pipeline(stages={"Classifier": GOAL | {"keep_s": 2}, "Preprocessor": GOAL | {"keep_s": 4}})
    counts = [
        pipeline.tick(*(context(name, 10, target=4, now_s=NOON_S + second) for name in ("Preprocessor", "Classifier")))
        for second in range(5)
    ]
    assert [count["Classifier"] for count in counts] == [4, 4, 1, 1, 1]
    assert [count["Preprocessor"] for count in counts] == [4, 4, 4, 4, 1]


@pytest.mark.parametrize("name", ["StagePolicy", "PipelinePolicy"])
def test_a_policy_works_where_ray_sends_it(name: str) -> None:
    """Ray pickles policies by value, and its controller makes them anew: here, a process of its own."""
    code = (
        "import base64, cloudpickle, sys\n"
        "policy = cloudpickle.loads(base64.b64decode(sys.stdin.read()))\n"
        "assert 'serve_app.autoscaling' not in sys.modules\n"
        "from tests.autoscaling_helpers import GOAL, context\n"
        "given = context(arrivals_per_s=300)\n"
        "one = policy.__name__ == 'StagePolicy'\n"
        "counts, _ = policy(**GOAL)(given) if one else policy(stages={'Classifier': GOAL})({1: given})\n"
        "assert counts == (5 if one else {1: 5}), counts\n"
    )
    sent = AutoscalingPolicy(policy_function=f"serve_app.autoscaling:{name}").get_serialized_policy_def()
    subprocess.run([sys.executable, "-c", code], input=base64.b64encode(sent), check=True, cwd=ROOT)
