"""From raw results to tables: medians over rounds, and ratios taken within a round, where the machine was the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """One system in one round at one number of clients.

    Attributes:
        core_ms: core-milliseconds per request by process.
        idle_share: of the whole machine, 0..1.
        result: everything the load generator found, JSON-ready.
    """

    system: str
    round: int
    clients: int
    pictures_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int
    core_ms: Mapping[str, float]
    idle_share: float
    result: Mapping[str, Any] = field(default_factory=dict)


def median_of(samples: Sequence[Sample], system: str, clients: int, value: str) -> float:
    """Median over the rounds of one attribute; NaN where there is none."""
    values = [getattr(one, value) for one in samples if (one.system, one.clients) == (system, clients)]
    return median(values) if values else float("nan")


def ratios(samples: Sequence[Sample], system: str, other: str, clients: int) -> list[float]:
    """Throughput of `system` over that of `other`, round by round; rounds that lack one of them are left out."""
    rates = {(one.system, one.round): one.pictures_per_s for one in samples if one.clients == clients}
    rounds = sorted({one.round for one in samples})
    pairs = [(rates.get((system, number)), rates.get((other, number))) for number in rounds]
    return [mine / theirs for mine, theirs in pairs if mine and theirs]


def table(samples: Sequence[Sample], baseline: str, floor_per_s: float | None = None) -> str:
    """Markdown: a row per system and number of clients; `ratio` is `baseline` over the row, median (min..max)."""
    titles = ["system", "clients", "pictures/s", "of the floor", "ratio to it", "p50 ms", "p99 ms", "core-ms"]
    lines = [f"| {' | '.join([*titles, 'idle', 'failed'])} |", "|---" * 10 + "|"]
    systems = list(dict.fromkeys(one.system for one in samples))
    for clients in sorted({one.clients for one in samples}):
        lines += [_row(samples, system, clients, baseline, floor_per_s) for system in systems]
    return "\n".join(lines)


def _row(samples: Sequence[Sample], system: str, clients: int, baseline: str, floor_per_s: float | None) -> str:
    mine = [one for one in samples if (one.system, one.clients) == (system, clients)]
    if not mine:
        return f"| {system} | {clients} | did not run |||||||"
    rate = median(one.pictures_per_s for one in mine)
    cells = [
        system,
        str(clients),
        f"{rate:.0f}",
        f"{rate / floor_per_s:.0%}" if floor_per_s else "",
        _ratio(ratios(samples, baseline, system, clients)) if system != baseline else "",
        f"{median(one.p50_ms for one in mine):.0f}",
        f"{median(one.p99_ms for one in mine):.0f}",
        f"{median(sum(one.core_ms.values()) for one in mine):.2f}",
        f"{median(one.idle_share for one in mine):.0%}",
        str(sum(one.failed for one in mine)),
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}..{max(values):.2f})" if values else ""
