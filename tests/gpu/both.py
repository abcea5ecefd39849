"""The fake TensorRT on the stand-in for the CUDA driver: a run of a plan is a kernel in one of the driver's streams.

Engines compute `tiny_engine.expected`, which depends on every value of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

from engine_build.tensorrt.compile import CompileOptions, compile_engine
from serve_app.manifest import Manifest
from serve_app.plans import PLANS_DIR, PlanRecord, find_plan
from serve_app.runtime import GpuOptions, load_runtime
from serve_app.runtime.gpu import thread
from serve_app.runtime.gpu.runtime import GpuRuntime
from serve_app.runtime.tensorrt.machine import this_machine
from serve_app.types import Logits, Pictures
from tests.fakes import SHAPE
from tests.gpu import fakecuda
from tests.gpu.fake_objects import Call, Faults, Journal, Work
from tests.gpu.fake_tensorrt import install, make_fake
from tests.tiny_engine import expected, make_gpu_engine

MOST = 8
_PLANS: dict[str, bytes] = {}
_LAST_SPECIAL_STREAM = 2  # handles of the default streams, legacy and per thread


@dataclass(frozen=True, slots=True)
class End:
    """How it was on the device when an execution context was destroyed there."""

    name: str
    is_current: bool
    report: fakecuda.Report

    def is_orderly(self) -> bool:
        """The CUDA context was current, nothing ran any more, and no graph was left that would run the plan."""
        return self.is_current and not (self.report.busy_streams or self.report.graphs or self.report.executables)


class _Watching(Journal):
    """A journal that looks at the device when an execution context goes."""

    def __init__(self, cuda: fakecuda.FakeCuda, ends: list[End]) -> None:
        super().__init__()
        self._cuda, self._ends = cuda, ends

    def add(self, target: str, method: str, arguments: tuple[Any, ...] = ()) -> None:
        super().add(target, method, arguments)
        if method == "destroyed" and target.startswith("IExecutionContext"):
            _, context = driver.cuCtxGetCurrent()
            self._ends.append(End(target, bool(int(context)), self._cuda.report()))


class Both:
    """A machine with a GPU and TensorRT, as far as anybody can tell; made after `fakecuda.load`.

    Attributes:
        run_ms: how long a batch of that size takes.
        writes: whether runs write their output; TensorRT says that they succeed, either way.
        ran: batch sizes that were queued or recorded.
        ends: of the execution contexts, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cuda = fakecuda.load()
        self.cuda.reset()
        self.ends: list[End] = []
        self.trt = make_fake(_Watching(self.cuda, self.ends))
        install(monkeypatch, self.trt)
        monkeypatch.setattr(thread, "POLL_S", 1e-6)  # each look lets the stand-in do one thing
        self.run_ms: Callable[[int], float] = lambda n: 1.0 + n
        self.writes = True
        self.ran: list[int] = []
        self.trt.world.compute = expected
        self.trt.world.enqueue = self._enqueue

    @property
    def faults(self) -> Faults:
        return self.trt.faults

    def _enqueue(self, stream: int, work: Work) -> bool:
        if stream <= _LAST_SPECIAL_STREAM:
            self.trt.world.violations.append("a run in the default stream")
        self.ran.append(work.batch_size)

        def run() -> None:
            if self.writes:
                work()

        return self.cuda.enqueue(stream, run, uses=work.uses, ms=self.run_ms(work.batch_size)) == 0

    def compiled(self, tmp_path: Path, model: str = "fake") -> tuple[Path, Manifest]:
        """An engine folder with a plan for batches of 1 to `MOST`; compiled once in a process, for the default card."""
        folder, manifest = make_gpu_engine(tmp_path / "engines", model)
        if _PLANS:
            (folder / PLANS_DIR).mkdir()
            for name, content in _PLANS.items():
                (folder / PLANS_DIR / name).write_bytes(content)
        else:
            compile_engine(folder, CompileOptions(MOST, 4))
            _PLANS.update({path.name: path.read_bytes() for path in (folder / PLANS_DIR).iterdir()})
            self.trt.journal.calls.clear()
            self.ends.clear()
        return folder, manifest

    def opened(self, engine: tuple[Path, Manifest], **options: Any) -> GpuRuntime:
        """`load_runtime`, with these `GpuOptions`."""
        runtime = load_runtime(*engine, threads=1, gpu=GpuOptions(**{"max_batch_size": MOST} | options))
        assert isinstance(runtime, GpuRuntime)
        return runtime

    def calls(self, *methods: str) -> list[Call]:
        """Of the fake TensorRT, in order."""
        return [call for call in self.trt.journal.calls if call.method in methods]

    def check(self) -> None:
        """Everything was given back, on both sides, and nothing misused.

        Raises:
            AssertionError: that is not so; it says what.
        """
        self.cuda.report().check()
        assert self.trt.world.violations == []
        assert self.trt.alive() == []
        assert [end.name for end in self.ends if not end.is_orderly()] == []


def noise(n: int, seed: int = 0) -> Pictures:
    """Pictures of which no two are alike."""
    pictures: Pictures = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), np.uint8)
    return pictures


def assert_answers(logits: Logits, pictures: Pictures) -> None:
    """The logits are of these pictures, in this order."""
    assert logits.shape == expected(pictures).shape
    assert np.allclose(logits, expected(pictures), rtol=1e-4, atol=1e-2)


def plans(folder: Path) -> list[str]:
    """Files that compiling left in an engine folder, besides what it measured."""
    return sorted(path.name for path in (folder / PLANS_DIR).glob("*") if path.suffix != ".cache")


def found(engine: tuple[Path, Manifest]) -> PlanRecord:
    """What a service on this machine would take."""
    return find_plan(*engine, this_machine(), MOST)[1]
