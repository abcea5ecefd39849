"""What Ray's controller calls: contexts in, numbers of replicas out, and never an exception.

A policy that raises stops Ray from updating every application, so here whatever goes wrong keeps what is there and is
logged. Ray adds its own delays, factors and bounds to what a policy returns: leave `upscale_delay_s` and
`downscale_delay_s` at 0, the policy has its own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from serve_app.autoscaling.schedule import scheduled_minimum
from serve_app.autoscaling.signals import BACKLOG, KNEE, OFFERED, RATE, Reports, stage_load
from serve_app.autoscaling.sizing import Decision, Memory, Replicas, backlogged, decide
from serve_app.errors import ConfigError
from serve_app.metric_names import CONTROLLER_METRICS
from serve_app.settings import ScalingGoal, parse_goal

if TYPE_CHECKING:
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingContext

logger = logging.getLogger("ray.serve")  # the controller's own log


class StagePolicy:
    """Scales one deployment by what its own replicas report (`signals`).

    Args:
        goal: fields of `settings.ScalingGoal`. What is wrong with them is logged, and replicas are then left alone:
            an exception here would stop every application's updates.
    """

    def __init__(self, **goal: Any) -> None:
        self._goal = _goal_or_none(goal)
        self._tell = Announcer()

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Ray's deployment-level signature: replicas and the state to be handed back next time."""
        try:
            if self._goal is None:
                return ctx.target_num_replicas, {}
            decision = stage_decision(ctx, self._goal)
            self._tell(ctx, decision, self._goal.log_every_s)
            return decision.replicas, decision.memory.as_dict()
        except Exception:
            logger.exception("the autoscaling policy failed; %s keeps its replicas", ctx.deployment_name)
            return ctx.target_num_replicas, {}


class PipelinePolicy:
    """Scales the stages of an application together: no stage grows while the one behind it is full and backlogged.

    Several models have a Classifier each, `Classifier-NAME`: they stand side by side at the place of `Classifier`, and
    the stage before them is held only while all of them are full.

    Args:
        order: deployments in the order a picture meets them.
        stages: deployment -> fields of `settings.ScalingGoal`; those left out have the defaults, or those of
            `Classifier`.
    """

    def __init__(
        self,
        order: tuple[str, ...] = ("Preprocessor", "Classifier"),
        stages: Mapping[str, Mapping[str, Any]] | None = None,
        **others: Any,
    ) -> None:
        wrong = [f"policy_kwargs.{name}: unknown key" for name in others]
        if not isinstance(order, list | tuple) or not all(isinstance(name, str) for name in order):
            wrong.append("policy_kwargs.order: not a list of deployments")
            order = ()
        given = {} if stages is None else stages
        if not isinstance(given, Mapping):
            wrong.append("policy_kwargs.stages: not a mapping")
            given = {}
        self._order = tuple(order)
        wrong += [
            f"policy_kwargs.stages.{name}: no such stage in order" for name in given if stage_of(name) not in order
        ]
        for line in wrong:
            logger.error("autoscaling is off: %s", line)
        names = dict.fromkeys([*self._order, *given])
        self._goals = {name: None if wrong else _goal_or_none(given.get(name, {})) for name in names}
        self._tell = Announcer()

    def __call__(
        self, contexts: dict[DeploymentID, AutoscalingContext]
    ) -> tuple[dict[DeploymentID, int], dict[DeploymentID, dict[str, Any]]]:
        """Ray's application-level signature; a deployment that is no stage keeps its replicas."""
        counts: dict[DeploymentID, int] = {}
        states: dict[DeploymentID, dict[str, Any]] = {}
        behind_is_full = False
        for name in reversed(self._order):
            full = []
            for ident, ctx in contexts.items():
                if ctx.deployment_name != name and stage_of(ctx.deployment_name) != name:
                    continue
                try:
                    goal = self._goals.get(ctx.deployment_name, self._goals[name])
                    if goal is None:
                        continue
                    decision = stage_decision(ctx, goal, hold=behind_is_full)
                    full.append(is_full(decision, ctx, goal))
                    self._tell(ctx, decision, goal.log_every_s)
                    counts[ident], states[ident] = decision.replicas, decision.memory.as_dict()
                except Exception:
                    logger.exception("the autoscaling policy failed; %s keeps its replicas", ctx.deployment_name)
            behind_is_full = all(full) if full else behind_is_full
        return counts, states


def stage_of(deployment: str) -> str:
    """Where a deployment stands: the Classifiers of several models are one stage."""
    return "Classifier" if deployment.startswith("Classifier-") else deployment


def stage_decision(ctx: AutoscalingContext, goal: ScalingGoal, hold: bool = False) -> Decision:
    """What `ctx` tells of a deployment, and the decision for it; with `hold`, what it has and its minima are the most:
    a growth would only lengthen the queue of the stage behind."""
    now_s = ctx.current_time if ctx.current_time is not None else time.time()
    replicas = Replicas(
        running=ctx.current_num_replicas,
        target=ctx.target_num_replicas,
        minimum=ctx.capacity_adjusted_min_replicas,
        maximum=ctx.capacity_adjusted_max_replicas,
    )
    memory = Memory.of(ctx.policy_state or {})
    # Asked for ahead of their hour, so that they serve when it begins.
    start_up_s = goal.start_up_s if memory.start_up_s is None else memory.start_up_s
    now = datetime.fromtimestamp(now_s, UTC)
    floor = max(scheduled_minimum(goal.floors, at) for at in (now, now + timedelta(seconds=start_up_s)))
    if hold:
        most = max(replicas.target, replicas.minimum, floor)
        replicas = replace(replicas, maximum=min(replicas.maximum, most))
    load = stage_load(reports(ctx.raw_metrics or {}), now_s, goal.stale_after_s)
    decision = decide(load, replicas, goal, memory, now_s, floor)
    return replace(decision, reason="held") if hold and decision.reason == "maximum" else decision


def is_full(decision: Decision, ctx: AutoscalingContext, goal: ScalingGoal) -> bool:
    """Whether a stage has all the replicas it may have and does not keep up."""
    at_maximum = ctx.target_num_replicas >= ctx.capacity_adjusted_max_replicas
    return at_maximum and backlogged(decision.load, ctx.current_num_replicas, goal)


def reports(raw_metrics: Mapping[str, Mapping[Any, Any]]) -> Reports:
    """Ray's time series of our signals as pairs of numbers."""
    return {
        name: {
            str(replica): [(point.timestamp, point.value) for point in series]
            for replica, series in raw_metrics.get(name, {}).items()
        }
        for name in (BACKLOG, OFFERED, RATE, KNEE)
    }


def _goal_or_none(fields: Mapping[str, Any]) -> ScalingGoal | None:
    try:
        if not isinstance(fields, Mapping):
            raise ConfigError("policy_kwargs: a goal is a mapping")
        return parse_goal(fields)
    except ConfigError as error:
        logger.error("autoscaling is off: %s", error)
        return None


class Announcer:
    """Every decision as one structured log line when it changes, and as metrics at all times."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int, str]] = {}
        self._gauges: dict[str, Any] = {}

    def __call__(self, ctx: AutoscalingContext, decision: Decision, log_every_s: float) -> None:
        try:
            self._say(ctx, decision, log_every_s)
        except Exception:  # what is decided is done, whether or not it can be told
            logger.exception("the decision on %s could not be told", ctx.deployment_name)

    def _say(self, ctx: AutoscalingContext, decision: Decision, log_every_s: float) -> None:
        self._measure(ctx, decision)
        now_s = ctx.current_time or 0.0
        told_s, count, reason = self._told.get(ctx.deployment_name, (0.0, -1, ""))
        if (count, reason) == (decision.replicas, decision.reason) and now_s - told_s < log_every_s:
            return
        self._told[ctx.deployment_name] = (now_s, decision.replicas, decision.reason)
        logger.info("autoscaling %s", json.dumps(explained(ctx, decision)))

    def _measure(self, ctx: AutoscalingContext, decision: Decision) -> None:
        tags = {"application": ctx.app_name or "", "deployment": ctx.deployment_name}
        self._set("desired_replicas", decision.replicas, tags)
        self._set("running_replicas", ctx.current_num_replicas, tags)
        self._set("start_up_s", decision.start_up_s, tags)
        if decision.load is not None:
            load = decision.load
            self._set("backlog_pictures", load.backlog_pictures, tags)
            self._set("arrivals_per_s", load.arrivals_per_s, tags)
            self._set("pictures_per_s", load.pictures_per_s, tags)

    def _set(self, name: str, value: float, tags: dict[str, str]) -> None:
        if not self._gauges:
            from ray.util.metrics import Gauge  # here: policies are tested, and replayed, without Ray running

            self._gauges = {
                metric.name: Gauge(metric.name, description=metric.description, tag_keys=metric.tags)
                for metric in CONTROLLER_METRICS
            }
        self._gauges[f"image_serve_autoscaling_{name}"].set(value, tags=tags)


def explained(ctx: AutoscalingContext, decision: Decision) -> dict[str, Any]:
    """A decision and what it was made from, JSON-ready."""
    load = decision.load
    known: dict[str, Any] = {}
    if load is not None:
        known = {
            "backlog_pictures": round(load.backlog_pictures, 1),
            "arrivals_per_s": round(load.arrivals_per_s, 1),
            "pictures_per_s_per_replica": round(load.pictures_per_s, 1),
            "knee_pictures": round(load.knee_pictures),
            "reporting": load.reporting,
        }
    return {
        "deployment": ctx.deployment_name,
        "desired": decision.replicas,
        "before": ctx.target_num_replicas,
        "running": ctx.current_num_replicas,
        "reason": decision.reason,
        "needed": None if decision.needed is None else round(decision.needed, 2),
        "start_up_s": round(decision.start_up_s, 1),
        **known,
    }
