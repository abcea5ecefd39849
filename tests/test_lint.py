"""Each trap has a configuration that falls into it and one, otherwise the same, that does not."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import ConfigError
from serve_app.lint import Finding, lint_config, load_config

ROOT = Path(__file__).parent.parent
FAST = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
}
VALID: dict[str, Any] = {
    "proxy_location": "EveryNode",
    "http_options": {"host": "0.0.0.0", "port": 8000},
    "grpc_options": {"port": 9000},
    "controller_options": {"runtime_env": {"env_vars": {"RAY_SERVE_HAPROXY_NBTHREAD": "4"}}},
    "logging_config": {"encoding": "JSON", "enable_access_log": False},
    "applications": [
        {
            "name": "image-serve",
            "route_prefix": "/",
            "import_path": "serve_app.app:build",
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
            "args": {"placement": "split", "batching": {"max_batch_size": 16}},
            "autoscaling_policy": {"policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy"},
            "deployments": [
                {
                    "name": "Preprocessor",
                    "max_ongoing_requests": 500,
                    "backpressure_config": {"status_code": 429},
                    "request_router_config": {"initial_backoff_s": 0.05},
                    "logging_config": {"log_level": "DEBUG"},
                    "ray_actor_options": {"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
                    "autoscaling_config": {
                        "min_replicas": 1,
                        "max_replicas": 4,
                        "target_ongoing_requests": 32,
                        "metrics_interval_s": 1,
                        "look_back_period_s": 5,
                    },
                },
                {
                    "name": "Classifier",
                    "max_ongoing_requests": 8,
                    "autoscaling_config": {
                        "max_replicas": 4,
                        "target_ongoing_requests": 2,
                        "policy": {"policy_function": "json:dumps", "policy_kwargs": {"target": 1}},
                    },
                },
            ],
        }
    ],
}
APPLICATION = "applications[0]"
PREPROCESSOR = f"{APPLICATION}.deployments[0]"
CLASSIFIER = f"{APPLICATION}.deployments[1]"


def steps(path: str) -> list[str | int]:
    parts = path.replace("[", ".[").split(".")
    return [int(part[1:-1]) if part.startswith("[") else part for part in parts if part]


def changed(path: str, value: object, base: dict[str, Any] = VALID) -> dict[str, Any]:
    """The valid configuration with one value put in, or taken out where it is None."""
    config = copy.deepcopy(base)
    *way, last = steps(path)
    here: Any = config
    for step in way:
        here = here[step] if isinstance(step, int) else here.setdefault(step, {})
    if value is None:
        here.pop(last, None)
    else:
        here[last] = value
    return config


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def found(path: str, value: object, env: dict[str, str] = FAST) -> Finding:
    return only(lint_config(changed(path, value), env))


def test_a_valid_configuration_has_no_findings() -> None:
    assert lint_config(VALID, FAST) == []
    assert lint_config(VALID, {}) == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("env", [FAST, {}], ids=["fast", "plain"])
def test_our_configurations_have_none(path: Path, env: dict[str, str]) -> None:
    assert lint_config(load_config(path), env) == []


@pytest.mark.parametrize(
    ("where", "key", "meant"),
    [
        ("", "aplications", "applications"),
        ("http_options", "prt", "port"),
        ("grpc_options", "prt", "port"),
        ("controller_options", "runtime_environment", "runtime_env"),
        ("logging_config", "encodng", "encoding"),
        ("tracing_config", "enable", "enabled"),
        (APPLICATION, "root_prefix", "route_prefix"),
        (f"{APPLICATION}.autoscaling_policy", "policy_kwarg", "policy_kwargs"),
        (f"{APPLICATION}.logging_config", "loglevel", "log_level"),
        (PREPROCESSOR, "max_ongoing_requets", "max_ongoing_requests"),
        (f"{PREPROCESSOR}.autoscaling_config", "min_replica", "min_replicas"),
        (f"{CLASSIFIER}.autoscaling_config.policy", "policy_functon", "policy_function"),
        (f"{PREPROCESSOR}.ray_actor_options", "num_cpu", "num_cpus"),
        (f"{PREPROCESSOR}.request_router_config", "max_backof_s", "max_backoff_s"),
        (f"{PREPROCESSOR}.logging_config", "log_dir", "logs_dir"),
        (f"{PREPROCESSOR}.backpressure_config", "status", "status_code"),
        (f"{APPLICATION}.args", "placment", "placement"),
        (f"{APPLICATION}.args.batching", "max_batch", "max_batch_size"),
    ],
)
def test_an_unknown_key_at_every_level_names_the_nearest(where: str, key: str, meant: str) -> None:
    path = f"{where}.{key}".lstrip(".")
    finding = found(path, 2)
    assert (finding.severity, finding.path) == ("error", path)
    assert finding.message.startswith("unknown key")
    assert f"did you mean {meant!r}?" in finding.message


def test_an_unknown_key_in_a_list_of_actors() -> None:
    actors = [{"name": "a", "actor_class": "m:C", "init_arg": []}]
    finding = found(f"{PREPROCESSOR}.deployment_actors", actors)
    assert finding.path == f"{PREPROCESSOR}.deployment_actors[0].init_arg"


def test_free_form_sections_are_not_searched_for_keys() -> None:
    config = changed(f"{PREPROCESSOR}.user_config", {"anything": 1})
    config = changed(f"{PREPROCESSOR}.ray_actor_options.resources", {"anything": 1}, config)
    assert lint_config(changed(f"{APPLICATION}.runtime_env.pip", ["anything"], config), FAST) == []


def test_bad_args_are_findings_of_the_settings() -> None:
    finding = found(f"{APPLICATION}.args.batching.max_batch_size", 0)
    assert finding.path == f"{APPLICATION}.args.batching.max_batch_size"
    assert "greater than or equal to 1" in finding.message


def test_every_bad_arg_is_a_finding() -> None:
    config = changed(f"{APPLICATION}.args.batching.max_batch_size", 0)
    findings = lint_config(changed(f"{APPLICATION}.args.limits", {"max_pixels": "many"}, config), FAST)
    assert {finding.path.rpartition(".")[2] for finding in findings} == {"max_batch_size", "max_pixels"}


@pytest.mark.parametrize(
    ("path", "value", "where", "advice"),
    [
        ("http_options.port", "eighty", "http_options.port", "correct it"),
        ("applications", None, "applications", "required"),
        ("applications", 3, "applications", "correct it"),
        ("applications[0]", 3, "applications[0]", "correct it"),
        (f"{APPLICATION}.args", 3, f"{APPLICATION}.args", "correct it"),
        (f"{PREPROCESSOR}.max_ongoing_requests", "x", f"{PREPROCESSOR}.max_ongoing_requests", "correct it"),
        (f"{PREPROCESSOR}.autoscaling_config.max_replicas", 0, f"{PREPROCESSOR}.autoscaling_config", ""),
        (f"{PREPROCESSOR}.autoscaling_config.min_replicas", 5, f"{PREPROCESSOR}.autoscaling_config", "raise max"),
        (f"{PREPROCESSOR}.num_replicas", 2, PREPROCESSOR, "remove num_replicas, or autoscaling_config"),
        (f"{APPLICATION}.runtime_env.working_dir", "./src", f"{APPLICATION}.runtime_env", "local://"),
        (
            f"{PREPROCESSOR}.ray_actor_options.runtime_env.working_dir",
            "./src",
            f"{PREPROCESSOR}.ray_actor_options.runtime_env",
            "local://",
        ),
    ],
)
def test_what_ray_itself_refuses(path: str, value: object, where: str, advice: str) -> None:
    findings = lint_config(changed(path, value), FAST)
    assert any(finding.path.startswith(where) and advice in finding.message for finding in findings), findings
    assert all(finding.severity == "error" for finding in findings)


def test_replicas_are_fixed_or_scaled() -> None:
    fixed = changed(f"{PREPROCESSOR}.num_replicas", 2, changed(f"{PREPROCESSOR}.autoscaling_config", None))
    assert lint_config(fixed, FAST) == []
    assert lint_config(changed(f"{PREPROCESSOR}.num_replicas", "auto"), FAST) == []


def test_a_working_dir_may_be_a_uri() -> None:
    assert lint_config(changed(f"{APPLICATION}.runtime_env.working_dir", "s3://bucket/code.zip"), FAST) == []


def test_deployments_are_those_that_exist() -> None:
    finding = found(f"{PREPROCESSOR}.name", "Preprocesor")
    assert (finding.severity, finding.path) == ("error", f"{PREPROCESSOR}.name")
    assert "did you mean 'Preprocessor'?" in finding.message


def test_the_classifier_exists_where_stages_are_split() -> None:
    finding = found(f"{APPLICATION}.args.placement", "colocated")
    assert finding.path == f"{CLASSIFIER}.name"
    assert "placement: split" in finding.message


def test_other_applications_name_their_own_deployments() -> None:
    config = changed(f"{APPLICATION}.import_path", "other.app:build")
    config = changed(f"{PREPROCESSOR}.name", "Anything", changed(f"{APPLICATION}.args", {"any": 1}, config))
    assert lint_config(config, FAST) == []


@pytest.mark.parametrize(("value", "trapped"), [(1, True), (2, False)])
def test_trap_2_a_chunk_must_be_able_to_wait_at_the_classifier(value: int, trapped: bool) -> None:
    findings = lint_config(changed(f"{CLASSIFIER}.max_ongoing_requests", value), FAST)
    errors = [finding for finding in findings if finding.path == f"{CLASSIFIER}.max_ongoing_requests"]
    assert [finding.severity for finding in errors] == (["error"] if trapped else [])


@pytest.mark.parametrize(
    ("most", "target", "trapped"), [(8, 9, True), (8, 8, False), (None, 6, True), (None, 5, False)]
)
def test_trap_2_a_target_above_the_maximum_never_scales(most: int | None, target: int, trapped: bool) -> None:
    config = changed(f"{CLASSIFIER}.max_ongoing_requests", most)
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
    config = changed(f"{CLASSIFIER}.autoscaling_config.policy", None)
    path = f"{deployment}.autoscaling_config.target_ongoing_requests"
    findings = lint_config(changed(path, target, config), FAST)
    assert [(finding.severity, finding.path) for finding in findings] == ([("warning", path)] if trapped else [])


def test_trap_3_a_target_that_a_policy_does_not_use_is_free() -> None:
    assert lint_config(changed(f"{CLASSIFIER}.autoscaling_config.target_ongoing_requests", 1), FAST) == []


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
    finding = found(f"{at}.policy_function", name)
    assert (finding.severity, finding.path) == ("error", f"{at}.policy_function")
    assert problem in finding.message


@pytest.mark.parametrize(
    "name", ["json:dumps", "json.dumps", "ray.serve.autoscaling_policy:default_autoscaling_policy"]
)
def test_trap_7_a_policy_that_loads(name: str) -> None:
    assert lint_config(changed(f"{CLASSIFIER}.autoscaling_config.policy.policy_function", name), FAST) == []


@pytest.mark.parametrize("value", [None, 3, "x", [], [3], {}, {"a": 3}, [[1]], True])
@pytest.mark.parametrize(
    "path", ["http_options", "applications", APPLICATION, PREPROCESSOR, f"{PREPROCESSOR}.autoscaling_config",
             f"{PREPROCESSOR}.ray_actor_options", f"{PREPROCESSOR}.autoscaling_config.policy", f"{APPLICATION}.args"]
)  # fmt: skip
def test_nonsense_is_found_or_fine_but_never_raises(path: str, value: object) -> None:
    config = copy.deepcopy(VALID)
    here: Any = config
    for step in steps(path)[:-1]:
        here = here[step]
    here[steps(path)[-1]] = value
    findings = lint_config(config, FAST)
    assert all(finding.path and finding.message for finding in findings)
    assert findings or not isinstance(value, int | str)


def test_every_message_says_what_to_do() -> None:
    config = changed(f"{PREPROCESSOR}.max_ongoing_requests", 3)
    config = changed(f"{CLASSIFIER}.max_ongoing_requests", 1, config)
    findings = lint_config(changed("http_options.port", "x", config), {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"})
    assert len(findings) >= 4
    assert all("; " in finding.message for finding in findings)


def test_ray_is_imported_with_the_variables_of_the_service() -> None:
    """In a process of its own: Ray Serve reads them once. The environment itself stays as it was."""
    code = (
        "import os; from serve_app.lint import lint_config\n"
        "lint_config({'applications': []}, {'RAY_SERVE_ENABLE_HA_PROXY': '1'})\n"
        "from ray.serve._private import constants\n"
        "assert constants.RAY_SERVE_ENABLE_HA_PROXY\n"
        "assert 'RAY_SERVE_ENABLE_HA_PROXY' not in os.environ\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_load(tmp_path: Path) -> None:
    text = "base: &base {port: 1}\nhttp_options: {<<: *base, port: 8000}\napplications: []\n"
    config = load_config(write(tmp_path, text))
    assert config == {"base": {"port": 1}, "http_options": {"port": 8000}, "applications": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"line 3: .*; correct it"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", r"line 4: key 'c' is there twice; correct it"),
        ("a: 1\na: 2\n", r"line 2: key 'a' is there twice"),
        ("a: !!python/object:os.system {}\n", r"line 1: .*constructor"),
        ("? [1]\n: 2\n", r"line 1: .*unhashable"),
        ("", "no keys at its top level; start from configs/local.yaml"),
        ("- 1\n", "no keys at its top level"),
        ("a: 1\n---\nb: 2\n", r"line 2: .*document"),
        (b"\xff\xfe\x00a", "not UTF-8"),
        (b"a: \x00", "config.yaml: .*correct it"),
    ],
)
def test_load_refuses(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_load_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; see configs/"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
