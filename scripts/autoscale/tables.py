"""From outcomes to tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scripts.autoscale.contenders import CLASSIFY, DECODE
from scripts.autoscale.replay import Comparison
from scripts.autoscale.simulate import Outcome

TITLES = [
    "policy",
    "offered",
    "in time",
    "late",
    "shed",
    "late+shed",
    "of offered",
    "p99 ms",
    "replica-s decode",
    "classify",
    "total",
    "most decode",
    "classify",
    "reversals decode",
    "classify",
    "per load change",
]


def comparison_table(comparison: Comparison) -> str:
    """One row per policy; below it, what each policy is."""
    trace = comparison.trace
    changes = trace.load_changes()
    heading = (
        f"{trace.name}: {trace.seconds:g} s, {changes} change{'' if changes == 1 else 's'} of the load's direction"
    )
    rows = [_row(one, changes) for one in comparison.outcomes]
    notes = [f"- {one.policy}: {one.describe}" for one in comparison.outcomes]
    return "\n".join([f"### {heading}", "", _markdown(TITLES, rows), "", *notes])


def ratio_table(comparisons: Sequence[Comparison], mine: str, theirs: str) -> str:
    """`mine` over `theirs`, one row per trace; traces that lack one of them are left out."""
    rows = []
    for comparison in comparisons:
        first, second = comparison.of(mine), comparison.of(theirs)
        if first and second:
            missed = _ratio(first.missed, second.missed)
            seconds = _ratio(first.total_replica_s, second.total_replica_s)
            each = _ratio(_each_answered(first), _each_answered(second))
            rows.append([comparison.trace.name, missed, seconds, each])
    titles = [f"{mine} / {theirs}", "late+shed", "replica-seconds", "replica-seconds per picture in time"]
    return _markdown(titles, rows)


def _row(one: Outcome, changes: int) -> list[str]:
    reversals = [one.reversals[name] for name in (DECODE, CLASSIFY)]
    return [
        one.policy,
        str(one.offered),
        str(one.in_time),
        str(one.late),
        str(one.shed),
        str(one.missed),
        f"{one.missed / max(1, one.offered):.2%}",
        "" if one.p99_ms is None else str(one.p99_ms),
        *(f"{one.replica_s[name]:.0f}" for name in (DECODE, CLASSIFY)),
        f"{one.total_replica_s:.0f}",
        *(str(one.most[name]) for name in (DECODE, CLASSIFY)),
        *(str(count) for count in reversals),
        f"{max(reversals) / max(1, changes):.1f}",
    ]


def _each_answered(one: Outcome) -> float:
    return one.total_replica_s / max(1, one.in_time)


def _ratio(first: float, second: float) -> str:
    if second == 0:
        return "both 0" if first == 0 else "more than 0"
    return f"{first / second:.2f}"


def _markdown(titles: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    head = list(titles)
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)])
