"""`import_path: tests.service.gpu_app:build`: the service, with a stand-in GPU that takes time and can be broken.

Importing this module changes the stand-in. Replicas import it, because the settings they are given are of its class.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.serve import Application

from serve_app import app, deployments
from serve_app.ingress import create_app
from serve_app.runtime.gpu.device import Memory
from serve_app.runtime.gpu.stand_in import HostStream, OnnxExecution
from serve_app.settings import Settings
from tests.service.gpu_faults import BATCH_ENV, FAULTS_ENV, PICTURE_ENV, fault_file

_really_enqueue = OnnxExecution.enqueue


class Rehearsal(Settings):
    """Settings that bring this module with them."""


def build(args: dict[str, Any]) -> Application:
    """As `serve_app.app.build`."""
    settings = app._with_absolute_paths(Rehearsal.model_validate(args))
    return deployments.application(settings, create_app)


class _Work(list[Callable[[], None]]):
    """A stream that keeps what is put into it."""

    put = list.append


def _enqueue(self: OnnxExecution, n: int, source: Memory, target: Memory, stream: HostStream) -> None:
    work = _Work()
    _really_enqueue(self, n, source, target, work)  # type: ignore[arg-type]
    took_s = (float(os.environ[BATCH_ENV]) + n * float(os.environ[PICTURE_ENV])) / 1e3
    path = fault_file(Path(os.environ[FAULTS_ENV]), os.getpid())

    def run() -> None:  # again and again where it is part of a graph
        time.sleep(took_s)
        fault = path.read_text() if path.exists() else ""
        if fault == "error":
            raise RuntimeError("an illegal memory access was encountered, as a test asked for")
        while fault == "hang" and path.exists():
            time.sleep(0.05)
        if fault != "stale":
            for one in work:
                one()

    stream.put(run)


OnnxExecution.enqueue = _enqueue  # type: ignore[method-assign]
