"""Our autoscaling policies in a configuration: where they are named, their arguments, and what Ray would add to them.

Policies are known by name here, not imported: this package is below theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.errors import ConfigError
from serve_app.lint.finding import Finding, Findings, items, number, section
from serve_app.settings import nearest_key, parse_goal

STAGE, PIPELINE = "StagePolicy", "PipelinePolicy"
PATHS = {
    f"{module}.{name}": name
    for module in ("serve_app.autoscaling", "serve_app.autoscaling.policies")
    for name in (STAGE, PIPELINE)
}
DEFAULT_ORDER = ("Preprocessor", "Classifier")
"""Stages of a `PipelinePolicy` that names none."""

RAY_POLICY = "ray.serve.autoscaling_policy.default_autoscaling_policy"
RAY_DELAYS_S = {"upscale_delay_s": 30.0, "downscale_delay_s": 600.0, "downscale_to_zero_delay_s": 0.0}
RAY_FACTORS = ("upscaling_factor", "downscaling_factor")
RAY_METRICS_INTERVAL_S = 10.0
"""What holds where the configuration is silent."""

MAX_METRICS_INTERVAL_S = 2.0


def has_policy(parent: Mapping[str, Any], key: str) -> bool:
    """Whether a policy other than Ray's own is named at `key`."""
    name = section(parent, key).get("policy_function")
    return name is not None and _dotted(name) != RAY_POLICY


def scaling_policies(application: Mapping[str, Any], at: str, names: Sequence[str] | None) -> Findings:
    """What is wrong with the policies of an application.

    Args:
        application: of the configuration.
        at: its path.
        names: the deployments it has; None where only its code knows.
    """
    policy, path = section(application, "autoscaling_policy"), f"{at}.autoscaling_policy"
    kind = _ours(policy)
    if kind == STAGE:
        yield Finding(
            "error",
            f"{path}.policy_function",
            f"{STAGE} scales one deployment; name it in the deployment's autoscaling_config.policy, or {PIPELINE} here",
        )
    elif kind == PIPELINE:
        yield from _pipeline(policy, f"{path}.policy_kwargs", names)
        yield from _stages(application, at, _order(policy), names)
    for where, deployment in items(application, "deployments", at):
        scaling, scaling_at = section(deployment, "autoscaling_config"), f"{where}.autoscaling_config"
        yield from _deployment(scaling, scaling_at)
        if has_policy(application, "autoscaling_policy") and has_policy(scaling, "policy"):
            yield Finding(
                "warning", f"{scaling_at}.policy", "Ray ignores it: the application has a policy; remove one of the two"
            )


def _dotted(name: object) -> str:
    """Ray takes `package.module:name` and `package.module.name`."""
    return str(name).replace(":", ".")


def _ours(policy: Mapping[str, Any]) -> str | None:
    return PATHS.get(_dotted(policy.get("policy_function")))


def _deployment(scaling: Mapping[str, Any], at: str) -> Findings:
    policy = section(scaling, "policy")
    kind = _ours(policy)
    if kind == PIPELINE:
        yield Finding(
            "error",
            f"{at}.policy.policy_function",
            f"{PIPELINE} scales the stages of an application; name it in the application's autoscaling_policy, or "
            f"{STAGE} here",
        )
    elif kind == STAGE:
        yield from _goal(policy.get("policy_kwargs", {}), f"{at}.policy.policy_kwargs")
        yield from _added_by_ray(scaling, at)


def _pipeline(policy: Mapping[str, Any], at: str, names: Sequence[str] | None) -> Findings:
    kwargs = policy.get("policy_kwargs", {})
    if not isinstance(kwargs, Mapping):
        yield Finding("error", at, "not a mapping; write order and stages below it")
        return
    for key in kwargs:
        if key not in ("order", "stages"):
            yield Finding("error", f"{at}.{key}", f"unknown key; {nearest_key(str(key), ['order', 'stages'])}")
    order = _order(policy)
    if order is None:
        yield Finding(
            "error", f"{at}.order", "not a list of deployments, each once; list them in the order a picture meets them"
        )
        return
    known = None if names is None else [*dict.fromkeys([*DEFAULT_ORDER, *names])]  # colocated has no Classifier
    for place, name in enumerate(order):
        if known is not None and name not in known:
            yield Finding("error", f"{at}.order[{place}]", f"no deployment {name!r}; {nearest_key(name, known)}")
    allowed = [*order, *(one for name in order for one in _side_by_side(name, names))]
    yield from _goals(kwargs.get("stages") or {}, f"{at}.stages", allowed)


def _goals(stages: object, at: str, order: list[str]) -> Findings:
    if not isinstance(stages, Mapping):
        yield Finding("error", at, "not a mapping; write the deployments below it, and their goals below them")
        return
    for name, goal in stages.items():
        if name in order:
            yield from _goal(goal, f"{at}.{name}")
        else:
            yield Finding("error", f"{at}.{name}", f"no such stage in order; {nearest_key(str(name), order)}")


def _order(policy: Mapping[str, Any]) -> list[str] | None:
    """The stages of a pipeline; None where they are not a list of different names."""
    order = section(policy, "policy_kwargs").get("order", list(DEFAULT_ORDER))
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        return None
    return order if len(set(order)) == len(order) > 0 else None


def _stages(
    application: Mapping[str, Any], at: str, order: Sequence[str] | None, names: Sequence[str] | None
) -> Findings:
    """The deployments a pipeline is to scale. Those that another application leaves out may be scaled in its code."""
    listed = {
        str(deployment.get("name")): (where, deployment) for where, deployment in items(application, "deployments", at)
    }
    stages = [one for name in order or () for one in (_side_by_side(name, names) or [name])]
    for name in stages:
        where, deployment = listed.get(name, (f"{at}.deployments", {}))
        scaling = section(deployment, "autoscaling_config")
        if scaling or deployment.get("num_replicas") == "auto":
            yield from _added_by_ray(scaling, f"{where}.autoscaling_config")
        elif names is not None and name in names:
            yield Finding(
                "warning", where, f"{PIPELINE} does not scale {name}, which has no autoscaling_config; give it one"
            )


def _side_by_side(name: str, names: Sequence[str] | None) -> list[str]:
    """Classifiers of several models, which stand at the place of `Classifier`."""
    return [one for one in names or () if name == "Classifier" and one.startswith("Classifier-")]


def _goal(fields: object, at: str) -> Findings:
    if not isinstance(fields, Mapping):
        yield Finding("error", at, "not a mapping; write the fields of a goal below it, such as keep_s: 60")
        return
    try:
        parse_goal(fields)
    except ConfigError as error:
        for line in str(error).splitlines():
            path, _, message = line.partition(": ")
            place = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path.removeprefix("policy_kwargs"))
            yield Finding("error", at + place, message if ";" in message else f"{message}; correct it")


def _added_by_ray(scaling: Mapping[str, Any], at: str) -> Findings:
    """Ray applies its own delays and factors to what a policy asks for, and hands it reports that are so old."""
    for key, default in RAY_DELAYS_S.items():
        delay_s = number(scaling, key, default)
        if delay_s != 0:
            absent = "" if key in scaling else " by default"
            yield Finding(
                "warning", f"{at}.{key}", f"{delay_s:g} s{absent}, added on top of the policy's own; set it to 0"
            )
    for key in RAY_FACTORS:
        factor = number(scaling, key, 1.0)
        if factor != 1:
            yield Finding("warning", f"{at}.{key}", f"{factor:g} times what the policy asks for; remove it")
    interval_s = number(scaling, "metrics_interval_s", RAY_METRICS_INTERVAL_S)
    if interval_s > MAX_METRICS_INTERVAL_S:
        absent = "" if "metrics_interval_s" in scaling else " by default"
        yield Finding(
            "warning",
            f"{at}.metrics_interval_s",
            f"{interval_s:g} s{absent}: the policy sees a change only that late; set it to 1",
        )
