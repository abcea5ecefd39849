from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.local_service import ROOT
from serve_app.cli import main
from serve_app.errors import ConfigError
from serve_app.launch import FAST_INGRESS_ENV
from serve_app.lint import Finding, lint_config, load_config

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def cpu() -> dict[str, Any]:
    return load_config(ROOT / "configs" / "cpu.yaml")


def lint(change: Callable[[dict[str, Any]], object], env: dict[str, str] | None = None) -> list[Finding]:
    """Findings of cpu.yaml (Preprocessor first, then Classifier) after one change."""
    config = copy.deepcopy(cpu())
    change(config)
    return lint_config(config, FAST_INGRESS_ENV if env is None else env)


def app(config: dict[str, Any]) -> dict[str, Any]:
    return config["applications"][0]


def deployment(config: dict[str, Any], at: int) -> dict[str, Any]:
    return app(config)["deployments"][at]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize("env", [{}, FAST_INGRESS_ENV], ids=["stock", "fast"])
def test_our_own_configurations_are_clean(path: Path, env: dict[str, str]) -> None:
    assert lint_config(load_config(path), env) == []


UNKNOWN: list[tuple[Callable[[dict[str, Any]], object], str, str]] = [
    (lambda c: c.update(http_option={}), "http_option", "http_options"),
    (lambda c: c["http_options"].update(prot=1), "http_options.prot", "port"),
    (lambda c: c.update(grpc_options={"prot": 1}), "grpc_options.prot", "port"),
    (lambda c: c["logging_config"].update(log_levl="x"), "logging_config.log_levl", "log_level"),
    (lambda c: app(c).update(rout_prefix="/"), "applications[0].rout_prefix", "route_prefix"),
    (lambda c: app(c)["args"].update(placment="x"), "applications[0].args.placment", "placement"),
    (
        lambda c: deployment(c, 1).update(max_ongoing_requets=3),
        "applications[0].deployments[1].max_ongoing_requets",
        "max_ongoing_requests",
    ),
    (
        lambda c: deployment(c, 0)["ray_actor_options"].update(num_cpu=1),
        "applications[0].deployments[0].ray_actor_options.num_cpu",
        "num_cpus",
    ),
    (
        lambda c: deployment(c, 0)["autoscaling_config"].update(min_replica=2),
        "applications[0].deployments[0].autoscaling_config.min_replica",
        "min_replicas",
    ),
    (
        lambda c: deployment(c, 1).update(request_router_config={"initial_backof_s": 1}),
        "applications[0].deployments[1].request_router_config.initial_backof_s",
        "initial_backoff_s",
    ),
]


@pytest.mark.parametrize(("change", "path", "nearest"), UNKNOWN, ids=[path for _, path, _ in UNKNOWN])
def test_unknown_keys_are_errors_that_name_the_nearest(
    change: Callable[[dict[str, Any]], object], path: str, nearest: str
) -> None:
    [finding] = lint(change)
    assert (finding.severity, finding.path) == ("error", path)
    assert f"did you mean '{nearest}'" in finding.message


TRAPS: list[tuple[Callable[[dict[str, Any]], object], str, str, str]] = [
    (
        lambda c: deployment(c, 1)["autoscaling_config"].update(target_ongoing_requests=17),
        "error",
        "target_ongoing_requests",
        "above max_ongoing_requests (16)",
    ),
    (
        lambda c: deployment(c, 1)["autoscaling_config"].update(look_back_period_s=1),
        "error",
        "look_back_period_s",
        "longer than metrics_interval_s",
    ),
    (
        lambda c: deployment(c, 1)["autoscaling_config"].update(min_replicas=33),
        "error",
        "min_replicas",
        "above max_replicas",
    ),
    (lambda c: deployment(c, 1).update(num_replicas=2), "error", "num_replicas", "keep one"),
    (
        lambda c: deployment(c, 1).update(max_ongoing_requests=1, autoscaling_config=None),
        "error",
        "max_ongoing_requests",
        "chunks",
    ),
    (lambda c: deployment(c, 0).update(max_ongoing_requests=64), "", "", ""),
    (
        lambda c: deployment(c, 0).update(max_ongoing_requests=63, autoscaling_config=None),
        "warning",
        "max_ongoing_requests",
        "hides waiting requests",
    ),
    (
        lambda c: deployment(c, 0).update(request_router_config={"request_router_class": "x:Y"}),
        "error",
        "request_router_config",
        "behind HAProxy",
    ),
    (
        lambda c: app(c).update(runtime_env={"env_vars": {"RAY_SERVE_ENABLE_HA_PROXY": "1"}}),
        "error",
        "runtime_env.env_vars.RAY_SERVE_ENABLE_HA_PROXY",
        "when Ray starts",
    ),
    (
        lambda c: deployment(c, 0)["ray_actor_options"].update(
            runtime_env={"env_vars": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}}
        ),
        "error",
        "env_vars.RAY_SERVE_THROUGHPUT_OPTIMIZED",
        "every node",
    ),
    (lambda c: app(c).update(runtime_env={"working_dir": "."}), "error", "runtime_env.working_dir", "local://"),
    (lambda c: app(c).update(runtime_env={"working_dir": "local:///srv"}), "", "", ""),
    (lambda c: deployment(c, 1).update(name="Classifer"), "error", "deployments[1].name", "'Classifier'"),
    (lambda c: app(c)["args"].update(placement="colocated"), "error", "deployments[1].name", "no deployment of"),
    (
        lambda c: deployment(c, 1)["autoscaling_config"].update(policy={"policy_function": "no.such:policy"}),
        "error",
        "policy.policy_function",
        "cannot be imported",
    ),
    (
        lambda c: app(c).update(autoscaling_policy={"policy_function": "os:sep"}),
        "error",
        "autoscaling_policy.policy_function",
        "not callable",
    ),
    (lambda c: app(c).update(autoscaling_policy={"policy_function": "os.path:join"}), "", "", ""),
    (lambda c: app(c)["args"]["batching"].update(max_batch_size=446), "error", "environment", "MAX_MESSAGE_LENGTH"),
    (lambda c: app(c)["args"]["batching"].update(max_batch_size=445), "", "", ""),
]


@pytest.mark.parametrize(("change", "severity", "path", "said"), TRAPS)
def test_traps(change: Callable[[dict[str, Any]], object], severity: str, path: str, said: str) -> None:
    findings = lint(change)
    if not severity:
        assert findings == []
        return
    [finding] = findings
    assert finding.severity == severity
    assert finding.path.endswith(path)
    assert said in finding.message


def test_throughput_mode_needs_haproxy() -> None:
    [finding] = lint(lambda c: None, {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"})
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in finding.message
    assert lint(lambda c: None, {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}) == []


def test_the_message_limit_does_not_matter_by_reference() -> None:
    large: Callable[[dict[str, Any]], object] = lambda c: app(c)["args"]["batching"].update(max_batch_size=512)  # noqa: E731
    assert lint(large, {}) == []
    assert lint(large, {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}) != []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1"),
        ("applications: []\nport: 1\nport: 2\n", "'port' stands twice"),
        ("- a list", "configs/local.yaml"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml")


def test_the_command_prints_findings_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = str(CONFIGS[0]), tmp_path / "bad.yaml"
    bad.write_text("applications: []\nhtp_options: {}\n")
    assert main(["lint", good]) == 0
    assert main(["lint", good, str(bad)]) == 1
    assert capsys.readouterr().err.startswith(f"{bad}: error: htp_options: unknown key")
