"""The GPU configurations on invented nodes: what is changed in them, and what is seen from outside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.local_service import ROOT, load, with_args
from tests.service.gpu_engines import MODEL, make_gpu_engine
from tests.service.gpu_faults import BATCH_ENV, FAULTS_ENV, PICTURE_ENV
from tests.service.nodes import Nodes, several_nodes

FAULTY = "tests.service.gpu_app:build"


def rehearsed(name: str, folder: Path, *, max_batch_size: int = 16, import_path: str | None = None) -> dict[str, Any]:
    """configs/NAME.yaml on stand-ins, with an engine that is written below `folder`."""
    make_gpu_engine(folder / "engines")
    config = with_args(
        load(name),
        {
            "engine": {"engines_dir": str(folder / "engines"), "model": MODEL, "precision": "fp16"},
            "runtime": {"device": "stand_in"},
            "batching": {"max_batch_size": max_batch_size},
        },
    )
    if import_path:
        config["applications"][0]["import_path"] = import_path
    return config


def deployment(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of one deployment, to be changed."""
    found: dict[str, Any] = next(one for one in config["applications"][0]["deployments"] if one["name"] == name)
    return found


def bounded(config: Mapping[str, Any], name: str, most: int, least: int = 1) -> None:
    """Sets how many replicas a deployment may have."""
    deployment(config, name)["autoscaling_config"] |= {"min_replicas": least, "max_replicas": most}


@contextmanager
def gpu_nodes(
    config: Mapping[str, Any],
    folder: Path,
    faults: Path,
    *,
    head: Mapping[str, float],
    worker: Mapping[str, float] | None = None,
    workers: int = 0,
    batch_ms: float = 0.0,
    picture_ms: float = 0.0,
) -> Iterator[Nodes]:
    """`config` on a head and workers that claim `head` and `worker`.

    Args:
        faults, batch_ms, picture_ms: for `FAULTY`; see `gpu_app`.
    """
    env = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(":"),
        FAULTS_ENV: str(faults),
        BATCH_ENV: str(batch_ms),
        PICTURE_ENV: str(picture_ms),
    }
    options = ["--head", json.dumps(head), "--worker", json.dumps(worker or {}), "--workers", str(workers)]
    with several_nodes(config, folder, *options, env=env) as started:
        yield started
