"""Checks a Ray Serve configuration before Ray sees it: unknown keys, which Ray ignores, and known traps.

Everything is a `Finding` with the path of its key; errors stop a start, warnings are told and started with.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.errors import ConfigError
from serve_app.manifest import InputSpec
from serve_app.settings import Settings, nearest_key, parse_settings

OUR_APPLICATION = "serve_app.app:build"
CLUSTER_VARIABLES = (
    "RAY_SERVE_ENABLE_HA_PROXY",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS",
)
"""Every process of a cluster must agree on these, so they belong in the environment Ray is started in."""

MIN_INGRESS_ONGOING = 64
DEFAULT_TARGET_ONGOING = 2.0
DEFAULT_MAX_ONGOING = {"Preprocessor": 1000, "Classifier": 5}
"""What holds where the configuration is silent: the deployment's own value, or Ray's."""

DEFAULT_GRPC_MESSAGE_BYTES = 4 * 2**20
DEFAULT_HARD_STOP_S = 120.0

_ADVICE = {
    "num_replicas is not allowed": "remove num_replicas, or autoscaling_config",
    "remote URIs": "give a local:// or remote URI, or leave it out and install the code on every node",
    "must be greater than or equal to min_replicas": "raise max_replicas or lower min_replicas",
}
"""Part of a message of Ray's -> what to do about it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: an `error` keeps the service from starting as meant; a `warning` is a trap that may be on purpose.
        path: of the key, such as `applications[0].deployments[1].num_replicas`; `environment.NAME` for a variable.
        message: what is wrong and what to do.
    """

    severity: Literal["error", "warning"]
    path: str
    message: str


Findings = Iterator[Finding]


def load_config(path: Path) -> dict[str, Any]:
    """Reads a configuration file.

    Raises:
        ConfigError: no such file, not YAML (with the line), a key twice, or not a mapping.
    """
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; see configs/ for the ones that come with the service") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check the path and its permissions") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; give a YAML file") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {problem or 'not readable as YAML'}; correct it") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no keys at its top level; start from configs/local.yaml")
    return config


def lint_config(config: Mapping[str, Any], env: Mapping[str, str]) -> list[Finding]:
    """Everything wrong with `config` on nodes that have `env` in their environment; empty where nothing is.

    Imports `ray.serve`, which reads its variables once and for all, as they are in `env`; and the modules of policies.
    """
    ray_config, ray_schema = _ray_models(env)
    findings = [*_unknown_keys(config, ray_schema.ServeDeploySchema, "")]
    findings += _refused_by(ray_schema.ServeDeploySchema, config, "")
    findings += _environment(env)
    findings += _cluster_variables(_section(config, "controller_options"), "controller_options")
    for at, application in _items(config, "applications", ""):
        findings += _application(application, at, env, ray_config)
    return sorted(set(findings), key=findings.index)


def _application(application: Mapping[str, Any], at: str, env: Mapping[str, str], ray_config: Any) -> Findings:
    ours = application.get("import_path") == OUR_APPLICATION
    settings = None
    if ours:
        settings, problems = _settings(application.get("args"), at)
        yield from problems
    yield from _cluster_variables(application, at)
    policy = _section(application, "autoscaling_policy")
    yield from _unknown_keys(policy, ray_config.AutoscalingPolicy, f"{at}.autoscaling_policy")
    yield from _policy(policy, f"{at}.autoscaling_policy")
    for path, deployment in _items(application, "deployments", at):
        yield from _deployment(deployment, path, ray_config)
        if ours:
            yield from _our_deployment(deployment, path, env, settings)
    if settings is not None:
        yield from _chunks(settings, dict(env) | _env_vars(application), f"{at}.args.batching.max_batch_size")
        yield from _long_requests(settings.limits.max_timeout_ms, env, f"{at}.args.limits.max_timeout_ms")


def _settings(args: object, at: str) -> tuple[Settings | None, list[Finding]]:
    if args is not None and not isinstance(args, Mapping):
        return None, []  # Ray says so
    try:
        return parse_settings(args or {}), []
    except ConfigError as error:
        lines = (line.partition(": ") for line in str(error).splitlines())
        return None, [Finding("error", f"{at}.{path}", message) for path, _, message in lines]


def _deployment(deployment: Mapping[str, Any], at: str, ray_config: Any) -> Findings:
    """What is wrong with a deployment of any application."""
    yield from _cluster_variables(_section(deployment, "ray_actor_options"), f"{at}.ray_actor_options")
    scaling, path = _section(deployment, "autoscaling_config"), f"{at}.autoscaling_config"
    if not scaling:
        return
    policy = _section(scaling, "policy")
    yield from _policy(policy, f"{path}.policy")
    # The policy is left out: Ray would import it here, and let its exceptions through.
    yield from _refused_by(
        ray_config.AutoscalingConfig, {key: value for key, value in scaling.items() if key != "policy"}, path
    )
    interval_s, period_s = _number(scaling, "metrics_interval_s", 10), _number(scaling, "look_back_period_s", 30)
    if period_s <= interval_s:
        yield Finding(
            "warning",
            f"{path}.look_back_period_s",
            f"{period_s:g} s hold no more than one report, which comes every {interval_s:g} s; "
            "set it to several times metrics_interval_s",
        )


def _our_deployment(
    deployment: Mapping[str, Any], at: str, env: Mapping[str, str], settings: Settings | None
) -> Findings:
    """What is wrong with a deployment of this service; units are requests (Preprocessor) and chunks (Classifier)."""
    name = str(deployment.get("name"))
    placement = settings.placement if settings else "split"
    names = ["Preprocessor", "Classifier"] if placement == "split" else ["Preprocessor"]
    if name not in names:
        hint = "; the Classifier exists with args.placement: split only" if name == "Classifier" else ""
        yield Finding("error", f"{at}.name", f"no deployment {name!r}{hint}; {nearest_key(name, names)}")
        return
    most = _number(deployment, "max_ongoing_requests", DEFAULT_MAX_ONGOING[name])
    if name == "Classifier" and most < 2:
        yield Finding(
            "error", f"{at}.max_ongoing_requests", "no chunk can wait while one is classified; set it to 2 or more"
        )
    if name == "Preprocessor" and _on(env, "RAY_SERVE_ENABLE_HA_PROXY"):
        yield from _ingress(deployment, at, most)
    scaling = _section(deployment, "autoscaling_config")
    if scaling or deployment.get("num_replicas") == "auto":
        yield from _target(name, scaling, at, most, settings)


def _ingress(deployment: Mapping[str, Any], at: str, most: float) -> Findings:
    if most < MIN_INGRESS_ONGOING:
        yield Finding(
            "warning",
            f"{at}.max_ongoing_requests",
            f"under HAProxy, requests beyond {most:g} wait where neither admission nor autoscaling sees them; set it "
            "to hundreds",
        )
    if "request_router_class" in _section(deployment, "request_router_config"):
        yield Finding(
            "error",
            f"{at}.request_router_config.request_router_class",
            "HAProxy routes to the ingress, and Ray rejects a router of its own there; remove it",
        )


def _target(name: str, scaling: Mapping[str, Any], at: str, most: float, settings: Settings | None) -> Findings:
    path = f"{at}.autoscaling_config.target_ongoing_requests"
    target = _number(scaling, "target_ongoing_requests", DEFAULT_TARGET_ONGOING)
    if target > most:
        yield Finding(
            "error",
            path,
            f"{target:g} is above max_ongoing_requests ({most:g}), so replicas are never added; lower it or raise that",
        )
    elif settings is not None and not scaling.get("policy"):
        least = settings.batching.max_batch_size if name == "Preprocessor" else 2
        unit = "requests, one full chunk" if name == "Preprocessor" else "chunks, one classified and one forming"
        if target < least:
            yield Finding(
                "warning",
                path,
                f"{target:g} adds replicas before a batch can fill; set it to at least {least} ({unit})",
            )


def _chunks(settings: Settings, env: Mapping[str, str], path: str) -> Findings:
    """A chunk is one message to the Classifier, which gRPC cuts off at a limit that actor calls do not have."""
    grpc = _on(env, "RAY_SERVE_USE_GRPC_BY_DEFAULT") or (
        "RAY_SERVE_USE_GRPC_BY_DEFAULT" not in env and _on(env, "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    )
    if settings.placement != "split" or not grpc:
        return
    variable = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    limit = _number(env, variable, DEFAULT_GRPC_MESSAGE_BYTES)
    spec = InputSpec()
    largest = settings.batching.max_batch_size * spec.height * spec.width * 3
    if largest >= limit:
        yield Finding(
            "error",
            path,
            f"a chunk of {settings.batching.max_batch_size} pictures is {largest} bytes, a message between replicas at "
            f"most {limit:g}; set {variable} above it on every node, or lower max_batch_size",
        )


def _environment(env: Mapping[str, str]) -> Findings:
    forced = env.get("RAY_SERVE_ENABLE_DIRECT_INGRESS", "1") == "1"
    if _on(env, "RAY_SERVE_THROUGHPUT_OPTIMIZED") and not _on(env, "RAY_SERVE_ENABLE_HA_PROXY") and forced:
        yield Finding(
            "warning",
            "environment.RAY_SERVE_THROUGHPUT_OPTIMIZED",
            "without HAProxy only the head node gets a proxy, and worker pods are never ready; set "
            "RAY_SERVE_ENABLE_HA_PROXY=1 too",
        )


def _long_requests(timeout_ms: float, env: Mapping[str, str], path: str) -> Findings:
    stop_s = _number(env, "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", DEFAULT_HARD_STOP_S)
    if _on(env, "RAY_SERVE_ENABLE_HA_PROXY") and timeout_ms > stop_s * 1000:
        yield Finding(
            "warning",
            path,
            f"HAProxy cuts requests off {stop_s:g} s after any change of replicas; lower it, or raise "
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S on every node",
        )


def _cluster_variables(section: Mapping[str, Any], at: str) -> Findings:
    for name in CLUSTER_VARIABLES:
        if name in _env_vars(section):
            yield Finding(
                "error",
                f"{at}.runtime_env.env_vars.{name}",
                "reaches some of Ray's processes only; set it in the environment that Ray is started in, on every node",
            )


def _policy(policy: Mapping[str, Any], at: str) -> Findings:
    """The controller runs a policy for every application: one that does not load stops the scaling of all."""
    name = policy.get("policy_function")
    if name is None:
        return
    problem = _import_problem(str(name))
    if problem:
        yield Finding(
            "error",
            f"{at}.policy_function",
            f"{name}: {problem}; name an installed function or class as package.module:name",
        )


def _import_problem(name: str) -> str | None:
    separator = ":" if ":" in name else "."
    module, _, attribute = name.rpartition(separator)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a policy's module raises, it would raise in the controller
        return f"{type(error).__name__}: {error}"
    return None if callable(found) else "not callable"


def _unknown_keys(value: object, model: type[BaseModel], at: str) -> Findings:
    """Keys that `model`, and the models inside it, do not have."""
    if not isinstance(value, Mapping):
        return  # a wrong type is found by validation
    for key, inner in value.items():
        path = f"{at}.{key}".lstrip(".")
        field = model.model_fields.get(key)
        if field is None:
            yield Finding(
                "error", path, f"unknown key, which Ray ignores; {nearest_key(str(key), [*model.model_fields])}"
            )
        elif inner_model := _model_in(field.annotation):
            yield from _unknown_keys(inner, inner_model, path)
            if isinstance(inner, Sequence):
                for index, item in enumerate(inner):
                    yield from _unknown_keys(item, inner_model, f"{path}[{index}]")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as `Optional[Union[dict, Model]]` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _refused_by(model: type[BaseModel], value: object, at: str) -> Findings:
    """What Ray's own validation would stop the start for, other than unknown keys."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray calls metrics_interval_s deprecated, and has nothing in its place
            model.model_validate(value)
    except ValidationError as error:
        for problem in error.errors():
            if problem["type"] != "extra_forbidden":
                message = problem["msg"].removeprefix("Value error, ").rstrip(". ")
                yield Finding("error", _path(at, problem["loc"], value), f"{message}; {_advice(message)}")


def _advice(message: str) -> str:
    return next((advice for part, advice in _ADVICE.items() if part in message), "correct it")


def _path(at: str, location: Sequence[int | str], value: Any) -> str:
    """Dotted path; pydantic also names the types of a union, which are no part of it."""
    for step in location:
        if isinstance(step, int):
            at, value = f"{at}[{step}]", value[step]
        elif step.isidentifier():
            at, value = f"{at}.{step}".lstrip("."), value.get(step) if isinstance(value, Mapping) else None
    return at or "file"


def _items(section: Mapping[str, Any], key: str, at: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    items = section.get(key)
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, Mapping):
            yield f"{at}.{key}[{index}]".lstrip("."), item


def _section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _env_vars(section: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_section(_section(section, "runtime_env"), "env_vars"))


def _number(mapping: Mapping[str, Any], key: str, default: float) -> float:
    """The value at `key`; `default` where there is none, or none that is a number: validation finds that."""
    try:
        return float(mapping.get(key, default))
    except (TypeError, ValueError):
        return default


def _on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name) == "1"


def _ray_models(env: Mapping[str, str]) -> tuple[Any, Any]:
    if "ray.serve" in sys.modules:
        return importlib.import_module("ray.serve.config"), importlib.import_module("ray.serve.schema")
    with _variables(env):
        return importlib.import_module("ray.serve.config"), importlib.import_module("ray.serve.schema")


@contextmanager
def _variables(env: Mapping[str, str]) -> Iterator[None]:
    """Ray Serve freezes its variables at import: they must not be frozen without those the service is to start with."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in env.items() if name.startswith("RAY_")})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"key {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
