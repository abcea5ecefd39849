"""Ray's controller as far as it concerns autoscaling, on a fake clock: genuine contexts, genuine wrappers of policies
with their genuine delays, bounds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeAlias

from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from scripts.autoscale.reports import StageReports
from scripts.autoscale.stage import Stage

APPLICATION = "image-serve"
LOGGER = logging.getLogger("ray.serve")
States: TypeAlias = dict[DeploymentID, dict[str, Any]]
Policy: TypeAlias = Callable[[dict[DeploymentID, AutoscalingContext]], tuple[dict[DeploymentID, int], States]]
"""Application level: contexts -> replicas and states to be handed back next time."""


class PolicyFailed(Exception):
    """A policy logged an error. In the service it would have kept its replicas; a replay must not hide that."""


def application_level(policy: Callable[..., Any]) -> Policy:
    """With Ray's delays and factors around it."""
    wrapped: Policy = autoscaling_policy._apply_app_level_autoscaling_config(policy)
    return wrapped


def deployment_level(policies: Mapping[str, Callable[..., Any]]) -> Policy:
    """One policy for each deployment name, each with Ray's delays and factors around it."""
    wrapped = {name: autoscaling_policy._apply_autoscaling_config(policy) for name, policy in policies.items()}

    def decide(contexts: dict[DeploymentID, AutoscalingContext]) -> tuple[dict[DeploymentID, int], States]:
        decisions = {ident: wrapped[ident.name](context) for ident, context in contexts.items()}
        counts = {ident: math.ceil(count) for ident, (count, _) in decisions.items()}
        return counts, {ident: state for ident, (_, state) in decisions.items()}

    return decide


class Controller:
    """Calls a policy at each tick and gives the stages the replicas it wants, within their bounds."""

    def __init__(self, policy: Policy, configs: Mapping[str, AutoscalingConfig]) -> None:
        self._policy = policy
        self._configs = configs
        self._states: States = {}
        self._up_s: dict[DeploymentID, float] = {}
        self._down_s: dict[DeploymentID, float] = {}

    def tick(self, now_s: float, stages: Mapping[DeploymentID, tuple[Stage, StageReports]]) -> None:
        """One decision for all stages."""
        contexts = {ident: self._context(now_s, *stages[ident]) for ident in stages}
        counts, self._states = self._policy(contexts)
        for ident, count in counts.items():
            stage = stages[ident][0]
            bounded = max(stage.profile.min_replicas, min(stage.profile.max_replicas, count))
            if bounded > stage.replicas.target:
                self._up_s[ident] = now_s
            elif bounded < stage.replicas.target:
                self._down_s[ident] = now_s
            stage.replicas.aim(bounded, now_s)

    def _context(self, now_s: float, stage: Stage, reports: StageReports) -> AutoscalingContext:
        return AutoscalingContext(
            deployment_id=reports.ident,
            deployment_name=reports.ident.name,
            app_name=reports.ident.app_name,
            current_num_replicas=len(stage.replicas.running),
            target_num_replicas=stage.replicas.target,
            running_replicas=reports.running_replicas(),
            total_num_requests=lambda: reports.total_num_requests(now_s),
            total_queued_requests=0.0,
            aggregated_metrics=None,
            raw_metrics=reports.raw_metrics,
            capacity_adjusted_min_replicas=stage.profile.min_replicas,
            capacity_adjusted_max_replicas=stage.profile.max_replicas,
            policy_state=self._states.get(reports.ident, {}).copy(),
            last_scale_up_time=self._up_s.get(reports.ident),
            last_scale_down_time=self._down_s.get(reports.ident),
            current_time=now_s,
            config=self._configs[reports.ident.name],
        )


@contextmanager
def on_clock(clock: Callable[[], float]) -> Iterator[None]:
    """Ray's delays read `time.time()` in their own module; here they read `clock`. Policies are silent, and one that
    logs an error raises `PolicyFailed`."""
    genuine = autoscaling_policy.time
    strict = _Strict()
    LOGGER.addFilter(strict)
    autoscaling_policy.time = SimpleNamespace(time=clock)
    try:
        yield
    finally:
        autoscaling_policy.time = genuine
        LOGGER.removeFilter(strict)


class _Strict(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            raise PolicyFailed(record.getMessage())
        return False
