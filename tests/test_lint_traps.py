"""Each trap has a configuration that falls into it and one, otherwise the same, that does not."""

from __future__ import annotations

import pytest

from serve_app.lint import lint_config
from tests.lint_helpers import APPLICATION, CLASSIFIER, FAST, PREPROCESSOR, VALID, WITHOUT_POLICY, changed, found, only


@pytest.mark.parametrize(("value", "trapped"), [(1, True), (2, False)])
def test_trap_2_a_chunk_must_be_able_to_wait_at_the_classifier(value: int, trapped: bool) -> None:
    findings = lint_config(changed(f"{CLASSIFIER}.max_ongoing_requests", value), FAST)
    errors = [finding for finding in findings if finding.path == f"{CLASSIFIER}.max_ongoing_requests"]
    assert [finding.severity for finding in errors] == (["error"] if trapped else [])


@pytest.mark.parametrize(
    ("most", "target", "trapped"), [(8, 9, True), (8, 8, False), (None, 6, True), (None, 5, False)]
)
def test_trap_2_a_target_above_the_maximum_never_scales(most: int | None, target: int, trapped: bool) -> None:
    config = changed(f"{CLASSIFIER}.max_ongoing_requests", most, WITHOUT_POLICY)
    findings = lint_config(changed(f"{CLASSIFIER}.autoscaling_config.target_ongoing_requests", target, config), FAST)
    assert bool(findings) == trapped
    if trapped:
        assert only(findings).severity == "error"
        assert only(findings).path == f"{CLASSIFIER}.autoscaling_config.target_ongoing_requests"


@pytest.mark.parametrize(
    ("interval", "period", "trapped"), [(5, 5, True), (6, 5, True), (1, 5, False), (None, 5, True)]
)
def test_trap_3_the_window_must_hold_reports(interval: float | None, period: float, trapped: bool) -> None:
    path = f"{PREPROCESSOR}.autoscaling_config"
    config = changed(f"{path}.metrics_interval_s", interval)
    findings = lint_config(changed(f"{path}.look_back_period_s", period, config), FAST)
    assert bool(findings) == trapped
    if trapped:
        assert (only(findings).severity, only(findings).path) == ("warning", f"{path}.look_back_period_s")


@pytest.mark.parametrize(
    ("deployment", "target", "trapped"),
    [(PREPROCESSOR, 15, True), (PREPROCESSOR, 16, False), (CLASSIFIER, 1, True), (CLASSIFIER, 2, False)],
)
def test_trap_3_the_target_must_let_a_batch_fill(deployment: str, target: int, trapped: bool) -> None:
    path = f"{deployment}.autoscaling_config.target_ongoing_requests"
    findings = lint_config(changed(path, target, WITHOUT_POLICY), FAST)
    assert [(finding.severity, finding.path) for finding in findings] == ([("warning", path)] if trapped else [])


@pytest.mark.parametrize("target", [1, 9])
def test_trap_3_a_target_that_a_policy_does_not_use_is_free(target: int) -> None:
    path = f"{CLASSIFIER}.autoscaling_config.target_ongoing_requests"
    assert lint_config(changed(path, target), FAST) == []
    above = changed(f"{APPLICATION}.autoscaling_policy.policy_function", "json:dumps", WITHOUT_POLICY)
    assert lint_config(changed(path, target, above), FAST) == []


@pytest.mark.parametrize("separator", ".:")
def test_trap_3_rays_own_policy_uses_it_also_where_it_is_named(separator: str) -> None:
    name = f"ray.serve.autoscaling_policy{separator}default_autoscaling_policy"
    config = changed(f"{CLASSIFIER}.autoscaling_config.policy.policy_function", name)
    path = f"{CLASSIFIER}.autoscaling_config.target_ongoing_requests"
    assert only(lint_config(changed(path, 1, config), FAST)).path == path


@pytest.mark.parametrize(
    ("env", "trapped"),
    [
        ({"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}, True),
        ({"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}, False),
        ({"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}, False),
        ({}, False),
    ],
)
def test_trap_4_throughput_without_haproxy(env: dict[str, str], trapped: bool) -> None:
    findings = lint_config(VALID, env)
    assert [finding.path for finding in findings] == ["environment.RAY_SERVE_THROUGHPUT_OPTIMIZED"] * trapped
    assert all(finding.severity == "warning" for finding in findings)


@pytest.mark.parametrize("section", ["controller_options", APPLICATION, f"{PREPROCESSOR}.ray_actor_options"])
@pytest.mark.parametrize(
    "name", ["RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_DIRECT_INGRESS"]
)
def test_trap_4_cluster_variables_in_a_runtime_env(section: str, name: str) -> None:
    finding = found(f"{section}.runtime_env.env_vars.{name}", "1")
    assert (finding.severity, finding.path) == ("error", f"{section}.runtime_env.env_vars.{name}")
    assert "every node" in finding.message


# 27 pictures of 224 x 224 x 3 are 4,064,256 bytes, 28 are 4,214,784: the default limit of 4,194,304 lies between.
@pytest.mark.parametrize(
    ("pictures", "placement", "env", "trapped"),
    [
        (28, "split", {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}, True),
        (27, "split", {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}, False),
        (28, "split", {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}, True),
        (28, "split", FAST, False),
        (28, "split", {}, False),
        (28, "split", FAST | {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "4194304"}, True),
        (
            28,
            "split",
            FAST | {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "1", "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0"},
            False,
        ),
        (28, "colocated", {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}, False),
    ],
)
def test_trap_5_chunks_and_the_message_limit(pictures: int, placement: str, env: dict[str, str], trapped: bool) -> None:
    config = changed(f"{APPLICATION}.args", {"placement": placement, "batching": {"max_batch_size": pictures}})
    config["applications"][0]["deployments"] = []
    findings = lint_config(config, env)
    assert [finding.path for finding in findings] == [f"{APPLICATION}.args.batching.max_batch_size"] * trapped
    if trapped:
        assert findings[0].severity == "error"
        assert str(pictures * 224 * 224 * 3) in findings[0].message


def test_trap_5_a_limit_raised_for_the_application_counts() -> None:
    config = changed(f"{APPLICATION}.args.batching", {"max_batch_size": 64})
    config = changed(f"{PREPROCESSOR}.autoscaling_config", None, config)
    env = FAST | {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "4194304"}
    assert only(lint_config(config, env)).path.endswith("max_batch_size")
    path = f"{APPLICATION}.runtime_env.env_vars.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    assert lint_config(changed(path, "67108864", config), env) == []


@pytest.mark.parametrize(("most", "env", "trapped"), [(63, FAST, True), (64, FAST, False), (63, {}, False)])
def test_trap_6_a_small_ingress_hides_waiting_load(most: int, env: dict[str, str], trapped: bool) -> None:
    findings = lint_config(changed(f"{PREPROCESSOR}.max_ongoing_requests", most), env)
    assert [(finding.severity, finding.path) for finding in findings] == [
        ("warning", f"{PREPROCESSOR}.max_ongoing_requests")
    ] * trapped


@pytest.mark.parametrize(
    ("deployment", "env", "trapped"), [(PREPROCESSOR, FAST, True), (PREPROCESSOR, {}, False), (CLASSIFIER, FAST, False)]
)
def test_trap_6_the_ingress_has_no_router_of_its_own(deployment: str, env: dict[str, str], trapped: bool) -> None:
    path = f"{deployment}.request_router_config.request_router_class"
    router = "ray.serve.experimental.round_robin_router:RoundRobinRouter"
    findings = lint_config(changed(path, router), env)
    assert [(finding.severity, finding.path) for finding in findings] == [("error", path)] * trapped


@pytest.mark.parametrize(
    ("timeout_ms", "env", "trapped"),
    [
        (120_001, FAST, True),
        (120_000, FAST, False),
        (120_001, {}, False),
        (120_001, FAST | {"RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "600"}, False),
    ],
)
def test_trap_6_requests_longer_than_a_reload(timeout_ms: int, env: dict[str, str], trapped: bool) -> None:
    path = f"{APPLICATION}.args.limits.max_timeout_ms"
    findings = lint_config(changed(path, timeout_ms), env)
    assert [(finding.severity, finding.path) for finding in findings] == [("warning", path)] * trapped


@pytest.mark.parametrize("at", [f"{APPLICATION}.autoscaling_policy", f"{CLASSIFIER}.autoscaling_config.policy"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_package.policies:Scale", "ModuleNotFoundError"),
        ("json:no_such_name", "AttributeError"),
        ("json:__doc__", "not callable"),
        ("scale", "ValueError"),
    ],
)
def test_trap_7_a_policy_that_does_not_load(at: str, name: str, problem: str) -> None:
    finding = only(lint_config(changed(f"{at}.policy_function", name, WITHOUT_POLICY), FAST))
    assert (finding.severity, finding.path) == ("error", f"{at}.policy_function")
    assert problem in finding.message


@pytest.mark.parametrize(
    "name", ["json:dumps", "json.dumps", "ray.serve.autoscaling_policy:default_autoscaling_policy"]
)
def test_trap_7_a_policy_that_loads(name: str) -> None:
    assert lint_config(changed(f"{CLASSIFIER}.autoscaling_config.policy.policy_function", name), FAST) == []


@pytest.mark.parametrize("deployment", [PREPROCESSOR, CLASSIFIER])
@pytest.mark.parametrize(
    ("user_config", "at", "said"),
    [
        ({"max_batch": 4}, ".max_batch", "unknown key; did you mean 'max_batch_size'?"),
        ({"max_batch_size": 17}, ".max_batch_size", "largest that was warmed"),
        (4, "", "valid dictionary"),
    ],
)
def test_a_user_config_that_would_be_refused_is_found(deployment: str, user_config: object, at: str, said: str) -> None:
    findings = lint_config(changed(f"{deployment}.user_config", user_config), FAST)
    own = [one for one in findings if one.path == f"{deployment}.user_config{at}"]
    assert own[0].severity == "error"
    assert said in own[0].message


def test_a_user_config_that_would_be_taken_is_fine() -> None:
    user_config = {"max_batch_size": 8, "merge_wait_s": "auto", "latency_objective_ms": 50}
    assert lint_config(changed(f"{CLASSIFIER}.user_config", user_config), FAST) == []
