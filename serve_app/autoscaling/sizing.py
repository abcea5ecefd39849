"""From the load of a stage to its number of replicas, on plain numbers and an injected clock.

Replicas are sized for what will have to be done, not for what waits already: the pictures that arrive, and the
backlog there will be when replicas asked for now begin to serve, worked off in a set time. Growing is immediate,
shrinking waits until none of the replicas it takes away was needed for a while. The idea of sizing by queued work
over rate and drain time is InferLine's (SoCC '20); taking the maximum of recent wishes before shrinking is the
stabilisation window of Kubernetes' horizontal autoscaler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from serve_app.autoscaling.signals import StageLoad
from serve_app.settings import ScalingGoal

Reason = Literal["arrivals", "backlog", "schedule", "minimum", "maximum", "enough", "keeping", "no_data", "held"]
"""Why a stage has the replicas it gets:

arrivals, backlog: what its size follows. schedule, minimum, maximum: a bound decides. enough: it has what it needs.
keeping: it needs fewer, but not for long enough yet. no_data: nothing is known, so it keeps what it has. held: it would
grow, but the stage behind it is full.
"""

MAX_START_UP_S = 300.0
"""A start that takes longer says that the cluster is full, not how long starts take."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """Of one stage: serving, asked for, and the configured bounds."""

    running: int
    target: int
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What a stage's policy remembers from one decision to the next.

    Attributes:
        wishes: (seconds, replicas) that were needed, oldest first; only those no later one exceeds.
        since_s: since when the wishes have been recorded without the stage growing.
        start_up_s: measured mean, None before the first.
        asked: (seconds, replicas) of the last growth, until it is complete.
        known: replicas asked for at the last decision, by it or before it. More than that were asked for by somebody
            else: Ray starts the first one by itself.
    """

    wishes: tuple[tuple[float, int], ...] = ()
    since_s: float | None = None
    start_up_s: float | None = None
    asked: tuple[float, int] | None = None
    known: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "wishes": [list(wish) for wish in self.wishes],
            "since_s": self.since_s,
            "start_up_s": self.start_up_s,
            "asked": list(self.asked) if self.asked else None,
            "known": self.known,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Memory:
        """From `as_dict`; an empty mapping is an empty memory."""
        asked = values.get("asked")
        return cls(
            wishes=tuple((float(at_s), int(count)) for at_s, count in values.get("wishes") or ()),
            since_s=values.get("since_s"),
            start_up_s=values.get("start_up_s"),
            asked=(float(asked[0]), int(asked[1])) if asked else None,
            known=values.get("known"),
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas a stage is to have, why, and what was known of it."""

    replicas: int
    reason: Reason
    needed: float | None = None
    load: StageLoad | None = None
    start_up_s: float = 0.0
    memory: Memory = field(default_factory=Memory)


def decide(
    load: StageLoad | None, replicas: Replicas, goal: ScalingGoal, memory: Memory, now_s: float, floor: int = 0
) -> Decision:
    """One decision for one stage.

    Args:
        load: what its replicas report; None keeps what it has.
        replicas: what it has, and its bounds.
        goal: see `settings.ScalingGoal`.
        memory: from the last decision.
        now_s: of a clock that only this function's callers need to agree on.
        floor: scheduled minimum, bounded by the maximum.
    """
    memory = _started_by_others(_start_up_seen(memory, replicas, now_s), replicas)
    start_up_s = goal.start_up_s if memory.start_up_s is None else memory.start_up_s
    least = min(max(replicas.minimum, floor), replicas.maximum)
    if load is None:
        kept = min(max(replicas.target, least), replicas.maximum)
        reason: Reason = "no_data"
        if kept > replicas.target:
            reason = "schedule" if floor >= kept > replicas.minimum else "minimum"
        elif kept < replicas.target:
            reason = "maximum"
        return Decision(kept, reason, start_up_s=start_up_s, memory=_grown(memory, replicas, kept, now_s))
    arrivals, backlog = demand(load, replicas.running, goal, start_up_s)
    most = replicas.maximum + 1.0  # a whole number can be made of it, whatever the load
    wish = math.ceil(min(arrivals + backlog, most) - 1e-9)
    kept = math.ceil(min(arrivals * (1 + goal.slack) + backlog, most) - 1e-9)
    memory = _remember(memory, min(kept, replicas.target), goal, now_s)
    count, reason = wish, "arrivals"
    if wish > replicas.target:
        reason = "backlog" if backlog > arrivals else "arrivals"
    elif wish == replicas.target:
        reason = "enough"
    if wish <= replicas.target:
        count = _recent_most(memory, replicas.target, goal, now_s)
        reason = "keeping" if count > wish else reason
    bounded = min(max(count, least), replicas.maximum)
    if bounded > count:
        reason = "schedule" if floor >= bounded > replicas.minimum else "minimum"
    elif bounded < count:
        reason = "maximum"
    return Decision(bounded, reason, arrivals + backlog, load, start_up_s, _grown(memory, replicas, bounded, now_s))


def demand(load: StageLoad, running: int, goal: ScalingGoal, start_up_s: float) -> tuple[float, float]:
    """Replicas needed for what arrives, and on top of it for the backlog, as fractions.

    A replica is counted at its rate with efficient batches, and one such batch at each is work, not backlog: thin
    batches at low load must not look like slow replicas, and no replica is added for less than an efficient batch.
    """
    rate = load.pictures_per_s
    excess_per_s = load.arrivals_per_s - running * rate
    waiting = max(0.0, load.backlog_pictures - running * load.knee_pictures)
    held = max(waiting, running * rate * goal.max_wait_s)  # what is more will have been refused
    waiting_then = min(max(0.0, waiting + excess_per_s * start_up_s), held)
    return load.arrivals_per_s / (rate * goal.utilization), waiting_then / max(rate * goal.drain_s, load.knee_pictures)


def backlogged(load: StageLoad | None, running: int, goal: ScalingGoal) -> bool:
    """Whether what waits is more than the replicas that run should have: the work of the drain time, or half of what
    is refused, since a backlog never grows beyond that."""
    most_s = min(goal.drain_s, goal.max_wait_s / 2)
    return load is not None and load.backlog_pictures > running * max(load.pictures_per_s * most_s, load.knee_pictures)


def _remember(memory: Memory, wish: int, goal: ScalingGoal, now_s: float) -> Memory:
    if memory.wishes and now_s - memory.wishes[-1][0] > goal.stale_after_s:
        memory = replace(memory, wishes=(), since_s=None)  # nobody knows what was needed meanwhile
    oldest_s = now_s - max(goal.keep_s, goal.keep_last_s)
    wishes = [(at_s, count) for at_s, count in memory.wishes if at_s >= oldest_s and count > wish]
    return replace(
        memory,
        wishes=(*wishes, (now_s, wish)),
        since_s=now_s if memory.since_s is None else memory.since_s,
    )


def _recent_most(memory: Memory, target: int, goal: ScalingGoal, now_s: float) -> int:
    """The replicas that were needed at some time of the last `keep_s`; the last one is kept for longer."""

    def most(window_s: float) -> int:
        if memory.since_s is None or now_s - memory.since_s < window_s - 1e-6:
            return target
        return max((count for at_s, count in memory.wishes if at_s >= now_s - window_s - 1e-6), default=target)

    count = most(goal.keep_s)
    return count if count > 0 or target == 0 else (0 if most(max(goal.keep_s, goal.keep_last_s)) == 0 else 1)


def _grown(memory: Memory, replicas: Replicas, count: int, now_s: float) -> Memory:
    """Wishes from before a growth say nothing of what was needed after it."""
    memory = replace(memory, known=max(count, replicas.target))
    if count > replicas.target:
        return replace(memory, wishes=(), since_s=None, asked=memory.asked or (now_s, count))
    if count < replicas.target:
        return replace(memory, asked=None)
    return memory


def _started_by_others(memory: Memory, replicas: Replicas) -> Memory:
    if memory.known is None or replicas.target <= memory.known:
        return memory
    return replace(memory, wishes=(), since_s=None)


def _start_up_seen(memory: Memory, replicas: Replicas, now_s: float) -> Memory:
    if memory.asked is None:
        return memory
    asked_s, count = memory.asked
    if now_s - asked_s > MAX_START_UP_S:
        return replace(memory, asked=None)
    if replicas.running < count:
        return memory
    seen_s = max(0.0, now_s - asked_s)
    mean_s = seen_s if memory.start_up_s is None else memory.start_up_s + 0.3 * (seen_s - memory.start_up_s)
    return replace(memory, asked=None, start_up_s=mean_s)
