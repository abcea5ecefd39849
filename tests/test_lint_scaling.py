"""Our policies in a configuration: their arguments, their level, and what Ray would add to them."""

from __future__ import annotations

from typing import Any

import pytest

import serve_app.autoscaling
from serve_app.lint import lint_config, scaling
from tests.lint_helpers import (
    APPLICATION,
    CLASSIFIER,
    FAST,
    PREPROCESSOR,
    VALID,
    WITHOUT_POLICY,
    changed,
    only,
)

AT_ONCE = {"upscale_delay_s": 0, "downscale_delay_s": 0, "metrics_interval_s": 1, "look_back_period_s": 5}
SCALED = {"min_replicas": 1, "max_replicas": 4} | AT_ONCE
NAMES = {
    name: [f"serve_app.autoscaling{module}{name}" for module in (":", ".", ".policies:", ".policies.")]
    for name in ("StagePolicy", "PipelinePolicy")
}
STAGE_AT = f"{CLASSIFIER}.autoscaling_config"
PIPELINE_AT = f"{APPLICATION}.autoscaling_policy"


def config_of(kind: str, kwargs: object = None, name: str | None = None) -> dict[str, Any]:
    """A configuration without findings that uses one of our policies."""
    policy = {"policy_function": name or NAMES[kind][0]} | ({} if kwargs is None else {"policy_kwargs": kwargs})
    if kind == "StagePolicy":
        return changed(STAGE_AT, SCALED | {"policy": policy})
    config = changed(f"{PREPROCESSOR}.autoscaling_config", SCALED, changed(STAGE_AT, SCALED))
    return changed(PIPELINE_AT, policy, config)


def several(kwargs: object = None) -> dict[str, Any]:
    """The same with two models in split placement, and one beside the decoder."""
    config = config_of("PipelinePolicy", kwargs)
    [application] = config["applications"]
    application["args"]["models"] = {"cats": {}, "dogs": {}, "birds": {"placement": "colocated"}}
    own = next(one for one in application["deployments"] if one["name"] == "Classifier")
    application["deployments"].remove(own)
    application["deployments"] += [{**own, "name": f"Classifier-{name}"} for name in ("cats", "dogs")]
    return config


def test_classifiers_of_several_models_are_stages() -> None:
    assert found(several()) == []
    assert found(several({"stages": {"Classifier": {"keep_s": 30}, "Classifier-dogs": {"keep_s": 60}}})) == []
    assert found(several({"stages": {"Classifier-birds": {}}})) == [
        ("error", f"{PIPELINE_AT}.policy_kwargs.stages.Classifier-birds")
    ]


def test_a_classifier_that_nothing_scales_is_told() -> None:
    config = several()
    del config["applications"][0]["deployments"][-1]["autoscaling_config"]
    assert found(config) == [("warning", f"{APPLICATION}.deployments[2]")]


def found(config: dict[str, Any]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.path) for finding in lint_config(config, FAST)]


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("StagePolicy", None),
        ("StagePolicy", {}),
        ("StagePolicy", {"keep_s": 30, "floors": [{"start": "08:00", "end": "18:00", "min_replicas": 2}]}),
        ("PipelinePolicy", None),
        ("PipelinePolicy", {}),
        ("PipelinePolicy", {"order": ["Preprocessor", "Classifier"], "stages": {"Classifier": {"keep_s": 30}}}),
        ("PipelinePolicy", {"order": ["Classifier"], "stages": None}),
    ],
)
def test_what_is_right_has_no_findings(kind: str, kwargs: object) -> None:
    for name in NAMES[kind]:
        assert found(config_of(kind, kwargs, name)) == []


def test_the_policies_are_those_that_exist() -> None:
    assert set(scaling.PATHS.values()) == set(serve_app.autoscaling.__all__)
    assert list(serve_app.autoscaling.PipelinePolicy()._goals) == list(scaling.DEFAULT_ORDER)


@pytest.mark.parametrize(
    ("goal", "where", "message"),
    [
        ({"keep": 3}, ".keep", "unknown key; did you mean 'keep_s'?"),
        ({"utilization": 2}, ".utilization", "less than or equal to 1; correct it"),
        (
            {"floors": [{"start": "08:00", "end": "09:00", "min": 1, "min_replicas": 1}]},
            ".floors[0].min",
            "min_replicas",
        ),
        ({"floors": [{"start": "8", "end": "09:00", "min_replicas": 1}]}, ".floors[0].start", "time format"),
        (3, "", "write the fields of a goal below it"),
        ([], "", "write the fields of a goal below it"),
    ],
)
def test_every_goal_is_checked(goal: object, where: str, message: str) -> None:
    for name in NAMES["StagePolicy"]:
        finding = only(lint_config(config_of("StagePolicy", goal, name), FAST))
        assert (finding.severity, finding.path) == ("error", f"{STAGE_AT}.policy.policy_kwargs{where}")
        assert message in finding.message
    for name in NAMES["PipelinePolicy"]:
        finding = only(lint_config(config_of("PipelinePolicy", {"stages": {"Preprocessor": goal}}, name), FAST))
        assert (finding.severity, finding.path) == ("error", f"{PIPELINE_AT}.policy_kwargs.stages.Preprocessor{where}")
        assert message in finding.message


def test_every_problem_of_a_goal_is_a_finding() -> None:
    paths = [path for _, path in found(config_of("StagePolicy", {"keep": 3, "slack": 1, "drain_s": 0}))]
    assert {path.rpartition(".")[2] for path in paths} == {"keep", "slack", "drain_s"}


@pytest.mark.parametrize(
    ("kwargs", "where", "message"),
    [
        ({"stage": {}}, ".stage", "unknown key; did you mean 'stages'?"),
        ({"order": "Classifier"}, ".order", "not a list of deployments"),
        ({"order": None}, ".order", "not a list of deployments"),
        ({"order": []}, ".order", "not a list of deployments"),
        ({"order": [3]}, ".order", "not a list of deployments"),
        ({"order": [["Classifier"]]}, ".order", "not a list of deployments"),
        ({"order": ["Classifier", "Classifier"]}, ".order", "each once"),
        (
            {"order": ["Preprocessor", "Clasifier"]},
            ".order[1]",
            "no deployment 'Clasifier'; did you mean 'Classifier'?",
        ),
        ({"stages": ["Classifier"]}, ".stages", "not a mapping; write the deployments below it"),
        ({"stages": {"Clasifier": {}}}, ".stages.Clasifier", "no such stage in order; did you mean 'Classifier'?"),
        ({"order": ["Classifier"], "stages": {"Preprocessor": {}}}, ".stages.Preprocessor", "valid keys: Classifier"),
        ({"stages": {"Classifier": None}}, ".stages.Classifier", "not a mapping; write the fields of a goal below it"),
        (3, "", "not a mapping; write order and stages below it"),
    ],
)
def test_the_arguments_of_a_pipeline(kwargs: object, where: str, message: str) -> None:
    finding = only(lint_config(config_of("PipelinePolicy", kwargs), FAST))
    assert (finding.severity, finding.path) == ("error", f"{PIPELINE_AT}.policy_kwargs{where}")
    assert message in finding.message


@pytest.mark.parametrize("name", NAMES["StagePolicy"])
def test_a_stage_policy_is_for_a_deployment(name: str) -> None:
    finding = only(lint_config(changed(PIPELINE_AT, {"policy_function": name}, WITHOUT_POLICY), FAST))
    assert (finding.severity, finding.path) == ("error", f"{PIPELINE_AT}.policy_function")
    assert "or PipelinePolicy here" in finding.message


@pytest.mark.parametrize("name", NAMES["PipelinePolicy"])
def test_a_pipeline_policy_is_for_an_application(name: str) -> None:
    finding = only(lint_config(changed(f"{STAGE_AT}.policy", {"policy_function": name}), FAST))
    assert (finding.severity, finding.path) == ("error", f"{STAGE_AT}.policy.policy_function")
    assert "or StagePolicy here" in finding.message


DELAYS = ["upscale_delay_s", "downscale_delay_s"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("upscale_delay_s", 1, "1 s, added on top of the policy's own; set it to 0"),
        ("upscale_delay_s", None, "30 s by default, added"),
        ("downscale_delay_s", 1, "1 s, added"),
        ("downscale_delay_s", None, "600 s by default, added"),
        ("downscale_to_zero_delay_s", 1, "1 s, added"),
        ("upscaling_factor", 0.5, "0.5 times what the policy asks for; remove it"),
        ("downscaling_factor", 2, "2 times what the policy asks for"),
        ("metrics_interval_s", 2.5, "2.5 s: the policy sees a change only that late; set it to 1"),
        ("metrics_interval_s", None, "10 s by default: the policy"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "at"), [("StagePolicy", STAGE_AT), ("PipelinePolicy", f"{PREPROCESSOR}.autoscaling_config")]
)
def test_what_ray_adds_to_a_policy(kind: str, at: str, key: str, value: float | None, message: str) -> None:
    config = changed(f"{at}.look_back_period_s", 30, config_of(kind))
    finding = only(lint_config(changed(f"{at}.{key}", value, config), FAST))
    assert (finding.severity, finding.path) == ("warning", f"{at}.{key}")
    assert message in finding.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("upscale_delay_s", 0.0),
        ("downscale_to_zero_delay_s", 0),
        ("downscale_to_zero_delay_s", None),
        ("upscaling_factor", 1),
        ("metrics_interval_s", 2),
    ],
)
def test_what_adds_nothing(key: str, value: float | None) -> None:
    assert found(changed(f"{STAGE_AT}.{key}", value, config_of("StagePolicy"))) == []


def test_delays_of_other_policies_are_their_own() -> None:
    assert "upscale_delay_s" not in VALID["applications"][0]["deployments"][1]["autoscaling_config"]
    assert found(VALID) == []


def test_automatic_replicas_have_rays_delays() -> None:
    deployment = {"name": "Classifier", "num_replicas": "auto", "max_ongoing_requests": 8}
    warned = [("warning", f"{STAGE_AT}.{key}") for key in (*DELAYS, "metrics_interval_s")]
    assert found(changed(CLASSIFIER, deployment, config_of("PipelinePolicy"))) == warned


def test_a_stage_outside_of_the_order_has_delays_of_its_own() -> None:
    config = config_of("PipelinePolicy", {"order": ["Classifier"]})
    assert found(changed(f"{PREPROCESSOR}.autoscaling_config.upscale_delay_s", 30, config)) == []


@pytest.mark.parametrize("deployment", [PREPROCESSOR, CLASSIFIER])
def test_a_stage_without_autoscaling_is_not_scaled(deployment: str) -> None:
    finding = only(lint_config(changed(f"{deployment}.autoscaling_config", None, config_of("PipelinePolicy")), FAST))
    assert (finding.severity, finding.path) == ("warning", deployment)
    assert "give it one" in finding.message


def test_nor_is_one_that_is_left_out() -> None:
    config = config_of("PipelinePolicy")
    del config["applications"][0]["deployments"][1]
    finding = only(lint_config(config, FAST))
    assert (finding.severity, finding.path) == ("warning", f"{APPLICATION}.deployments")
    assert "does not scale Classifier" in finding.message


def test_colocated_there_is_no_classifier_to_scale() -> None:
    config = changed(f"{APPLICATION}.args.placement", "colocated", config_of("PipelinePolicy"))
    del config["applications"][0]["deployments"][1]
    assert found(config) == []


def test_other_applications_have_stages_of_their_own() -> None:
    kwargs = {"order": ["Any", "InCode"], "stages": {"Any": {"keep_s": 5}}}
    config = changed(f"{APPLICATION}.import_path", "other.app:build", config_of("PipelinePolicy", kwargs))
    config = changed(f"{PREPROCESSOR}.name", "Any", config)
    assert found(config) == []
    finding = only(lint_config(changed(f"{PREPROCESSOR}.autoscaling_config.upscale_delay_s", 5, config), FAST))
    assert finding.path == f"{PREPROCESSOR}.autoscaling_config.upscale_delay_s"


@pytest.mark.parametrize("above", ["json:dumps", NAMES["PipelinePolicy"][0]])
@pytest.mark.parametrize("below", ["json:dumps", NAMES["StagePolicy"][0]])
def test_of_two_policies_ray_ignores_that_of_the_deployment(above: str, below: str) -> None:
    config = changed(f"{STAGE_AT}.policy.policy_function", below, config_of("PipelinePolicy", name=above))
    finding = only(lint_config(config, FAST))
    assert (finding.severity, finding.path) == ("warning", f"{STAGE_AT}.policy")
    assert "remove one of the two" in finding.message


def test_rays_own_policy_named_below_is_no_second_one() -> None:
    name = "ray.serve.autoscaling_policy:default_autoscaling_policy"
    assert found(changed(f"{STAGE_AT}.policy.policy_function", name, config_of("PipelinePolicy"))) == []


@pytest.mark.parametrize("value", [None, 3, "x", [], [3], {}, {"a": 3}, [[1]], True, [None]])
@pytest.mark.parametrize("key", ["", ".order", ".stages", ".stages.Classifier", ".stages.Classifier.floors"])
def test_nonsense_never_raises(key: str, value: object) -> None:
    for kind, at in (("PipelinePolicy", PIPELINE_AT), ("StagePolicy", f"{STAGE_AT}.policy")):
        config = config_of(kind, {})
        inner: Any = config
        for step in (f"{at}.policy_kwargs{key}").replace("[", ".").replace("]", "").split(".")[:-1]:
            inner = inner[int(step)] if step.isdigit() else inner.setdefault(step, {})
        inner[key.rpartition(".")[2] or "policy_kwargs"] = value
        assert all(finding.path and "; " in finding.message for finding in lint_config(config, FAST))
