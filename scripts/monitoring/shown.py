"""Rows, panels and queries of a dashboard, before they become Grafana's JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

APPROXIMATE = "Approximate: Ray adds up the middles of the histogram's buckets."

Kind = Literal["timeseries", "stat", "heatmap"]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    Attributes:
        expr: PromQL with Grafana's variables.
        legend: how its series are named.
        empty_because: why a healthy service may have no such series; "" where it must have one.
    """

    expr: str
    legend: str = ""
    empty_because: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        text: what it shows and how to read it.
        unit: one of Grafana's.
        width: of 24 columns.
        stacked: series add up.
        threshold: a line is drawn here.
    """

    title: str
    text: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading; `folded` ones are opened by a click."""

    title: str
    panels: tuple[Panel, ...]
    folded: bool = False
