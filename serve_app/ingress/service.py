"""What the routes need of the replica they run in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from serve_app.pipeline import Pipeline
from serve_app.request_log import RequestLog
from serve_app.tally import ModelTotals


class Service(Protocol):
    """A replica.

    Attributes:
        models: a pipeline for each, by public name, the default one first.
        request_log: of those that classify.
    """

    models: dict[str, Pipeline]
    request_log: RequestLog

    async def ready(self, model: str | None = None) -> bool:
        """Whether every engine behind this replica, or that of one model, is loaded and warmed."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Settings a client may want to know of each model, JSON-ready."""
        ...

    async def totals(self) -> Mapping[str, ModelTotals]:
        """Counts of each model, of all replicas."""
        ...

    async def live(self) -> dict[str, Any]:
        """What all replicas do just now, JSON-ready; see `tally.live_view`."""
        ...

    async def metrics_addresses(self) -> list[str]:
        """Where the nodes' Prometheus exporters are."""
        ...
