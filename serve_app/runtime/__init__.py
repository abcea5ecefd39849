"""Engines of every backend behind one protocol."""

from __future__ import annotations

from pathlib import Path

from serve_app.errors import EngineError
from serve_app.manifest import Manifest
from serve_app.runtime.base import Runtime, RuntimeInfo, available_cores
from serve_app.types import InferencePrecision

__all__ = ["Runtime", "RuntimeInfo", "available_cores", "load_runtime"]


def load_runtime(
    folder: Path, manifest: Manifest, *, threads: int, inference_precision: InferencePrecision = "auto"
) -> Runtime:
    """Opens the engine in `folder`. Backends are imported here, so that each needs only its own packages.

    Raises:
        EngineError: the backend's packages are missing, or the backend cannot open the file.
    """
    artifact = folder / manifest.artifact
    try:
        if manifest.backend == "torchscript":
            from serve_app.runtime.torchscript import TorchScriptRuntime

            return TorchScriptRuntime(artifact, threads)
        if manifest.backend == "simulated":
            from serve_app.runtime.simulated import SimulatedRuntime

            return SimulatedRuntime(artifact, manifest.num_classes)
        from serve_app.runtime.openvino import OpenVinoRuntime

        return OpenVinoRuntime(artifact, threads, inference_precision)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise EngineError(
            f"engine {manifest.engine_name} at {folder} does not load: {reason}; build it again"
        ) from error
