"""The deployment that takes requests: it decodes, gathers chunks, and classifies here or at Classifiers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app import tracing
from serve_app.admission import ByteBudget
from serve_app.autoscaling.signals import BACKLOG, together
from serve_app.batching import Gatherer
from serve_app.cluster import Cluster
from serve_app.deployments.replica import (
    cpus,
    deployment_name,
    log_beside_serve,
    number,
    open_warm,
    passed,
    replica_name,
    request_log,
    want_version,
)
from serve_app.engines import find_engine
from serve_app.errors import fault_of_codes
from serve_app.local_model import LocalModel, of_version
from serve_app.manifest import Manifest
from serve_app.metrics import ModelMetrics, RayMetrics
from serve_app.pipeline import Pipeline, Serving
from serve_app.preprocess import make_preprocess
from serve_app.remote import RemoteClassifier
from serve_app.settings import Settings, classifier_deployment, parse_live_models, per_model
from serve_app.split import DecodePool, DecodeThreads, Split
from serve_app.tally import ModelReport, ModelTotals, ReplicaReport, live_view, totals_of
from serve_app.v2_grpc import InferenceService

READY_TIMEOUT_S = 1.0


def _split(classifier: RemoteClassifier, manifest: Manifest, settings: Settings, threads: DecodeThreads) -> Split:
    spec, batching = manifest.input, settings.batching
    gatherer = Gatherer(
        classifier,
        (spec.height, spec.width, 3),
        max_chunk=batching.max_batch_size,
        max_in_flight=batching.max_in_flight,
        ageing_s=settings.limits.batch_ageing_s,
        name=replica_name(),
    )
    decode = make_preprocess(settings.preprocess.mode, spec, settings.limits.max_pixels)
    return Split(DecodePool(decode, threads), gatherer)


HttpApp = Callable[["_Replica"], Any]


class _Replica:
    """What a Preprocessor replica is: a pipeline for each model, and what HTTP routes ask of it.

    Attributes:
        models: by public name, the default one first.
    """

    models: dict[str, Pipeline]

    async def _start(self, settings: Settings, classifiers: Mapping[str, DeploymentHandle]) -> None:
        log_beside_serve()
        tracing.begin({"replica": replica_name()})
        self.request_log = request_log(settings.logs.requests)
        self._settings = per_model(settings)
        self._metrics = RayMetrics()
        self._budget = ByteBudget(settings.limits.max_queued_bytes)
        threads = number(settings.preprocess.threads, cpus())
        self._threads = DecodeThreads(threads, ageing_s=settings.limits.batch_ageing_s)
        self._local: dict[str, LocalModel] = {}
        self._remote: dict[str, RemoteClassifier] = {}
        self._names: dict[str, str] = {}
        self._configured = False
        self.models = {}
        for key, one in self._settings.items():
            await self._add(key, one, classifiers.get(key))
        self._cluster = Cluster(["Preprocessor", *(classifier_deployment(key) for key in classifiers)])

    async def _add(self, key: str, settings: Settings, classifier: DeploymentHandle | None) -> None:
        # Here its files are checked when it is opened.
        _, manifest = await asyncio.to_thread(find_engine, settings.engine, check_files=classifier is not None)
        name = self._names[key] = key or manifest.model
        metrics = self._metrics.of(name)
        if classifier is None:
            open_engine = partial(open_warm, metrics=metrics, copies=number(settings.preprocess.threads, cpus()))
            engine = await open_engine(settings)
            local = self._local[key] = LocalModel(name, settings, engine, open_engine, metrics, self._budget)
            self.models[name] = local.pipeline
        else:
            self._remote[key] = RemoteClassifier(classifier)
            self.models[name] = await self._behind(self._remote[key], name, manifest, settings, metrics)

    async def _behind(
        self, remote: RemoteClassifier, name: str, manifest: Manifest, settings: Settings, metrics: ModelMetrics
    ) -> Pipeline:
        rate = (await remote.latency()).best_pictures_per_s()
        return Pipeline(
            name,
            settings,
            Serving(manifest, _split(remote, manifest, settings, self._threads), rate),
            metrics=metrics,
            manifest_of=partial(_manifest_of, settings, manifest.model),
            budget=self._budget,
            picture_bytes=manifest.input.height * manifest.input.width * 3,
        )

    async def check_health(self) -> None:
        """Serve's hook: a replica is replaced when a GPU in it fails."""
        for model in self._local.values():
            await passed(model.check())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook: what the autoscaling policies see of this replica."""
        return together([pipeline.stages.signals() for pipeline in self.models.values()])

    async def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Serve's hook: batching and versions changed by `user_config`, without a restart.

        Raises:
            ConfigError: unknown keys or values.
        """
        for key, live in parse_live_models(user_config, self._settings).items():
            if local := self._local.get(key):
                local.tune(live.batching)
                await want_version(local.versions, live.version, wait=not self._configured)
            else:
                self.models[self._names[key]].stages.tune(live.batching)
        self._configured = True

    async def ready(self, model: str | None = None) -> bool:
        """See `ingress.Service`. An engine in this process is warm once the constructor has returned."""
        wanted = [one for key, one in self._remote.items() if model is None or self._names[key] == model]
        return all(await asyncio.gather(*(one.warm(READY_TIMEOUT_S) for one in wanted)))

    async def report(self) -> ReplicaReport:
        """For `cluster.Cluster`."""
        models = {}
        for key, name in self._names.items():
            tally, local = self._metrics.of(name).tally, self._local.get(key)
            versions = (local.versions.serving, local.versions.problem) if local else (0, "")
            models[name] = ModelReport(tally.totals(), tally.recent(), *versions)
        return ReplicaReport(deployment_name(), self.record_autoscaling_stats()[BACKLOG], models)

    async def totals(self) -> Mapping[str, ModelTotals]:
        """See `ingress.Service`."""
        return totals_of(await self._cluster.reports())

    async def live(self) -> dict[str, Any]:
        """See `ingress.Service`."""
        reports, replicas = await asyncio.gather(self._cluster.reports(), self._cluster.replicas())
        return live_view(reports, replicas, fault_of_codes(), time.time())

    async def metrics_addresses(self) -> list[str]:
        """See `ingress.Service`."""
        return await self._cluster.metrics_addresses()

    def describe(self) -> list[dict[str, Any]]:
        """See `ingress.Service`."""
        return [_described(pipeline, is_default=place == 0) for place, pipeline in enumerate(self.models.values())]


def _manifest_of(settings: Settings, model: str, version: int) -> Manifest:
    """Of a version that a Classifier, which checked its files, already answers with. On the event loop, so quick."""
    return find_engine(of_version(settings, version, model).engine, check_files=False)[1]


def _described(pipeline: Pipeline, *, is_default: bool) -> dict[str, Any]:
    manifest, settings = pipeline.manifest, pipeline.settings
    return {
        "name": pipeline.name,
        "default": is_default,
        "version": manifest.version,
        "architecture": manifest.architecture,
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
class Preprocessor(_Replica, InferenceService):
    """The ingress, for HTTP and gRPC: decodes, gathers chunks, and classifies here or at the Classifiers.

    Args:
        settings: validated.
        http_app: makes the ASGI application; handed in, because HTTP is a layer above this one.
        classifiers: handles of the Classifiers of models in split placement, by the names of `settings.per_model`.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, settings: Settings, http_app: HttpApp, classifiers: dict[str, DeploymentHandle]
    ) -> None:
        self._http_app = http_app
        await self._start(settings, classifiers)

    def __serve_build_asgi_app__(self) -> Any:  # Serve's hook for applications that need the replica
        return self._http_app(self)
