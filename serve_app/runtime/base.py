"""The one protocol every engine runs behind, and how many threads it may use."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve_app.types import Logits, Pictures


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What a loaded engine says of itself; `inference_precision` is what it computes in, not what is stored."""

    backend: str
    inference_precision: str
    threads: int


class Runtime(Protocol):
    """A loaded engine. Not safe for calls from two threads at once: its owner calls it from one."""

    info: RuntimeInfo

    def infer(self, pictures: Pictures) -> Logits:
        """uint8 (n, height, width, 3), C-contiguous, n >= 1 -> float32 (n, classes).

        The caller may overwrite `pictures` once the call has returned; the result is the caller's own.
        """
        ...

    def close(self) -> None:
        """Frees the engine. Later calls of `infer` fail."""
        ...


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may really use: affinity mask, capped by the cgroup's CPU quota (v2 or v1), at least 1.

    `os.cpu_count()` reports the host's cores inside a container, and an engine with a thread for each of those
    spends its quota on switching between them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return max(1, min(cores, math.ceil(quota))) if quota else max(1, cores)


def _cgroup_quota(cgroup: Path) -> float | None:
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        quota_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None
