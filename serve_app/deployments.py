"""The Ray shell: the only `@serve.deployment`s. Wires pure parts together and holds no logic of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import ray
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayError, WorkerCrashedError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.batching import Gatherer
from serve_app.colocated import Colocated
from serve_app.engines import Engine, EngineThread, find_engine, open_engine
from serve_app.errors import GpuFailed, InferenceFailed, NotReady, Overloaded
from serve_app.latency import LatencyTable
from serve_app.manifest import InputSpec, Manifest
from serve_app.merging import Arrived, Merger, check_engine
from serve_app.metrics import Metrics, RayMetrics
from serve_app.pipeline import Pipeline
from serve_app.preprocess import make_preprocess
from serve_app.runtime import GpuOptions, OverlappingRuntime, available_cores
from serve_app.settings import Auto, Settings, parse_live
from serve_app.split import DecodePool, Split
from serve_app.stages import Stages
from serve_app.tuning import Tuner
from serve_app.types import Chunk, ChunkScores, Picture

logger = logging.getLogger("serve_app")
PATIENCE, MIN_PATIENCE_S, FIRST_PATIENCE_S = 10.0, 1.0, 30.0
"""Ten times the mean answer is not slow any more, it is silence: a machine without power closes no connection, and gRPC
gives up on it after a minute. At first an answer may have to wait for a replica to start."""
RESENDS = 3
"""A router that does not know yet that a replica is gone may choose it again."""
_GONE = (ActorDiedError, ActorUnavailableError, NodeDiedError, WorkerCrashedError)


def _log_beside_serve() -> None:
    """Our lines go where Serve's go. Serve's own logger may be quieter: it makes a record of every request, also when
    access logs are off, and a record costs as much as an answer's encoding. Nor do ours wait in the buffer in which
    throughput mode keeps a thousand records: they are few, and wanted when they are written."""
    handlers = logging.getLogger("ray.serve").handlers
    logger.handlers = [getattr(handler, "target", None) or handler for handler in handlers]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _cpus() -> int:
    """The CPUs Ray gave this replica, never more than its cgroup has."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(1, min(round(float(cpus)), available_cores()))


def _replica() -> str:
    """A name of this replica that no other has."""
    return str(serve.get_replica_context().replica_id.unique_id)


def _number(setting: int | Auto, automatic: int) -> int:
    return automatic if setting == "auto" else setting


async def _open(settings: Settings, metrics: Metrics, copies: int = 1) -> Engine:
    """Opens the engine off the event loop, which answers health checks meanwhile; the copies share the CPUs."""
    runtime = settings.runtime
    gpu = GpuOptions(
        settings.batching.max_batch_size, runtime.device, runtime.batches_on_gpu, runtime.cuda_graphs, metrics.gpu
    )
    threads = _number(settings.runtime.threads, max(1, _cpus() // copies))
    engine = await asyncio.to_thread(
        open_engine,
        settings.engine,
        threads=threads,
        max_batch_size=settings.batching.max_batch_size,
        inference_precision=settings.runtime.inference_precision,
        copies=copies,
        gpu=gpu,
    )
    logger.info(
        "engine %s is warm: %s in %s on %s, %d x %d thread(s), up to %.0f pictures/s",
        engine.manifest.engine_name,
        engine.runtimes[0].info.backend,
        engine.runtimes[0].info.inference_precision,
        engine.runtimes[0].info.device,
        copies,
        threads,
        engine.best_pictures_per_s(),
    )
    return engine


async def _passed(check: Awaitable[None]) -> None:
    """Ends this process where the check says that its GPU failed.

    CUDA's errors last as long as the process, and a replica that fails at once always has the shortest queue, so that
    nearly everything is sent to it until Serve, after three checks, replaces it. One whose process ends is replaced
    without more ado, and what it had is sent to others.

    Raises:
        InferenceFailed: the check failed otherwise.
    """
    try:
        await check
    except (GpuFailed, InferenceFailed) as error:
        if not isinstance(error, GpuFailed) and not isinstance(error.__cause__, GpuFailed):
            raise
        logger.error("this replica ends, for Serve to replace it: %s", error)
        os._exit(1)


class _Counted:
    """`batch_size_fn` of `@serve.batch`: a batch is as large as the pictures in it, not as the calls. The decorator
    wants it before there is a replica; the one classifier of a process puts its own rule in."""

    rule: Callable[[list[Arrived]], int] = staticmethod(lambda chunks: sum(len(chunk) for chunk in chunks))

    def __call__(self, chunks: list[Arrived]) -> int:
        return self.rule(chunks)


_counted = _Counted()


@serve.deployment
class Classifier:
    """Split placement: an engine that several Preprocessors send chunks to."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits constructors
        _log_beside_serve()
        self._batching = settings.batching
        metrics = RayMetrics()
        self._merger = Merger(await _open(settings, metrics), settings.batching, metrics, name=_replica())
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
        await _passed(self._merger.check())

    async def latency(self) -> LatencyTable:
        """Answers only when the engine is warm: also the readiness check of Preprocessors."""
        return self._merger.tuner.model.table

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook: what the autoscaling policies see of this replica."""
        return self._merger.signals()

    def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Serve's hook: batching changed by `user_config`, without a restart.

        Raises:
            ConfigError: unknown keys or values.
        """
        self._merger.tuner.batching = parse_live(user_config, self._batching)
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


class RemoteClassifier:
    """Classifier replicas behind a handle; satisfies `batching.Classifier`.

    Args:
        handle: of the deployment.
        clock: monotonic seconds.
    """

    def __init__(self, handle: DeploymentHandle, clock: Callable[[], float] = time.monotonic) -> None:
        self._handle = handle
        self._clock = clock
        self._mean_s = FIRST_PATIENCE_S / PATIENCE

    @property
    def patience_s(self) -> float:
        """How long an answer may take before its replica is taken for dead."""
        return max(MIN_PATIENCE_S, PATIENCE * self._mean_s)

    async def classify(self, chunk: Chunk) -> ChunkScores:
        """See `batching.Classifier`. Ray's errors become ours, so that a client sees 429 and 503, not 500.

        A chunk whose replica, node or GPU dies, or falls silent, is sent again, to another if the router is so kind:
        classifying twice does no harm.
        """
        try:
            for _ in range(RESENDS):
                try:
                    async with asyncio.timeout(self.patience_s):
                        return await self._send(chunk)
                except (*_GONE, GpuFailed, TimeoutError) as error:
                    logger.warning("a classifier went away (%s); sending its chunk again", type(error).__name__)
                    chunk = replace(chunk, offered_pictures=0)
            return await self._send(chunk)
        except BackPressureError as error:
            raise Overloaded("the classifiers are full; try again later", error.retry_after_s or 1.0) from None
        except RayServeException as error:
            raise NotReady(f"no classifier is available ({type(error).__name__}); try again in a second") from error
        except (RayError, GpuFailed) as error:
            logger.exception("a chunk of %d pictures failed at the classifier", len(chunk.pictures))
            raise InferenceFailed("the classifier failed; try again, the operator's log says why") from error

    async def _send(self, chunk: Chunk) -> ChunkScores:
        sent_s = self._clock()
        response = self._handle.classify.remote(chunk)
        try:
            scores: ChunkScores = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        self._mean_s += 0.05 * (self._clock() - sent_s - self._mean_s)
        return scores

    async def latency(self) -> LatencyTable:
        """Of the replica that answers first; waits for one to be warm."""
        return await self._handle.latency.remote()  # type: ignore[no-any-return]


def _decoder(settings: Settings, spec: InputSpec) -> Callable[[bytes], Picture]:
    return make_preprocess(settings.preprocess.mode, spec, settings.limits.max_pixels)


def _colocated(engine: Engine, settings: Settings, metrics: Metrics) -> Colocated:
    spec = engine.manifest.input
    return Colocated(
        [runtime.infer for runtime in engine.runtimes],
        _decoder(settings, spec),
        (spec.height, spec.width, 3),
        max_chunk=engine.max_batch_size,
        tuner=Tuner(engine.latency, settings.batching),
        ageing_s=settings.limits.batch_ageing_s,
        on_batch=metrics.batch,
    )


def _split(classifier: RemoteClassifier, manifest: Manifest, settings: Settings) -> Split:
    spec, batching, ageing_s = manifest.input, settings.batching, settings.limits.batch_ageing_s
    gatherer = Gatherer(
        classifier,
        (spec.height, spec.width, 3),
        max_chunk=batching.max_batch_size,
        max_in_flight=batching.max_in_flight,
        ageing_s=ageing_s,
        name=_replica(),
    )
    threads = _number(settings.preprocess.threads, _cpus())
    return Split(DecodePool(_decoder(settings, spec), threads, ageing_s=ageing_s), gatherer)


HttpApp = Callable[["_Replica"], Any]


class _Replica:
    """What a Preprocessor replica is: a pipeline, and what HTTP routes ask of it."""

    pipeline: Pipeline
    _remote: RemoteClassifier | None
    _check: Callable[[], Awaitable[None]] | None = None

    async def _start(self, settings: Settings, classifier: DeploymentHandle | None) -> None:
        _log_beside_serve()
        metrics = RayMetrics()
        stages: Stages
        if classifier is None:
            engine, self._remote = await _open(settings, metrics, _number(settings.preprocess.threads, _cpus())), None
            manifest, rate, picture_bytes = engine.manifest, engine.best_pictures_per_s(), 0
            stages = _colocated(engine, settings, metrics)
            if isinstance(engine.runtimes[0], OverlappingRuntime):  # others belong to one thread each
                self._check = partial(check_engine, EngineThread(engine.runtimes[0]), engine, metrics)
        else:
            self._remote = RemoteClassifier(classifier)
            _, manifest = await asyncio.to_thread(find_engine, settings.engine)
            rate = (await self._remote.latency()).best_pictures_per_s()
            picture_bytes = manifest.input.height * manifest.input.width * 3
            stages = _split(self._remote, manifest, settings)
        self.pipeline = Pipeline(
            manifest, settings, stages, engine_pictures_per_s=rate, metrics=metrics, picture_bytes=picture_bytes
        )

    async def check_health(self) -> None:
        """Serve's hook: a replica is replaced when the GPU in it fails."""
        if self._check is not None:
            await _passed(self._check())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook: what the autoscaling policies see of this replica."""
        return self.pipeline.stages.signals()

    def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Serve's hook: batching changed by `user_config`, without a restart.

        Raises:
            ConfigError: unknown keys or values.
        """
        self.pipeline.stages.tune(parse_live(user_config, self.pipeline.settings.batching))

    async def ready(self) -> bool:
        """See `ingress.Service`. An engine in this process is warm once the constructor has returned."""
        if self._remote is None:
            return True
        try:
            async with asyncio.timeout(1):
                await self._remote.latency()
        except (TimeoutError, RayServeException, RayError):
            return False
        return True

    def describe(self) -> dict[str, Any]:
        """See `ingress.Service`."""
        manifest, settings = self.pipeline.manifest, self.pipeline.settings
        return {
            "name": manifest.model,
            "backend": manifest.backend,
            "precision": manifest.precision,
            "trained": manifest.trained,
            "num_classes": manifest.num_classes,
            "preprocess": settings.preprocess.mode,
            "placement": settings.placement,
            "device": settings.runtime.device if manifest.backend == "tensorrt" else "cpu",
            "max_batch_size": settings.batching.max_batch_size,
            "weights": manifest.weights.model_dump(mode="json"),
            "input": manifest.input.model_dump(mode="json"),
        }


@serve.deployment(max_ongoing_requests=1000)
@serve.ingress()
class Preprocessor(_Replica):
    """The HTTP ingress: decodes, gathers chunks, and classifies here or at the Classifier.

    Args:
        settings: validated.
        http_app: makes the ASGI application; handed in, because HTTP is a layer above this one.
        classifier: handle of the Classifier in split placement, None when the engine runs here.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, settings: Settings, http_app: HttpApp, classifier: DeploymentHandle | None = None
    ) -> None:
        self._http_app = http_app
        await self._start(settings, classifier)

    def __serve_build_asgi_app__(self) -> Any:  # Serve's hook for applications that need the replica
        return self._http_app(self)


def application(settings: Settings, http_app: HttpApp) -> Application:
    """The deployments of one placement, bound to each other."""
    # mypy sees the classes, not what Serve's decorators made of them.
    preprocessor, classifier = cast(Any, Preprocessor), cast(Any, Classifier)
    if settings.placement == "split":
        return preprocessor.bind(settings, http_app, classifier.bind(settings))
    return preprocessor.bind(settings, http_app)
