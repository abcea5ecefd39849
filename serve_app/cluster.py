"""What one replica learns of all the others: their reports, how many there are, and Ray's metrics of every node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray import serve

from serve_app.tally import ReplicaReport, Replicas

T = TypeVar("T")
FRESH_S = 1.0
"""However many watch, each replica is asked so often at most, by each that is watched."""
PATIENCE_S = 2.0
"""A replica that does not answer in time is left out of a report."""
_GOING = ("STOPPING", "STOPPED")


class Cached(Generic[T]):
    """The result of a slow question, asked again only when it is old; those who ask meanwhile wait for the same answer.

    Args:
        ask: the question.
        fresh_s: how long an answer holds.
        clock: monotonic seconds.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], fresh_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._clock = clock
        self._asked_s = float("-inf")
        self._answer: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        failed = self._answer is not None and self._answer.done() and self._answer.exception() is not None
        if self._answer is None or failed or self._clock() - self._asked_s >= self._fresh_s:
            self._asked_s = self._clock()
            self._answer = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self._answer)  # one who goes away takes nobody's answer


class Cluster:
    """The application this replica belongs to.

    Args:
        deployments: its deployments, in the order in which a picture meets them.
    """

    def __init__(self, deployments: Sequence[str]) -> None:
        self._application = serve.get_replica_context().app_name
        self._deployments = tuple(deployments)
        self.reports = Cached(self._reports, FRESH_S)
        """One of each replica that answers."""
        self.replicas = Cached(self._replicas, FRESH_S)
        """Of each deployment."""

    async def _reports(self) -> list[ReplicaReport]:
        answers = await asyncio.gather(*(self._reports_of(name) for name in self._deployments))
        return [report for reports in answers for report in reports]

    async def _reports_of(self, deployment: str) -> list[ReplicaReport]:
        handle = serve.get_deployment_handle(deployment, self._application)
        try:
            answers = await handle.broadcast("report").results_async(timeout_s=PATIENCE_S, return_exceptions=True)
        except Exception:  # no replica at present, or Serve is busy with a change: there is nothing to report
            return []
        return [answer for answer in answers if isinstance(answer, ReplicaReport)]

    async def _replicas(self) -> dict[str, Replicas]:
        status = await asyncio.to_thread(serve.status)
        application = status.applications.get(self._application)
        known = application.deployments if application else {}
        return {name: _counted(known[name].replica_states) for name in self._deployments if name in known}

    async def metrics_addresses(self) -> list[str]:
        """`http://HOST:PORT/metrics` of every node's Prometheus exporter."""
        nodes = await asyncio.to_thread(ray.nodes)
        return [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in nodes
            if node["Alive"] and node.get("MetricsExportPort")
        ]


def _counted(states: dict[Any, int]) -> Replicas:
    by_name = {getattr(state, "value", str(state)): count for state, count in states.items()}
    return Replicas(
        desired=sum(count for name, count in by_name.items() if name not in _GOING), running=by_name.get("RUNNING", 0)
    )
