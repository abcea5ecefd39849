"""A configuration without findings, and how tests change one value of it."""

from __future__ import annotations

import copy
from typing import Any

from serve_app.launch import FAST_INGRESS_ENV
from serve_app.lint import Finding, lint_config

FAST = FAST_INGRESS_ENV

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


WITHOUT_POLICY = changed(f"{CLASSIFIER}.autoscaling_config.policy", None)
"""Ray's own policy scales both deployments."""


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def found(path: str, value: object, env: dict[str, str] = FAST) -> Finding:
    return only(lint_config(changed(path, value), env))
