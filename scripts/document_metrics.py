#!/usr/bin/env python
"""Prints the README's table of metrics, from the list that Ray's metrics are made of. A test compares the two."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from serve_app.metric_names import CONTROLLER_METRICS, REPLICA_METRICS, SERVE_TAGS, MetricName

UNITS = (
    ("_per_s", "pictures/s"),
    ("_ms", "ms"),
    ("_s", "s"),
    ("_bytes", "bytes"),
    ("_replicas", "replicas"),
    ("_pictures", "pictures"),
    ("_padding", "pictures"),
    ("_batches", "batches"),
    ("_version", "number"),
    ("_refused", "versions"),
)
"""By the end of the name; the first that fits."""


def unit(metric: MetricName) -> str:
    """Of the metric's value.

    Raises:
        ValueError: nothing is known of such a name.
    """
    for ending, name in UNITS:
        if metric.name.endswith(ending):
            return name
    raise ValueError(f"no unit is known for {metric.name}; end its name with one, or add it to UNITS")


def row(metric: MetricName, added: tuple[str, ...] = ()) -> str:
    """One Markdown row; `added` are the labels that are not the metric's own."""
    labels = ", ".join(f"`{tag}`" for tag in (*metric.tags, *added))
    return f"| `{metric.scraped_name}` | {metric.kind} | {unit(metric)} | {labels} | {metric.description} |"


def table() -> str:
    """All metrics: those of replicas, then those of the autoscaling policies."""
    return "\n".join(
        [
            "| metric | type | unit | labels | meaning |",
            "|---|---|---|---|---|",
            *(row(metric, SERVE_TAGS) for metric in REPLICA_METRICS),
            *(row(metric) for metric in CONTROLLER_METRICS),
        ]
    )


if __name__ == "__main__":
    print(table())
