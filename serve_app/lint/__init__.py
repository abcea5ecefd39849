"""Checks a Ray Serve configuration before Ray sees it: unknown keys, which Ray ignores, and known traps.

Everything is a `Finding` with the path of its key; errors stop a start, warnings are only told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.errors import ConfigError
from serve_app.lint import grpc
from serve_app.lint.finding import Finding, Findings, env_vars, items, section
from serve_app.lint.keys import ray_models, refused_by, unknown_keys, without_policies
from serve_app.lint.load import load_config
from serve_app.lint.scaling import has_policy, scaling_policies
from serve_app.lint.traps import (
    any_deployment,
    chunks,
    cluster_variables,
    deployments_of,
    environment,
    long_requests,
    our_deployment,
    policy_loads,
    request_target,
)
from serve_app.settings import Settings, parse_settings

__all__ = ["OUR_APPLICATION", "Finding", "lint_config", "load_config"]

OUR_APPLICATION = "serve_app.app:build"


def lint_config(config: Mapping[str, Any], env: Mapping[str, str]) -> list[Finding]:
    """Everything wrong with `config` on nodes that have `env` in their environment; empty where nothing is.

    Imports `ray.serve`, which reads its variables once and for all, as they are in `env`; and the modules of policies.
    """
    ray_config, ray_schema = ray_models(env)
    findings = [*unknown_keys(config, ray_schema.ServeDeploySchema, "")]
    findings += refused_by(ray_schema.ServeDeploySchema, without_policies(config), "")
    findings += environment(env)
    findings += cluster_variables(section(config, "controller_options"), "controller_options")
    findings += grpc.servicers(config)
    for at, application in items(config, "applications", ""):
        findings += _application(application, at, env, ray_config)
        findings += _messages(config, application, at, env)
    return list(dict.fromkeys(findings))


def _application(application: Mapping[str, Any], at: str, env: Mapping[str, str], ray_config: Any) -> Findings:
    ours = application.get("import_path") == OUR_APPLICATION
    settings = None
    if ours:
        settings, problems = _settings(application.get("args"), at)
        yield from problems
    yield from cluster_variables(application, at)
    policy = application.get("autoscaling_policy")
    yield from unknown_keys(policy, ray_config.AutoscalingPolicy, f"{at}.autoscaling_policy")
    yield from policy_loads(policy, f"{at}.autoscaling_policy")
    for path, deployment in items(application, "deployments", at):
        yield from any_deployment(deployment, path, ray_config)
        if ours:
            yield from our_deployment(deployment, path, env, settings)
            if not has_policy(application, "autoscaling_policy"):
                yield from request_target(deployment, path, settings)
    yield from scaling_policies(application, at, deployments_of(settings) if ours else None)
    if settings is not None:
        yield from chunks(settings, dict(env) | env_vars(application), f"{at}.args")
        yield from long_requests(settings.limits.max_timeout_ms, env, f"{at}.args.limits.max_timeout_ms")


def _messages(config: Mapping[str, Any], application: Mapping[str, Any], at: str, env: Mapping[str, str]) -> Findings:
    if application.get("import_path") == OUR_APPLICATION:
        settings, _ = _settings(application.get("args"), at)
        if settings is not None:
            yield from grpc.messages(config, settings, env, f"{at}.args.limits.max_body_bytes")


def _settings(args: object, at: str) -> tuple[Settings | None, list[Finding]]:
    if args is not None and not isinstance(args, Mapping):
        return None, []  # Ray says so
    try:
        return parse_settings(args or {}), []
    except ConfigError as error:
        lines = (line.partition(": ") for line in str(error).splitlines())
        return None, [Finding("error", f"{at}.{path}", message) for path, _, message in lines]
