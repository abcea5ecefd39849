"""How tests ask for faults of the stand-in GPU that `gpu_app` makes, which only replicas import: it changes what it
imports."""

from __future__ import annotations

from pathlib import Path

FAULTS_ENV, BATCH_ENV, PICTURE_ENV = "TEST_GPU_FAULTS", "TEST_GPU_BATCH_MS", "TEST_GPU_PICTURE_MS"
"""The folder where faults are asked for, and milliseconds that a batch takes at least, and for each of its pictures."""


def fault_file(folder: Path, pid: int) -> Path:
    """Write `error`, `stale` or `hang` into it to break the GPU of the replica `pid`."""
    return folder / str(pid)
