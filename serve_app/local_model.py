"""A model whose engine runs in the process that decodes, and newer versions of that engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from serve_app.admission import ByteBudget
from serve_app.colocated import Colocated
from serve_app.engines import Engine, EngineThread, check_figures, find_engine
from serve_app.merging import check_engine
from serve_app.metrics import Metrics
from serve_app.pipeline import Pipeline, Serving
from serve_app.preprocess import make_preprocess
from serve_app.runtime import OverlappingRuntime
from serve_app.settings import BatchingSettings, Settings
from serve_app.tuning import Tuner
from serve_app.versions import Versions

OpenEngine = Callable[[Settings], Awaitable[Engine]]


def of_version(settings: Settings, version: int, model: str | None = None) -> Settings:
    """The settings of one model, for another version of its engine."""
    changes = {"version": version} | ({"model": model} if model else {})
    return settings.model_copy(update={"engine": settings.engine.model_copy(update=changes)})


async def open_version(settings: Settings, version: int, present: Engine, open_engine: OpenEngine) -> Engine:
    """Opens and warms another version of `present`, if its figures are good.

    Raises:
        EngineError: it is missing, was never verified or is worse than it may be, or does not run.
    """
    wanted = of_version(settings, version, present.manifest.model)
    _, manifest = find_engine(wanted.engine, check_files=False)  # they are when it is opened
    check_figures(manifest)
    return await open_engine(wanted)


class LocalModel:
    """One model of a replica.

    Args:
        name: public.
        settings: of the model.
        engine: warm; serves at first.
        open_engine: opens another, as this one was opened.
        metrics: of the model.
        budget: bytes that the replica's models share.

    Attributes:
        pipeline: what requests go through, whatever version is behind it.
        versions: which that is.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        engine: Engine,
        open_engine: OpenEngine,
        metrics: Metrics,
        budget: ByteBudget,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._batching = settings.batching
        self._open_engine = open_engine
        self._metrics = metrics
        self._check = self._checked(engine)
        self.pipeline = Pipeline(name, settings, self._serving(engine), metrics=metrics, budget=budget)
        self.versions = Versions(name, engine.manifest.version, self._take_in, metrics)

    def tune(self, batching: BatchingSettings) -> None:
        """Batches follow these settings from now on, whatever version serves."""
        self._batching = batching
        self.pipeline.stages.tune(batching)

    async def check(self) -> None:
        """See `merging.check_engine`; other engines than a GPU's belong to one thread each, and are not asked."""
        if self._check is not None:
            await self._check()

    def _checked(self, engine: Engine) -> Callable[[], Awaitable[None]] | None:
        if not isinstance(engine.runtimes[0], OverlappingRuntime):
            return None
        return partial(check_engine, EngineThread(engine.runtimes[0]), engine, self._metrics)

    def _serving(self, engine: Engine) -> Serving:
        spec, limits = engine.manifest.input, self._settings.limits
        stages = Colocated(
            [runtime.infer for runtime in engine.runtimes],
            make_preprocess(self._settings.preprocess.mode, spec, limits.max_pixels),
            (spec.height, spec.width, 3),
            max_chunk=engine.max_batch_size,
            tuner=Tuner(engine.latency, self._batching),
            ageing_s=limits.batch_ageing_s,
            on_batch=self._metrics.batch,
        )
        return Serving(engine.manifest, stages, engine.best_pictures_per_s())

    async def _take_in(self, version: int) -> None:
        engine = await open_version(self._settings, version, self._engine, self._open_engine)
        before, self._engine = self._engine, engine
        self._check = self._checked(engine)
        await self.pipeline.replace(self._serving(engine))
        await asyncio.to_thread(before.close)
