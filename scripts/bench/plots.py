"""The benchmark's pictures: PNG files, drawn without a screen."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SMALL_SHARE = 0.02
"""Process groups below this share of the highest bar are drawn together."""
SIZE_INCHES = (8.0, 4.6)


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x, y) of one system, in order of x."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class RateLatency:
    """Latencies in ms of one system at one offered rate; NaN leaves a gap."""

    rate_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float


@dataclass(frozen=True, slots=True)
class RateLine:
    """One system at several rates, in order."""

    label: str
    points: Sequence[RateLatency]


@dataclass(frozen=True, slots=True)
class Bar:
    """Core-milliseconds per request of one system, by process group."""

    label: str
    core_ms: Mapping[str, float]


def throughput_by_concurrency(lines: Sequence[Line], path: Path, *, title: str, unit: str = "pictures/s") -> None:
    """Points are (clients, throughput in `unit`)."""
    figure, axes = _axes(title, "concurrent clients (closed loop)", unit)
    _draw(axes, lines)
    clients = sorted({x for line in lines for x, _ in line.points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [f"{count:g}" for count in clients])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def latency_by_rate(lines: Sequence[RateLine], path: Path, *, title: str, unit: str = "requests/s") -> None:
    """One colour for each system; p50 solid, p99 dashed, p99.9 dotted."""
    figure, axes = _axes(title, f"offered rate, {unit} (open loop, Poisson)", "latency from the intended time, ms")
    for number, line in enumerate(lines):
        rates = [point.rate_per_s for point in line.points]
        for name, attribute, style in (("p50", "p50_ms", "-"), ("p99", "p99_ms", "--"), ("p99.9", "p999_ms", ":")):
            values = [getattr(point, attribute) for point in line.points]
            axes.plot(rates, values, style, marker="o", markersize=3, color=f"C{number}", label=f"{line.label} {name}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", which="minor", alpha=0.12)
    axes.set_xlim(left=0)
    _save(figure, axes, path)


def core_ms_by_process(bars: Sequence[Bar], path: Path, *, title: str) -> None:
    """Stacked bars, the most expensive group at the bottom; the total stands above each."""
    figure, axes = _axes(title, "", "core-ms per request")
    bars = _without_small(bars)
    totals = [sum(bar.core_ms.values()) for bar in bars]
    weight: dict[str, float] = {}
    for bar in bars:
        for name, value_ms in bar.core_ms.items():
            weight[name] = weight.get(name, 0.0) + value_ms
    bottom = [0.0] * len(bars)
    for number, name in enumerate(sorted(weight, key=lambda name: (name == "other", -weight[name]))):
        heights = [bar.core_ms.get(name, 0.0) for bar in bars]
        colour = "0.75" if name == "other" else colormaps["tab20"](number % 20)
        axes.bar(range(len(bars)), heights, width=0.6, bottom=bottom, color=colour, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for place, total_ms in enumerate(totals):
        axes.annotate(f"{total_ms:.2f}", (place, total_ms), (0, 3), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(bars)), [textwrap.fill(bar.label, 12) for bar in bars])
    axes.set_ylim(0, 1.1 * max(totals, default=0.0) or 1.0)
    _save(figure, axes, path)


def memory_over_requests(lines: Sequence[Line], path: Path, *, title: str) -> None:
    """Points are (requests answered, bytes); one line for each process or system."""
    figure, axes = _axes(title, "requests answered", "memory (PSS), MiB")
    _draw(axes, [Line(line.label, [(x, y / 2**20) for x, y in line.points]) for line in lines], marker="")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _save(figure, axes, path)


def _without_small(bars: Sequence[Bar]) -> list[Bar]:
    highest_ms = max((sum(bar.core_ms.values()) for bar in bars), default=0.0)
    names = {name for bar in bars for name in bar.core_ms}
    largest = {name: max(bar.core_ms.get(name, 0.0) for bar in bars) for name in names}
    shown = {name for name, value_ms in largest.items() if value_ms >= SMALL_SHARE * highest_ms}
    result = []
    for bar in bars:
        other_ms = sum(value_ms for name, value_ms in bar.core_ms.items() if name not in shown)
        kept = {name: value_ms for name, value_ms in bar.core_ms.items() if name in shown}
        result.append(Bar(bar.label, kept | ({"other": other_ms + kept.get("other", 0.0)} if other_ms else {})))
    return result


def _draw(axes: Axes, lines: Sequence[Line], marker: str = "o") -> None:
    for line in lines:
        axes.plot(
            [x for x, _ in line.points], [y for _, y in line.points], marker=marker, markersize=4, label=line.label
        )


def _axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    """The legend stands beside the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
