"""One picture per load: what came, what waited, and the replicas of each stage; a column per policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.autoscale.contenders import CLASSIFY, DECODE
from scripts.autoscale.replay import Comparison
from scripts.autoscale.simulate import Moment, Outcome

COLUMN_INCHES, HEIGHT_INCHES = 5.0, 8.0
ROWS = ("offered, pictures/s", "inside, pictures", f"{DECODE} replicas", f"{CLASSIFY} replicas")
SMOOTH = 4
"""Ticks over which the load is averaged."""


def draw(comparison: Comparison, path: Path) -> None:
    """Saves a PNG; axes are shared, so that columns can be compared by eye."""
    outcomes = comparison.outcomes
    figure = Figure(figsize=(1 + COLUMN_INCHES * len(outcomes), HEIGHT_INCHES), layout="constrained")
    grid = figure.subplots(len(ROWS), len(outcomes), sharex="all", sharey="row", squeeze=False)
    for column, outcome in enumerate(outcomes):
        _column([row[column] for row in grid], outcome)
    for row, label in zip(grid, ROWS, strict=True):
        row[0].set_ylabel(label)
        row[0].set_ylim(bottom=0)
    handles, labels = grid[2][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize="small")
    figure.suptitle(f"{comparison.trace.name}: the same arrivals for every policy", fontsize="medium")
    figure.savefig(path, dpi=110)


def _column(axes: Sequence[Axes], outcome: Outcome) -> None:
    at_s = [one.at_s for one in outcome.moments]
    axes[0].plot(at_s, _offered_per_s(outcome.moments), color="C7", linewidth=1)
    axes[1].plot(at_s, [one.inside for one in outcome.moments], color="C3", linewidth=1)
    for one, name in ((axes[2], DECODE), (axes[3], CLASSIFY)):
        wanted = [moment.desired[name] for moment in outcome.moments]
        serving = [moment.running[name] for moment in outcome.moments]
        one.plot(at_s, wanted, color="C1", linewidth=1, drawstyle="steps-post", label="desired")
        one.plot(at_s, serving, color="C0", linewidth=1.5, drawstyle="steps-post", label="running")
    missed = f"late+shed {outcome.missed / max(1, outcome.offered):.1%}, {outcome.total_replica_s:.0f} replica-s"
    axes[0].set_title(f"{outcome.policy}: {missed}", loc="left", fontsize="medium")
    axes[-1].set_xlabel("seconds")
    for one in axes:
        one.grid(axis="y", alpha=0.3)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)


def _offered_per_s(moments: Sequence[Moment]) -> list[float]:
    """Over the last ticks of each moment."""
    rates = []
    for number, moment in enumerate(moments):
        first = max(0, number - SMOOTH)
        seconds = moment.at_s - moments[first].at_s
        offered = sum(one.offered for one in moments[first + 1 : number + 1])
        rates.append(offered / seconds if seconds else 0.0)
    return rates[:1] and [rates[1] if len(rates) > 1 else 0.0, *rates[1:]]
