"""What the replicas of a stage report to Ray's controller: notes taken at intervals, pushed at intervals."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve._private.metrics_utils import aggregate_timeseries, merge_instantaneous_total
from ray.serve.config import AggregationFunction

from scripts.autoscale.stage import Replica, Stage
from serve_app.autoscaling.signals import BACKLOG, KNEE, OFFERED, RATE

ONGOING = "ongoing"
"""Requests at a replica as Ray counts them."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """Seconds between notes, between reports, and how old a note in a report may be."""

    sample_s: float
    metrics_interval_s: float
    look_back_period_s: float


class StageReports:
    """The notes of one stage's replicas, and what the controller has of them.

    Args:
        ident: Ray's name of the deployment.
        stage: read when notes are taken.
        look_back_period_s: older notes are not reported.
    """

    def __init__(self, ident: DeploymentID, stage: Stage, look_back_period_s: float) -> None:
        self.ident = ident
        self._stage = stage
        self._look_back_s = look_back_period_s
        knee = stage.profile.table.knee()
        self._constants = {RATE: 1e3 * knee / stage.profile.table.estimate_ms(knee), KNEE: float(knee)}
        self._notes: dict[Replica, dict[str, deque[TimeStampedValue]]] = {}
        self._pushed: dict[Replica, dict[str, list[TimeStampedValue]]] = {}

    def sample(self, now_s: float, ongoing: int) -> None:
        """Every replica that serves notes its share of the backlog and of the `ongoing` requests, its own counter
        and its speed."""
        replicas = self._stage.replicas
        shares = {BACKLOG: self._stage.line.pictures, ONGOING: ongoing}
        same = {name: TimeStampedValue(now_s, value / len(replicas.running)) for name, value in shares.items()}
        same |= {name: TimeStampedValue(now_s, value) for name, value in self._constants.items()}
        for replica in replicas.running:
            if replica not in self._notes:
                self._notes[replica] = {name: deque() for name in (*same, OFFERED)}
            notes = self._notes[replica]
            for name, point in same.items():
                notes[name].append(point)
            notes[OFFERED].append(TimeStampedValue(now_s, replicas.offered_each - replica.offered_before))

    def push(self, now_s: float) -> None:
        """Every replica that serves sends its notes of the look-back period; those of the others are forgotten."""
        running = set(self._stage.replicas.running)
        self._notes = {replica: notes for replica, notes in self._notes.items() if replica in running}
        self._pushed = {
            replica: {name: self._recent(series, now_s) for name, series in notes.items()}
            for replica, notes in self._notes.items()
        }

    def running_replicas(self) -> list[ReplicaID]:
        return [self._name(replica) for replica in self._stage.replicas.running]

    def raw_metrics(self) -> dict[str, dict[ReplicaID, list[TimeStampedValue]]]:
        """Signal -> replica -> its series, for replicas that serve and have reported."""
        known = self._known()
        return {
            name: {self._name(replica): self._pushed[replica][name] for replica in known}
            for name in (BACKLOG, OFFERED, RATE, KNEE)
        }

    def total_num_requests(self, now_s: float) -> float:
        """Ongoing requests of all replicas as Ray's controller finds them: the sum as a step function, its mean from
        when all series have begun, by Ray's own functions."""
        series = [self._pushed[replica][ONGOING] for replica in self._known()]
        merged = merge_instantaneous_total(series)
        if not merged:
            return 0.0
        begun_s = max(one[0].timestamp for one in series if one)
        mean = aggregate_timeseries(
            merged,
            AggregationFunction.MEAN,
            last_window_s=max(now_s - merged[-1].timestamp, 1e-3),
            window_start=max(begun_s, merged[0].timestamp) if begun_s <= merged[-1].timestamp else None,
        )
        return float(mean or 0.0)

    def _known(self) -> list[Replica]:
        return [replica for replica in self._stage.replicas.running if replica in self._pushed]

    def _recent(self, series: deque[TimeStampedValue], now_s: float) -> list[TimeStampedValue]:
        while series and series[0].timestamp < now_s - self._look_back_s:
            series.popleft()
        return list(series)

    def _name(self, replica: Replica) -> ReplicaID:
        return ReplicaID(str(replica.number), self.ident)
