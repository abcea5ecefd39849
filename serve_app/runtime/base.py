"""The one protocol every engine runs behind, and how many threads it may use."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from serve_app.types import GpuMemory, GpuTimes, Logits, Pictures

Device: TypeAlias = Literal["cuda", "stand_in"]
"""What a TensorRT engine runs on: a GPU, or this machine's CPU in its place, to rehearse."""


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What a loaded engine says of itself; `inference_precision` is what it computes in, not what is stored."""

    backend: str
    inference_precision: str
    threads: int
    device: str = "CPU"


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a TensorRT engine runs.

    Attributes:
        max_batch_size: of the buffers, which are allocated once.
        slots: batches that may be on the GPU at once: while one is computed, the next is copied.
        cuda_graphs: launch each batch size as one recorded graph.
        observe: told of each batch, by the thread that asked for it.
    """

    max_batch_size: int = 16
    device: Device = "cuda"
    slots: int = 2
    cuda_graphs: bool = False
    observe: Callable[[GpuTimes], None] | None = None


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


@runtime_checkable
class OverlappingRuntime(Runtime, Protocol):
    """A runtime that works for several callers at once, and takes pictures from buffers of its own without a copy.

    Attributes:
        callers: how many `infer` at once are worth it; more wait.
        buffers: one for each of those callers, uint8 (max_batch_size, height, width, 3).
    """

    callers: int
    buffers: Sequence[Pictures]

    def probe(self, pictures: Pictures) -> Logits:
        """As `infer`, and certain to fail where the engine did not write its output."""
        ...

    def memory(self) -> GpuMemory:
        """At present."""
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
