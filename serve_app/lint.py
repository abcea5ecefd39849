"""Checks a Serve configuration for what Ray accepts silently: unknown keys, and settings that defeat each other."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from serve_app.errors import ConfigError
from serve_app.settings import Settings, nearest_key, parse_settings

OUR_IMPORT_PATH = "serve_app.app:build"
CLUSTER_ENV = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_DIRECT_INGRESS")
"""Read when Ray starts, on every node; in a runtime_env they do nothing, or split the cluster in two modes."""

DEFAULT_MAX_ONGOING = 5
DEFAULT_GRPC_BYTES = 4 * 2**20
PICTURE_BYTES = 224 * 224 * 3
ENOUGH_FOR_INGRESS = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem. `path` is of the key in the file; `message` ends in what to do. Errors stop a start."""

    severity: Literal["error", "warning"]
    path: str
    message: str


def load_config(path: Path) -> dict[str, Any]:
    """Reads a configuration file.

    Raises:
        ConfigError: missing, not YAML (names the line), a key given twice, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}; mend it") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a Serve configuration; start from configs/local.yaml")
    return content


def lint_config(config: Mapping[str, Any], env: Mapping[str, str]) -> list[Finding]:
    """Everything that is wrong or suspicious, in the order of the file.

    Args:
        config: as `load_config` returned it.
        env: environment that Ray will be started with.
    """
    findings = list(_unknown_keys(config, ServeDeploySchema, ""))
    findings += _environment(env)
    for at, application in enumerate(_dicts(config.get("applications"))):
        findings += _application(application, f"applications[{at}]", env)
    return findings


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _error(path: str, message: str) -> Finding:
    return Finding("error", path, message)


def _warning(path: str, message: str) -> Finding:
    return Finding("warning", path, message)


def _unknown_keys(values: Mapping[str, Any], schema: type[BaseModel], path: str) -> Iterator[Finding]:
    for key, value in values.items():
        here = f"{path}.{key}" if path else str(key)
        field = schema.model_fields.get(key)
        if field is None:
            yield _error(
                here, f"unknown key, which Ray would ignore; {nearest_key(str(key), list(schema.model_fields))}"
            )
            continue
        inner = _model_in(field.annotation)
        if inner is not None:
            for at, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, dict):
                    yield from _unknown_keys(item, inner, f"{here}[{at}]" if isinstance(value, list) else here)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model somewhere inside `Optional[List[Union[Dict, Model]]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _environment(env: Mapping[str, str]) -> Iterator[Finding]:
    throughput, proxy, direct = (env.get(f"RAY_SERVE_{name}") for name in _SWITCHES)
    if throughput == "1" and proxy != "1" and direct != "0":
        yield _warning(
            "environment",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED=1 without HAProxy leaves every node but the head without a proxy; "
            "set RAY_SERVE_ENABLE_HA_PROXY=1 too",
        )


_SWITCHES = ("THROUGHPUT_OPTIMIZED", "ENABLE_HA_PROXY", "ENABLE_DIRECT_INGRESS")


def _application(application: Mapping[str, Any], path: str, env: Mapping[str, str]) -> Iterator[Finding]:
    yield from _runtime_env(application.get("runtime_env"), f"{path}.runtime_env")
    settings = None
    if application.get("import_path") == OUR_IMPORT_PATH:
        try:
            settings = parse_settings(_dict(application.get("args")))
        except ConfigError as error:
            for line in str(error).splitlines():
                where, _, message = line.partition(": ")
                yield _error(f"{path}.{where}", message)
    policy = _dict(application.get("autoscaling_policy"))
    yield from _policy(policy, f"{path}.autoscaling_policy")
    deployments = _dicts(application.get("deployments"))
    for at, deployment in enumerate(deployments):
        yield from _deployment(deployment, f"{path}.deployments[{at}]")
    if settings is not None:
        yield from _our_deployments(deployments, settings, f"{path}.deployments", env)


def _runtime_env(value: Any, path: str) -> Iterator[Finding]:
    runtime_env = _dict(value)
    for name in _dict(runtime_env.get("env_vars")):
        if name in CLUSTER_ENV:
            yield _error(f"{path}.env_vars.{name}", "is read when Ray starts; set it on every node before that")
    folder = runtime_env.get("working_dir")
    if isinstance(folder, str) and "://" not in folder:
        yield _error(f"{path}.working_dir", "must be a remote or local:// URI; leave it out on one machine")


def _deployment(deployment: Mapping[str, Any], path: str) -> Iterator[Finding]:
    options = _dict(deployment.get("ray_actor_options"))
    yield from _runtime_env(options.get("runtime_env"), f"{path}.ray_actor_options.runtime_env")
    scaling = deployment.get("autoscaling_config")
    if not isinstance(scaling, dict):
        return
    if isinstance(deployment.get("num_replicas"), int):
        yield _error(f"{path}.num_replicas", "stands beside autoscaling_config; keep one of the two")
    yield from _scaling(scaling, deployment.get("max_ongoing_requests", DEFAULT_MAX_ONGOING), path)
    yield from _policy(_dict(scaling.get("policy")), f"{path}.autoscaling_config.policy")


def _scaling(scaling: Mapping[str, Any], max_ongoing: Any, path: str) -> Iterator[Finding]:
    def value(key: str) -> float:
        given = scaling.get(key, AutoscalingConfig.model_fields[key].default)
        return given if isinstance(given, int | float) else 0.0

    path = f"{path}.autoscaling_config"
    target = value("target_ongoing_requests")
    if isinstance(max_ongoing, int) and target > max_ongoing:
        yield _error(
            f"{path}.target_ongoing_requests",
            f"is above max_ongoing_requests ({max_ongoing}), so that nothing would ever scale; lower it or raise that",
        )
    if value("look_back_period_s") <= value("metrics_interval_s"):
        yield _error(
            f"{path}.look_back_period_s",
            "must be longer than metrics_interval_s, or every window may be empty; raise it",
        )
    if value("min_replicas") > value("max_replicas"):
        yield _error(f"{path}.min_replicas", "is above max_replicas; lower it")


def _policy(policy: Mapping[str, Any], path: str) -> Iterator[Finding]:
    name = policy.get("policy_function")
    if name is None:
        return
    module, _, attribute = str(name).replace(":", ".").rpartition(".")
    try:
        found = callable(getattr(importlib.import_module(module), attribute))
    except Exception as error:  # whatever the user's module does on import
        yield _error(
            f"{path}.policy_function", f"{name!r} cannot be imported ({error}); a policy that fails stops all apps"
        )
        return
    if not found:
        yield _error(f"{path}.policy_function", f"{name!r} is not callable; name a function or a class")


def _our_deployments(
    deployments: list[dict[str, Any]], settings: Settings, path: str, env: Mapping[str, str]
) -> Iterator[Finding]:
    valid = ["Preprocessor", "Classifier"] if settings.placement == "split" else ["Preprocessor"]
    for at, deployment in enumerate(deployments):
        name, here = str(deployment.get("name")), f"{path}[{at}]"
        if name not in valid:
            yield _error(
                f"{here}.name",
                f"{name!r} is no deployment of placement {settings.placement}; {nearest_key(name, valid)}",
            )
        elif name == "Preprocessor":
            yield from _preprocessor(deployment, here, env)
        else:
            yield from _classifier(deployment, here)
    if settings.placement == "split":
        yield from _transport(settings, env)


def _preprocessor(deployment: Mapping[str, Any], path: str, env: Mapping[str, str]) -> Iterator[Finding]:
    max_ongoing = deployment.get("max_ongoing_requests", 1000)
    if isinstance(max_ongoing, int) and max_ongoing < ENOUGH_FOR_INGRESS:
        yield _warning(
            f"{path}.max_ongoing_requests",
            f"{max_ongoing} hides waiting requests from autoscaling and admission; set some hundreds, the application "
            "bounds its own work (args.limits.max_queued_pictures)",
        )
    router = _dict(deployment.get("request_router_config")).get("request_router_class")
    if router and env.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        yield _error(f"{path}.request_router_config", "is refused for the ingress behind HAProxy; remove it")


def _classifier(deployment: Mapping[str, Any], path: str) -> Iterator[Finding]:
    max_ongoing = deployment.get("max_ongoing_requests", DEFAULT_MAX_ONGOING)
    if isinstance(max_ongoing, int) and max_ongoing < 2:
        yield _error(
            f"{path}.max_ongoing_requests",
            "a classifier takes chunks: with fewer than 2 at once none can gather while one runs; raise it",
        )


def _transport(settings: Settings, env: Mapping[str, str]) -> Iterator[Finding]:
    default = env.get("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0")
    if env.get("RAY_SERVE_USE_GRPC_BY_DEFAULT", default) != "1":
        return
    most = int(env.get("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", DEFAULT_GRPC_BYTES))
    chunk = settings.batching.max_batch_size * PICTURE_BYTES
    if chunk > most:
        yield _error(
            "environment",
            f"a chunk of {settings.batching.max_batch_size} pictures has {chunk} bytes, a message between replicas may "
            f"have {most}; raise RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH on every node, or lower max_batch_size",
        )
