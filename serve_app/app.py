"""`import_path: serve_app.app:build` of every configuration: from `args` to bound deployments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.serve import Application

from serve_app.deployments import application
from serve_app.engines import find_engine
from serve_app.errors import GpuMissing
from serve_app.ingress import create_app
from serve_app.settings import Settings, needs_gpu, parse_settings, per_model

_MANAGED = ("KUBERNETES_SERVICE_HOST", "RAY_NODE_TYPE_NAME", "RAY_CLOUD_INSTANCE_ID")


def build(args: dict[str, Any]) -> Application:
    """The application, as Ray Serve asks for it.

    Args:
        args: see `settings.Settings`.

    Raises:
        ConfigError: unknown keys or values.
        GpuMissing: the engine is for a GPU, and there is none, nor will there be.
        EngineError: no such engine, or one that does not fit its manifest: better here than in every replica.
    """
    settings = _with_absolute_paths(parse_settings(args))
    if needs_gpu(settings):
        _require_gpu(ray.nodes(), os.environ)
    for one in per_model(settings).values():
        find_engine(one.engine)
    return application(settings, create_app)


def _require_gpu(nodes: Sequence[Mapping[str, Any]], env: Mapping[str, str]) -> None:
    """Replicas that wait for a GPU on a lone machine without one would wait for ever, and say nothing.

    Args:
        nodes: as Ray lists them.
        env: of this process; a node that KubeRay or Ray's cluster launcher started may get others with GPUs later.
    """
    alive = [node for node in nodes if node["Alive"]]
    if len(alive) != 1 or alive[0]["Resources"].get("GPU") or any(name in env for name in _MANAGED):
        return
    raise GpuMissing(
        "this configuration needs an NVIDIA GPU, and Ray finds none on this machine; serve on the CPU with "
        "configs/cpu.yaml, or rehearse this one: image-serve start CONFIG --stand-in-gpus 1"
    )


def _with_absolute_paths(settings: Settings) -> Settings:
    """Replicas run in folders of their own: a relative path means the folder the service was started in."""
    engines_dir = Path(settings.engine.engines_dir).absolute()
    return settings.model_copy(update={"engine": settings.engine.model_copy(update={"engines_dir": engines_dir})})
