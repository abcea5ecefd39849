"""The picture of a live run: load, backlog, and replicas wanted and serving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from scripts.autoscale.observe import Observed

STAGES = ("Classifier", "Preprocessor")
SIZE_INCHES = (9.0, 7.0)


def draw(seen: Observed, phases: Sequence[tuple[float, float]], path: Path) -> None:
    """Saves a PNG; `phases` are (seconds since the epoch, pictures per second offered from then on)."""
    zero_s, end_s = phases[0][0], seen.samples[-1].at_s
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    load, backlog, *stages = figure.subplots(4, 1, sharex=True)
    times = [at_s - zero_s for at_s, _ in phases] + [end_s - zero_s]
    load.plot(
        times, [rate for _, rate in phases] + [phases[-1][1]], color="C7", drawstyle="steps-post", label="offered"
    )
    measured = [one for one in seen.of(STAGES[0]) if "arrivals_per_s" in one.fields]
    load.plot(
        [one.at_s - zero_s for one in measured], [one.fields["arrivals_per_s"] for one in measured], label="measured"
    )
    load.set_ylabel("pictures/s")
    for name in STAGES:
        known = [one for one in seen.of(name) if "backlog_pictures" in one.fields]
        backlog.plot(
            [one.at_s - zero_s for one in known], [one.fields["backlog_pictures"] for one in known], label=name
        )
    backlog.set_ylabel("backlog, pictures")
    for axes, name in zip(stages, STAGES, strict=True):
        wanted = seen.of(name)
        axes.plot(
            [one.at_s - zero_s for one in wanted],
            [one.fields["desired"] for one in wanted],
            color="C1",
            drawstyle="steps-post",
            label="desired",
        )
        axes.plot(
            [one.at_s - zero_s for one in seen.samples],
            [one.running.get(name, 0) for one in seen.samples],
            color="C0",
            drawstyle="steps-post",
            label="running",
        )
        axes.set_ylabel(f"{name}s")
    for axes in (load, backlog, *stages):
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper right", frameon=False, fontsize="small")
    stages[-1].set_xlabel("seconds")
    load.set_title("a step of the load on a real local cluster", loc="left", fontsize="medium")
    figure.savefig(path, dpi=110)
