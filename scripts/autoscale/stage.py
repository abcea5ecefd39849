"""One simulated stage: replicas that come and go, and pictures that wait and are worked on."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

from scripts.autoscale.profile import StageProfile

JITTER = 0.15
"""Starts take up to this share longer or shorter than their mean."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One that serves.

    Attributes:
        offered_before: pictures offered to each replica of the stage before this one came; its own counter is at 0.
    """

    number: int
    since_s: float
    offered_before: float


class Replicas:
    """Of one stage. Those that are taken away leave their work to the others, so none of it is lost.

    Args:
        count: that serve from the beginning.
        start_up_s: mean; each start has its own.
        seed: of the starts' durations.
    """

    def __init__(self, count: int, start_up_s: float, seed: int) -> None:
        self._start_up_s = start_up_s
        self._random = random.Random(seed)
        self.offered_each = 0.0
        self.starting_s: list[float] = []
        self.running: list[Replica] = []
        self._next = 0
        for _ in range(count):
            self._serve(0.0)

    @property
    def target(self) -> int:
        """Asked for: those that serve and those that will."""
        return len(self.running) + len(self.starting_s)

    def aim(self, target: int, now_s: float) -> None:
        """Asks for `target` replicas; too many: those that start go first, then the newest that serve."""
        while self.target < target:
            duration_s = self._start_up_s * self._random.uniform(1 - JITTER, 1 + JITTER)
            self.starting_s.append(now_s + duration_s)
            self.starting_s.sort()
        while self.target > target:
            (self.starting_s or self.running).pop()

    def advance(self, now_s: float) -> None:
        """Lets those serve whose start is over."""
        while self.starting_s and self.starting_s[0] <= now_s:
            self._serve(self.starting_s.pop(0))

    def offer(self, pictures: int) -> None:
        """Counts what came for the stage, refused or not, spread evenly over the replicas that serve."""
        self.offered_each += pictures / len(self.running)

    def _serve(self, since_s: float) -> None:
        self.running.append(Replica(self._next, since_s, self.offered_each))
        self._next += 1


class Line:
    """The pictures of one stage, first come, first served.

    A picture waits until there is capacity, and is then in work for as long as the batch that forms takes: batches
    are as large as what waits at each replica, within the maximum.
    """

    def __init__(self, profile: StageProfile) -> None:
        self._batch_s = [0.0] + [profile.table.estimate_ms(size) / 1e3 for size in range(1, profile.max_batch_size + 1)]
        self._waiting: deque[tuple[float, int]] = deque()
        self._in_work: deque[tuple[float, float, int]] = deque()
        self._carry = 0.0
        self.waiting = 0
        self.in_work = 0

    @property
    def pictures(self) -> int:
        """Waiting or in work."""
        return self.waiting + self.in_work

    def put(self, arrived_s: float, count: int) -> None:
        """Pictures that arrived at the service at `arrived_s` begin to wait here."""
        self._waiting.append((arrived_s, count))
        self.waiting += count

    def serve(self, now_s: float, replicas: int, step_s: float) -> None:
        """Takes as many into work as `replicas` begin in one step. What they could do while nothing waits is gone."""
        if not self.waiting:
            self._carry = 0.0
            return
        size = min(len(self._batch_s) - 1, math.ceil(self.waiting / replicas))
        batch_s = self._batch_s[size]
        capacity = self._carry + replicas * size / batch_s * step_s
        take = min(self.waiting, int(capacity))
        self._take(take, now_s + batch_s)
        self._carry = capacity - take if self.waiting else 0.0

    def finished(self, now_s: float) -> list[tuple[float, float, int]]:
        """(finished, arrived at the service, pictures) of what is done by now; handed out once."""
        done = []
        while self._in_work and self._in_work[0][0] <= now_s:
            done.append(self._in_work.popleft())
            self.in_work -= done[-1][2]
        return done

    def _take(self, count: int, finish_s: float) -> None:
        # A smaller batch behind a larger one does not overtake it.
        if self._in_work:
            finish_s = max(finish_s, self._in_work[-1][0])
        self.waiting -= count
        self.in_work += count
        while count:
            arrived_s, there = self._waiting[0]
            part = min(there, count)
            if part == there:
                self._waiting.popleft()
            else:
                self._waiting[0] = (arrived_s, there - part)
            self._in_work.append((finish_s, arrived_s, part))
            count -= part


class Stage:
    """A deployment: its name, its pictures, its replicas."""

    def __init__(self, deployment: str, profile: StageProfile, replicas: int, seed: int) -> None:
        self.deployment = deployment
        self.profile = profile
        self.line = Line(profile)
        self.replicas = Replicas(replicas, profile.start_up_s, seed)

    @property
    def pictures_per_s(self) -> float:
        """Of all replicas that serve, at their best."""
        return len(self.replicas.running) * self.profile.pictures_per_s
