"""Contexts of Ray's, with what replicas would have reported, and its two wrappers around a policy."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config, _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.autoscaling import PipelinePolicy, StagePolicy
from serve_app.autoscaling.signals import BACKLOG, KNEE, OFFERED, RATE

NOON_S = datetime.fromisoformat("2026-01-07T12:00+00:00").timestamp()  # a Wednesday
RATE_PER_S = 100.0
GOAL: dict[str, Any] = {"utilization": 0.75, "drain_s": 5, "max_wait_s": 5, "start_up_s": 4, "keep_s": 60}

Metrics = dict[str, dict[ReplicaID, list[TimeStampedValue]]]


def ident(name: str) -> DeploymentID:
    return DeploymentID(name=name, app_name="image-serve")


def reported(name: str, now_s: float, arrivals_per_s: float, backlog: float = 0.0, replicas: int = 1) -> Metrics:
    """What Ray has of the replicas' last five seconds; arrivals and backlog are those of all of them."""
    seconds = range(6)
    signals = {
        BACKLOG: [backlog / replicas] * 6,
        OFFERED: [arrivals_per_s / replicas * second for second in seconds],
        RATE: [RATE_PER_S] * 6,
        KNEE: [8.0] * 6,
    }
    series = {
        signal: [TimeStampedValue(now_s - 5 + second, values[second]) for second in seconds]
        for signal, values in signals.items()
    }
    who = [ReplicaID(f"r{at}", ident(name)) for at in range(replicas)]
    return {signal: dict.fromkeys(who, points) for signal, points in series.items()}


def context(
    name: str = "Classifier",
    arrivals_per_s: float | None = 10.0,
    backlog: float = 0.0,
    *,
    target: int = 1,
    bounds: tuple[int, int] = (1, 8),
    now_s: float = NOON_S,
    state: dict[str, Any] | None = None,
    **others: Any,
) -> AutoscalingContext:
    """A stage whose replicas all run; `arrivals_per_s=None` is one that has reported nothing. `others` replace."""
    told = {} if arrivals_per_s is None else reported(name, now_s, arrivals_per_s, backlog, max(1, target))
    fields: dict[str, Any] = {
        "deployment_id": ident(name),
        "deployment_name": name,
        "app_name": "image-serve",
        "current_num_replicas": target,
        "target_num_replicas": target,
        "running_replicas": [],
        "total_num_requests": lambda: 0.0,
        "total_queued_requests": lambda: 0.0,
        "aggregated_metrics": lambda: {},
        "raw_metrics": lambda: told,
        "capacity_adjusted_min_replicas": bounds[0],
        "capacity_adjusted_max_replicas": bounds[1],
        "policy_state": state or {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": now_s,
        "config": AutoscalingConfig(
            min_replicas=bounds[0], max_replicas=bounds[1], upscale_delay_s=0, downscale_delay_s=0
        ),
    }
    return AutoscalingContext(**(fields | others))


class Controlled:
    """One deployment under Ray's own wrapper: delays, bounds and the state that is handed back, as its controller."""

    def __init__(self, target: int = 1, bounds: tuple[int, int] = (1, 8), **goal: Any) -> None:
        self.target, self.bounds, self.now_s = target, bounds, NOON_S
        self._policy = _apply_autoscaling_config(StagePolicy(**(GOAL | goal)))
        self.state: dict[str, Any] = {}

    def tick(self, arrivals_per_s: float | None, **others: Any) -> int:
        given = context(
            arrivals_per_s=arrivals_per_s,
            target=self.target,
            bounds=self.bounds,
            now_s=self.now_s,
            state=self.state.copy(),
            **others,
        )
        count, self.state = self._policy(given)
        self.target = max(self.bounds[0], min(self.bounds[1], count))
        self.now_s += 1
        return self.target


class Pipeline:
    """An application under Ray's own wrapper for application-level policies."""

    def __init__(self, **kwargs: Any) -> None:
        stages = {"Preprocessor": GOAL, "Classifier": GOAL}
        self._policy = _apply_app_level_autoscaling_config(PipelinePolicy(**({"stages": stages} | kwargs)))
        self.states: dict[DeploymentID, dict[str, Any]] = {}

    def tick(self, *contexts: AutoscalingContext) -> dict[str, int]:
        for given in contexts:
            given.policy_state = self.states.get(given.deployment_id, {}).copy()
        counts, self.states = self._policy({given.deployment_id: given for given in contexts})
        return {who.name: count for who, count in counts.items()}
