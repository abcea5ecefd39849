"""The deployment that runs the engine of one model in split placement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ray import serve

from serve_app import tracing
from serve_app.autoscaling.signals import BACKLOG
from serve_app.deployments.replica import (
    deployment_name,
    log_beside_serve,
    open_warm,
    passed,
    replica_name,
    want_version,
)
from serve_app.engines import find_engine
from serve_app.errors import EngineError, GpuFailed, InferenceFailed
from serve_app.latency import LatencyTable
from serve_app.local_model import open_version
from serve_app.merging import Arrived, Merger
from serve_app.metrics import RayMetrics
from serve_app.settings import Settings, parse_live
from serve_app.tally import ModelReport, ReplicaReport
from serve_app.types import Chunk, ChunkScores
from serve_app.versions import Versions


class _Counted:
    """`batch_size_fn` of `@serve.batch`: a batch is as large as the pictures in it, not as the calls. The decorator
    wants it before there is a replica; the one classifier of a process puts its own rule in."""

    rule: Callable[[list[Arrived]], int] = staticmethod(lambda chunks: sum(len(chunk) for chunk in chunks))

    def __call__(self, chunks: list[Arrived]) -> int:
        return self.rule(chunks)


_counted = _Counted()


@serve.deployment
class Classifier:
    """Split placement: the engine of one model, that several Preprocessors send chunks to.

    Args:
        settings: of the model.
        name: its public one, "" where its engine says how it is called.
    """

    async def __init__(self, settings: Settings, name: str = "") -> None:  # type: ignore[misc]  # Serve awaits them
        log_beside_serve()
        self._settings, self._batching = settings, settings.batching
        self._reports = RayMetrics()
        _, manifest = find_engine(settings.engine, check_files=False)  # they are when it is opened
        self._model = name or manifest.model
        self._metrics = self._reports.of(self._model)
        tracing.begin({"replica": replica_name(), "model": self._model})
        engine = await open_warm(settings, self._metrics)
        self._merger = Merger(engine, self._batching, self._metrics, name=replica_name())
        self._versions = Versions(self._model, engine.manifest.version, self._take_in, self._metrics)
        self._configured = False
        self._merge = self._merge_overlapped if self._merger.concurrent_batches > 1 else self._merge_one_by_one
        _counted.rule = self._merger.counted_size
        self._follow_plan()

    async def classify(self, chunk: Chunk) -> ChunkScores:
        """n <= max_batch_size pictures -> n rows; see `batching.Classifier`."""
        arrived = self._merger.arrived(chunk)
        try:
            return await self._merge(arrived)  # type: ignore[no-any-return]
        except GpuFailed:
            with suppress(InferenceFailed):
                await self.check_health()
            raise
        finally:
            self._merger.left(arrived)

    async def check_health(self) -> None:
        """Serve's hook: a replica whose engine fails is replaced."""
        await passed(self._merger.check())

    async def latency(self) -> LatencyTable:
        """Answers only when the engine is warm: also the readiness check of Preprocessors."""
        return self._merger.tuner.model.table

    async def report(self) -> ReplicaReport:
        """For `cluster.Cluster`."""
        tally = self._metrics.tally
        model = ModelReport(tally.totals(), tally.recent(), self._versions.serving, self._versions.problem)
        return ReplicaReport(deployment_name(), self._merger.signals()[BACKLOG], {self._model: model})

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook: what the autoscaling policies see of this replica."""
        return self._merger.signals()

    async def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Serve's hook: batching and version changed by `user_config`, without a restart.

        Raises:
            ConfigError: unknown keys or values.
        """
        live = parse_live(user_config, self._settings)
        self._batching = self._merger.tuner.batching = live.batching
        self._follow_plan()
        await want_version(self._versions, live.version, wait=not self._configured)
        self._configured = True

    async def _take_in(self, version: int) -> None:
        open_engine = partial(open_warm, metrics=self._metrics)
        engine = await open_version(self._settings, version, self._merger.engine, open_engine)
        if engine.manifest.input != self._merger.engine.manifest.input:
            await asyncio.to_thread(engine.close)
            raise EngineError(
                f"engine {engine.manifest.engine_name} takes other pictures (size, resizing or normalisation) than the "
                "one that serves, and Preprocessors make those; start it as a model of its own, or restart with it"
            )
        await self._merger.replace(engine, self._batching)
        self._follow_plan()

    # The decorator wants to know how many batches may run at once before there is an engine, so there are two.
    @serve.batch(batch_size_fn=_counted)  # type: ignore[untyped-decorator]
    async def _merge_one_by_one(self, batch: list[Arrived]) -> list[ChunkScores]:
        return await self._run(batch)

    @serve.batch(batch_size_fn=_counted, max_concurrent_batches=2)  # type: ignore[untyped-decorator]
    async def _merge_overlapped(self, batch: list[Arrived]) -> list[ChunkScores]:
        return await self._run(batch)

    async def _run(self, batch: list[Arrived]) -> list[ChunkScores]:
        scores = await self._merger.run(batch)
        self._follow_plan()
        return scores

    def _follow_plan(self) -> None:
        plan = self._merger.tuner.plan
        self._merge.set_max_batch_size(plan.max_batch_size)
        self._merge.set_batch_wait_timeout_s(plan.wait_s)

    def __del__(self) -> None:
        if hasattr(self, "_merger"):
            self._merger.close()
