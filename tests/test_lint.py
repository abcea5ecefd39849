"""Unknown keys, refused values and shapes; the traps are in test_lint_traps.py, reading files in test_lint_load.py."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.local_service import ROOT
from serve_app.lint import lint_config, load_config
from tests.lint_helpers import APPLICATION, CLASSIFIER, FAST, PREPROCESSOR, VALID, changed, found, steps


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
    config = changed(f"{PREPROCESSOR}.ray_actor_options.resources", {"anything": 1})
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


def test_each_split_model_has_a_classifier_of_its_own() -> None:
    models = {"cats": {}, "dogs": {"placement": "colocated"}}
    config = changed(f"{APPLICATION}.args", {"placement": "split", "models": models})
    findings = lint_config(changed(f"{CLASSIFIER}.name", "Classifier-cats", config), FAST)
    assert findings == []
    [finding] = lint_config(changed(f"{CLASSIFIER}.name", "Classifier-dogs", config), FAST)
    assert (finding.path, finding.severity) == (f"{CLASSIFIER}.name", "error")
    assert "did you mean 'Classifier-cats'?" in finding.message


def test_a_preprocessor_may_change_its_models_while_they_run() -> None:
    models = {"cats": {}, "dogs": {"placement": "colocated"}}
    config = changed(f"{APPLICATION}.args", {"placement": "split", "models": models})
    config = changed(f"{CLASSIFIER}.name", "Classifier-cats", config)
    live = {"models": {"dogs": {"version": 2}, "cats": {"max_batch_size": 4}}}
    assert lint_config(changed(f"{PREPROCESSOR}.user_config", live, config), FAST) == []
    [finding] = lint_config(changed(f"{PREPROCESSOR}.user_config", {"models": {"cat": {}}}, config), FAST)
    assert (finding.path, finding.severity) == (f"{PREPROCESSOR}.user_config.models.cat", "error")


def test_other_applications_name_their_own_deployments() -> None:
    config = changed(f"{APPLICATION}.import_path", "other.app:build")
    config = changed(f"{PREPROCESSOR}.name", "Anything", changed(f"{APPLICATION}.args", {"any": 1}, config))
    assert lint_config(config, FAST) == []


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
