"""Known traps: values that Ray takes and that do not do what they seem to."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from serve_app.errors import ConfigError
from serve_app.lint.finding import Finding, Findings, env_vars, is_on, number, section
from serve_app.lint.keys import but_policy, refused_by
from serve_app.lint.scaling import has_policy
from serve_app.manifest import InputSpec
from serve_app.settings import Settings, classifier_deployment, nearest_key, parse_live, parse_live_models, per_model

CLUSTER_VARIABLES = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_DIRECT_INGRESS")
"""Every process of a cluster must agree on these, so they belong in the environment Ray is started in."""

MIN_INGRESS_ONGOING = 64
DEFAULT_TARGET_ONGOING = 2.0
DEFAULT_MAX_ONGOING = {"Preprocessor": 1000, "Classifier": 5}
"""What holds where the configuration is silent: the deployment's own value, or Ray's."""

DEFAULT_GRPC_MESSAGE_BYTES = 4 * 2**20
DEFAULT_HARD_STOP_S = 120.0


def environment(env: Mapping[str, str]) -> Findings:
    """The throughput switches alone leave every node but the head without a proxy."""
    forced = env.get("RAY_SERVE_ENABLE_DIRECT_INGRESS", "1") == "1"
    if is_on(env, "RAY_SERVE_THROUGHPUT_OPTIMIZED") and not is_on(env, "RAY_SERVE_ENABLE_HA_PROXY") and forced:
        yield Finding(
            "warning",
            "environment.RAY_SERVE_THROUGHPUT_OPTIMIZED",
            "without HAProxy only the head node gets a proxy, and worker pods are never ready; set "
            "RAY_SERVE_ENABLE_HA_PROXY=1 too",
        )


def cluster_variables(parent: Mapping[str, Any], at: str) -> Findings:
    """Variables of the whole cluster in the `runtime_env` of a part of it."""
    for name in CLUSTER_VARIABLES:
        if name in env_vars(parent):
            yield Finding(
                "error",
                f"{at}.runtime_env.env_vars.{name}",
                "reaches some of Ray's processes only; set it in the environment that Ray is started in, on every node",
            )


def any_deployment(deployment: Mapping[str, Any], at: str, ray_config: Any) -> Findings:
    """What is wrong with a deployment of any application."""
    yield from cluster_variables(section(deployment, "ray_actor_options"), f"{at}.ray_actor_options")
    scaling, path = section(deployment, "autoscaling_config"), f"{at}.autoscaling_config"
    if not scaling:
        return
    yield from policy_loads(scaling.get("policy"), f"{path}.policy")
    yield from refused_by(ray_config.AutoscalingConfig, but_policy(scaling), path)
    interval_s, period_s = number(scaling, "metrics_interval_s", 10), number(scaling, "look_back_period_s", 30)
    if period_s <= interval_s:
        yield Finding(
            "warning",
            f"{path}.look_back_period_s",
            f"{period_s:g} s hold no more than one report, which comes every {interval_s:g} s; "
            "set it to several times metrics_interval_s",
        )


def deployments_of(settings: Settings | None) -> list[str]:
    """Of this service; where nobody knows, those of a single model."""
    if settings is None:
        return ["Preprocessor", "Classifier"]
    split = [name for name, one in per_model(settings).items() if one.placement == "split"]
    return ["Preprocessor", *(classifier_deployment(name) for name in split)]


def _model_of(deployment: str, settings: Settings) -> Settings:
    """The model that a deployment is sized by: its own, or the first."""
    models = per_model(settings)
    own = [one for name, one in models.items() if classifier_deployment(name) == deployment]
    return (own or list(models.values()))[0]


def our_deployment(
    deployment: Mapping[str, Any], at: str, env: Mapping[str, str], settings: Settings | None
) -> Findings:
    """What is wrong with a deployment of this service; units are requests (Preprocessor) and chunks (Classifier)."""
    name = str(deployment.get("name"))
    names = deployments_of(settings)
    if name not in names:
        hint = "; a Classifier exists with placement: split only" if name.startswith("Classifier") else ""
        yield Finding("error", f"{at}.name", f"no deployment {name!r}{hint}; {nearest_key(name, names)}")
        return
    most = number(deployment, "max_ongoing_requests", DEFAULT_MAX_ONGOING[name.partition("-")[0]])
    if name != "Preprocessor" and most < 2:
        yield Finding(
            "error", f"{at}.max_ongoing_requests", "no chunk can wait while one is classified; set it to 2 or more"
        )
    if name == "Preprocessor" and is_on(env, "RAY_SERVE_ENABLE_HA_PROXY"):
        yield from _ingress(deployment, at, most)
    if settings is not None:
        yield from _live(deployment.get("user_config"), f"{at}.user_config", name, settings)


def _live(user_config: object, at: str, deployment: str, settings: Settings) -> Findings:
    if user_config is not None and not isinstance(user_config, Mapping):
        return  # Ray says so
    try:
        if deployment == "Preprocessor":
            parse_live_models(user_config, per_model(settings))
        else:
            parse_live(user_config, _model_of(deployment, settings))
    except ConfigError as error:
        for line in str(error).splitlines():
            path, _, message = line.partition(": ")
            yield Finding("error", f"{at}{path.removeprefix('user_config')}", message)


def request_target(deployment: Mapping[str, Any], at: str, settings: Settings | None) -> Findings:
    """What Ray's own policy goes by; any other has a measure of its own."""
    name, scaling = str(deployment.get("name")), section(deployment, "autoscaling_config")
    is_scaled = bool(scaling) or deployment.get("num_replicas") == "auto"
    if name not in deployments_of(settings) or not is_scaled or has_policy(scaling, "policy"):
        return
    path = f"{at}.autoscaling_config.target_ongoing_requests"
    most = number(deployment, "max_ongoing_requests", DEFAULT_MAX_ONGOING[name.partition("-")[0]])
    target = number(scaling, "target_ongoing_requests", DEFAULT_TARGET_ONGOING)
    if target > most:
        yield Finding(
            "error",
            path,
            f"{target:g} is above max_ongoing_requests ({most:g}), so replicas are never added; lower it or raise that",
        )
    elif settings is not None:
        least = _model_of(name, settings).batching.max_batch_size if name == "Preprocessor" else 2
        unit = "requests, one full chunk" if name == "Preprocessor" else "chunks, one classified and one forming"
        if target < least:
            yield Finding(
                "warning",
                path,
                f"{target:g} adds replicas before a batch can fill; set it to at least {least} ({unit})",
            )


def policy_loads(policy: object, at: str) -> Findings:
    """The controller runs a policy for every application: one that does not load stops the scaling of all."""
    if policy is not None and not isinstance(policy, Mapping):
        yield Finding("error", at, "not a mapping; write policy_function: package.module:name below it")
        return
    name = (policy or {}).get("policy_function")
    if name is None:
        return
    problem = import_problem(str(name))
    if problem:
        yield Finding(
            "error",
            f"{at}.policy_function",
            f"{name}: {problem}; name an installed function or class as package.module:name",
        )


def chunks(settings: Settings, env: Mapping[str, str], at: str) -> Findings:
    """A chunk is one message to the Classifier, which gRPC cuts off at a limit that actor calls do not have."""
    grpc = is_on(env, "RAY_SERVE_USE_GRPC_BY_DEFAULT") or (
        "RAY_SERVE_USE_GRPC_BY_DEFAULT" not in env and is_on(env, "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    )
    if not grpc:
        return
    variable = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    limit = number(env, variable, DEFAULT_GRPC_MESSAGE_BYTES)
    spec = InputSpec()
    for name, one in per_model(settings).items():
        largest = one.batching.max_batch_size * spec.height * spec.width * 3
        if one.placement == "split" and largest >= limit:
            own = bool(name) and "max_batch_size" in settings.models[name].batching.model_fields_set
            yield Finding(
                "error",
                f"{at}.models.{name}.batching.max_batch_size" if own else f"{at}.batching.max_batch_size",
                f"a chunk of {one.batching.max_batch_size} pictures is {largest} bytes, a message between replicas at "
                f"most {limit:g}; set {variable} above it on every node, or lower max_batch_size",
            )


def long_requests(timeout_ms: float, env: Mapping[str, str], path: str) -> Findings:
    """Requests that may be in work for longer than an HAProxy process lives after a reload."""
    stop_s = number(env, "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", DEFAULT_HARD_STOP_S)
    if is_on(env, "RAY_SERVE_ENABLE_HA_PROXY") and timeout_ms > stop_s * 1000:
        yield Finding(
            "warning",
            path,
            f"HAProxy cuts requests off {stop_s:g} s after any change of replicas; lower it, or raise "
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S on every node",
        )


def _ingress(deployment: Mapping[str, Any], at: str, most: float) -> Findings:
    if most < MIN_INGRESS_ONGOING:
        yield Finding(
            "warning",
            f"{at}.max_ongoing_requests",
            f"under HAProxy, requests beyond {most:g} wait where neither admission nor autoscaling sees them; set it "
            "to hundreds",
        )
    if "request_router_class" in section(deployment, "request_router_config"):
        yield Finding(
            "error",
            f"{at}.request_router_config.request_router_class",
            "HAProxy routes to the ingress, and Ray rejects a router of its own there; remove it",
        )


def import_problem(name: str) -> str | None:
    """Why `package.module:name` is nothing that can be called; None where it is."""
    separator = ":" if ":" in name else "."
    module, _, attribute = name.rpartition(separator)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a policy's module raises, it would raise in the controller
        return f"{type(error).__name__}: {error}"
    return None if callable(found) else "not callable"
