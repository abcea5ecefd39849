"""How large batches may be, and how long they wait to fill: from the engine's measured latency, kept current."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.latency import LatencyTable
from serve_app.settings import Auto, BatchingSettings

MAX_AUTO_WAIT_S = 0.005
REPLAN_EVERY = 16
"""Batches between two looks at the plan: it moves with means over many batches anyway."""
_NEAREST_WEIGHT, _OTHERS_WEIGHT = 0.1, 0.02
_RATIO_BOUNDS = (0.2, 5.0)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What batches are bounded by.

    Attributes:
        max_batch_size: most pictures in one.
        knee: pictures from which larger batches save next to nothing.
        wait_s: how long a batch that is not full waits for chunks of other senders.
    """

    max_batch_size: int
    knee: int
    wait_s: float


def plan_batches(table: LatencyTable, batching: BatchingSettings) -> BatchPlan:
    """The plan for an engine that takes as long as `table` says.

    Half of the latency objective is the engine's: a picture waits for the batch that runs when it comes, and then
    for its own. The largest batch for which both fit is the bound; Clipper (NSDI '17) finds the same bound by trial,
    a measured table needs none. Waiting is worth it only where larger batches are faster per picture.
    """
    engine_ms = batching.latency_objective_ms / 2
    most = batching.max_batch_size
    while most > 1 and 2 * table.estimate_ms(most) > engine_ms:
        most -= 1
    knee = min(table.knee(), most)
    return BatchPlan(most, knee, _wait_s(batching.merge_wait_s, table, knee, batching.latency_objective_ms))


def _wait_s(setting: float | Auto, table: LatencyTable, knee: int, objective_ms: float) -> float:
    if setting != "auto":
        return setting
    if knee == 1:
        return 0.0
    return min(table.estimate_ms(1) / 1e3, MAX_AUTO_WAIT_S, objective_ms / 1e3 / 20)


class LatencyModel:
    """A latency table that follows what batches really take. Used by one thread at a time.

    Each batch moves the entry nearest to its size by a tenth of the difference, and the others by a fiftieth: a CPU
    that became slower, or busy with something else, is slower at every size.
    """

    def __init__(self, table: LatencyTable) -> None:
        self.table = table
        self.observed = 0

    def observe(self, pictures: int, batch_ms: float) -> None:
        """Counts one batch in."""
        self.observed += 1
        low, high = _RATIO_BOUNDS
        ratio = min(max(batch_ms / self.table.estimate_ms(pictures), low), high)
        nearest = min(range(len(self.table.sizes)), key=lambda at: abs(self.table.sizes[at] - pictures))
        self.table = LatencyTable(
            self.table.sizes,
            tuple(
                ms * (1 + (_NEAREST_WEIGHT if at == nearest else _OTHERS_WEIGHT) * (ratio - 1))
                for at, ms in enumerate(self.table.batch_ms)
            ),
        )


class Tuner:
    """The present plan of one engine. Used by one thread at a time, but `plan` may be read and `batching` set by any.

    Args:
        table: measured when the engine was warmed.
        batching: settings; replaced when they are changed while the service runs.
    """

    def __init__(self, table: LatencyTable, batching: BatchingSettings) -> None:
        self.model = LatencyModel(table)
        self._batching = batching
        self.plan = plan_batches(table, batching)

    @property
    def batching(self) -> BatchingSettings:
        return self._batching

    @batching.setter
    def batching(self, batching: BatchingSettings) -> None:
        self._batching = batching
        self.plan = plan_batches(self.model.table, batching)

    def observe(self, pictures: int, batch_ms: float) -> None:
        """Counts one batch in, and renews the plan now and then."""
        self.model.observe(pictures, batch_ms)
        if self.model.observed % REPLAN_EVERY == 0:
            self.plan = plan_batches(self.model.table, self._batching)

    def pictures_per_s(self) -> float:
        """Of the engine, with batches at the knee."""
        knee = self.plan.knee
        return 1e3 * knee / self.model.table.estimate_ms(knee)
