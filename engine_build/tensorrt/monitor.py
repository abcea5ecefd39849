"""TensorRT's progress as a bar, and the way to stop a build: it listens to nothing else."""

from __future__ import annotations

import threading

import tensorrt as trt
from tqdm import tqdm


class BuildBar(trt.IProgressMonitor):
    """A bar of the outermost phase's steps; the innermost phase is named beside it. TensorRT calls it from several
    threads, phases nest and may end before all their steps came."""

    def __init__(self, title: str) -> None:
        trt.IProgressMonitor.__init__(self)
        self._lock = threading.Lock()
        self._root: str | None = None
        self._cancelled = False
        self._bar = tqdm(desc=f"      {title}", total=0, unit="step", leave=False, disable=None, dynamic_ncols=True)

    def cancel(self) -> None:
        """The build ends at its next step, with no result."""
        self._cancelled = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """TensorRT's hook."""
        with self._lock:
            if parent_phase is None:
                self._root = phase_name
                self._bar.reset(num_steps)
            self._bar.set_postfix_str(phase_name[:40])

    def step_complete(self, phase_name: str, step: int) -> bool:
        """TensorRT's hook; anything but True stops the build."""
        with self._lock:
            if phase_name == self._root:
                self._bar.n = step + 1
                self._bar.refresh()
        return not self._cancelled

    def phase_finish(self, phase_name: str) -> None:
        """TensorRT's hook."""
        with self._lock:
            if phase_name == self._root:
                self._bar.n = self._bar.total or 0
                self._bar.refresh()

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()
