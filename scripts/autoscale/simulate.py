"""The service under a load and a policy, step by step on a fake clock. Times are right to a step.

A picture is admitted if what is in the service already would be done in time; it is decoded, waits for the engine,
and is classified. Nothing is retried. In the request counts that Ray's policy sees, a picture is a request: at the
Preprocessor all pictures inside the service, because an ingress request is ongoing until it is answered; at the
Classifier those that wait or are in work there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ray.serve._private.common import DeploymentID

from scripts.autoscale.contenders import CLASSIFY, DECODE, Contender, stages
from scripts.autoscale.controller import APPLICATION, Controller, on_clock
from scripts.autoscale.profile import Profile
from scripts.autoscale.reports import StageReports
from scripts.autoscale.stage import Stage
from scripts.autoscale.traces import turns

STEP_S = 0.05
FIRST_S = 5.0
"""The load of these seconds decides how many replicas there are at the beginning."""
FIRST_UTILIZATION = 0.8
"""Of the replicas at the beginning, the same ones for every policy."""


@dataclass(slots=True)
class Tally:
    """What became of the pictures."""

    objective_s: float
    offered: int = 0
    shed: int = 0
    in_time: int = 0
    late: int = 0
    by_ms: Counter[int] = field(default_factory=Counter)

    def answered(self, after_s: float, count: int) -> None:
        if after_s <= self.objective_s:
            self.in_time += count
        else:
            self.late += count
        self.by_ms[math.ceil(after_s * 1e3)] += count

    def percentile_ms(self, share: float) -> int | None:
        """The time within which this share of the answered pictures was answered; None where none was."""
        wanted, seen = share * self.by_ms.total(), 0
        for ms, count in sorted(self.by_ms.items()):
            seen += count
            if seen >= wanted:
                return ms
        return None


class Service:
    """Both stages and what is between a client and them."""

    def __init__(self, profile: Profile, first_per_s: float, seed: int) -> None:
        self.tally = Tally(profile.objective_s)
        self._max_wait_s = profile.max_wait_s
        made = []
        for number, (deployment, stage) in enumerate(stages(profile).items()):
            needed = math.ceil(first_per_s / (FIRST_UTILIZATION * stage.pictures_per_s))
            count = min(max(needed, stage.min_replicas), stage.max_replicas)
            made.append(Stage(deployment, stage, count, seed * 2 + number))
        self.decode, self.classify = made

    @property
    def stages(self) -> tuple[Stage, Stage]:
        return self.decode, self.classify

    @property
    def inside(self) -> int:
        """Pictures admitted and not answered."""
        return self.decode.line.pictures + self.classify.line.pictures

    def room(self) -> int:
        """Pictures that may come in: the last of them would wait as long as may be. An empty service takes one."""
        rate = min(stage.pictures_per_s for stage in self.stages)
        return max(int(self._max_wait_s * rate) - self.inside, 0 if self.inside else 1)

    def step(self, now_s: float, offered: int) -> None:
        """From `now_s` to one step later, with `offered` pictures that come at its beginning."""
        for stage in self.stages:
            stage.replicas.advance(now_s)
            stage.replicas.offer(offered)
        for finished_s, arrived_s, count in self.classify.line.finished(now_s):
            self.tally.answered(finished_s - arrived_s, count)
        for _, arrived_s, count in self.decode.line.finished(now_s):
            self.classify.line.put(arrived_s, count)
        admitted = min(offered, self.room()) if offered else 0
        self.tally.offered += offered
        self.tally.shed += offered - admitted
        if admitted:
            self.decode.line.put(now_s, admitted)
        for stage in self.stages:
            stage.line.serve(now_s, len(stage.replicas.running), STEP_S)


@dataclass(frozen=True, slots=True)
class Moment:
    """The service when the controller had decided; replicas by deployment, pictures."""

    at_s: float
    offered: int
    inside: int
    desired: dict[str, int]
    running: dict[str, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy under one load.

    Attributes:
        p99_ms: of the answered pictures.
        replica_s: replica-seconds by deployment until the load ends, replicas that start among them.
        most: replicas asked for at once, by deployment.
        reversals: how often the replicas asked for turned from growing to shrinking or back, by deployment.
        moments: one for each tick of the controller.
    """

    policy: str
    describe: str
    offered: int
    in_time: int
    late: int
    shed: int
    p99_ms: int | None
    replica_s: dict[str, float]
    most: dict[str, int]
    reversals: dict[str, int]
    moments: list[Moment]

    @property
    def missed(self) -> int:
        """Late or shed."""
        return self.late + self.shed

    @property
    def total_replica_s(self) -> float:
        return sum(self.replica_s.values())


class Simulation:
    """One policy, one load.

    Args:
        arriving: pictures of each step.
        seed: of the starts' durations.
    """

    def __init__(self, arriving: Sequence[int], profile: Profile, contender: Contender, seed: int) -> None:
        self._arriving = arriving
        self._contender = contender
        first = arriving[: round(FIRST_S / STEP_S)]
        self.service = Service(profile, sum(first) / (max(1, len(first)) * STEP_S), seed)
        self._reported = {
            ident: (stage, StageReports(ident, stage, contender.reporting.look_back_period_s))
            for stage in self.service.stages
            for ident in [DeploymentID(stage.deployment, APPLICATION)]
        }
        with on_clock(lambda: 0.0):
            self._controller = Controller(contender.make(), contender.configs)
        self._every = {
            "sample": steps(contender.reporting.sample_s),
            "push": steps(contender.reporting.metrics_interval_s),
            "tick": steps(profile.control_interval_s),
        }
        self._replica_s = {stage.deployment: 0.0 for stage in self.service.stages}
        self._offered_before = 0
        self.moments: list[Moment] = []

    def run(self) -> Outcome:
        """Until every picture is answered."""
        number = 0
        while number < len(self._arriving) or self.service.inside:
            self.step(number)
            number += 1
        return self._outcome()

    def step(self, number: int) -> None:
        now_s = number * STEP_S
        loaded = number < len(self._arriving)
        self.service.step(now_s, self._arriving[number] if loaded else 0)
        if number % self._every["sample"] == 0:
            for stage, reports in self._reported.values():
                inside = self.service.inside if stage is self.service.decode else stage.line.pictures
                reports.sample(now_s, inside)
        if number % self._every["push"] == 0:
            for _, reports in self._reported.values():
                reports.push(now_s)
        if loaded:
            for stage in self.service.stages:
                self._replica_s[stage.deployment] += stage.replicas.target * STEP_S
            if number % self._every["tick"] == 0:
                self._tick(now_s)

    def _tick(self, now_s: float) -> None:
        with on_clock(lambda: now_s):
            self._controller.tick(now_s, self._reported)
        service = self.service
        self.moments.append(
            Moment(
                now_s,
                service.tally.offered - self._offered_before,
                service.inside,
                {stage.deployment: stage.replicas.target for stage in service.stages},
                {stage.deployment: len(stage.replicas.running) for stage in service.stages},
            )
        )
        self._offered_before = service.tally.offered

    def _outcome(self) -> Outcome:
        tally = self.service.tally
        desired = {name: [one.desired[name] for one in self.moments] for name in (DECODE, CLASSIFY)}
        return Outcome(
            policy=self._contender.name,
            describe=self._contender.describe,
            offered=tally.offered,
            in_time=tally.in_time,
            late=tally.late,
            shed=tally.shed,
            p99_ms=tally.percentile_ms(0.99),
            replica_s=self._replica_s,
            most={name: max(counts, default=0) for name, counts in desired.items()},
            reversals={name: turns(counts) for name, counts in desired.items()},
            moments=self.moments,
        )


def steps(seconds: float) -> int:
    """At least one."""
    return max(1, round(seconds / STEP_S))
