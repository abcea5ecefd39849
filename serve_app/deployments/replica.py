"""What replicas of every deployment do alike: their log, their CPUs, opening engines, ending when a GPU fails."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from logging.handlers import MemoryHandler

import ray
from ray import serve

from serve_app.engines import Engine, open_engine
from serve_app.errors import GpuFailed, InferenceFailed
from serve_app.metrics import Metrics
from serve_app.request_log import RequestLog, Wanted
from serve_app.runtime import GpuOptions, available_cores
from serve_app.settings import Auto, Settings
from serve_app.versions import Versions

logger = logging.getLogger("serve_app")


def log_beside_serve() -> None:
    """Our lines go where Serve's go. Serve's own logger may be quieter: it makes a record of every request, also when
    access logs are off, and a record costs as much as an answer's encoding. Nor do ours wait in the buffer in which
    throughput mode keeps a thousand records: they are few, and wanted when they are written."""
    handlers = logging.getLogger("ray.serve").handlers
    logger.handlers = [_without_wait(handler) for handler in handlers]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _without_wait(handler: logging.Handler) -> logging.Handler:
    """Its filters stay: they say which replica a line comes from, and which request."""
    if not isinstance(handler, MemoryHandler):
        return handler
    direct = MemoryHandler(capacity=1, target=handler.target)
    direct.filters = handler.filters
    return direct


def cpus() -> int:
    """The CPUs Ray gave this replica, never more than its cgroup has."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(1, min(round(float(cpus)), available_cores()))


def replica_name() -> str:
    """A name of this replica that no other has."""
    return str(serve.get_replica_context().replica_id.unique_id)


def deployment_name() -> str:
    """The one this replica is of."""
    return str(serve.get_replica_context().deployment)


def request_log(wanted: Wanted) -> RequestLog:
    """Of this replica."""
    context = serve.get_replica_context()
    about = {"application": context.app_name, "deployment": context.deployment, "replica": replica_name()}
    log = RequestLog(wanted, about)
    log.start()
    return log


def number(setting: int | Auto, automatic: int) -> int:
    return automatic if setting == "auto" else setting


async def open_warm(settings: Settings, metrics: Metrics, *, copies: int = 1) -> Engine:
    """Opens the engine off the event loop, which answers health checks meanwhile; the copies share the CPUs."""
    runtime = settings.runtime
    gpu = GpuOptions(
        settings.batching.max_batch_size, runtime.device, runtime.batches_on_gpu, runtime.cuda_graphs, metrics.gpu
    )
    threads = number(settings.runtime.threads, max(1, cpus() // copies))
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


async def passed(check: Awaitable[None]) -> None:
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


async def want_version(versions: Versions, version: int, *, wait: bool) -> None:
    """At the start a replica serves nothing yet, and begins with the right version; later it must not wait."""
    if wait:
        await versions.want(version)
    else:
        versions.want_soon(version)
