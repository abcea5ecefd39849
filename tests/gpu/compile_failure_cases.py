"""`engine-build compile` over the stand-ins when something goes wrong; test_tensorrt_behaviour.py runs this in its own
process. Each time it is said in a typed error, and nothing stays that a service would take for a plan.
"""

from __future__ import annotations

import gc
import io
import itertools
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu import fakecuda

cuda = fakecuda.load()

from engine_build.cli import main  # noqa: E402
from engine_build.errors import BuildError, CompileFailed, VerificationFailed  # noqa: E402
from engine_build.tensorrt.compile import CompileOptions, compile_engine  # noqa: E402
from serve_app.errors import EngineError  # noqa: E402
from serve_app.manifest import Manifest  # noqa: E402
from serve_app.plans import PLANS_DIR  # noqa: E402
from tests.fakes import CLASSES  # noqa: E402
from tests.gpu.both import MOST, Both, found, plans  # noqa: E402
from tests.gpu.fake_objects import ParseFault  # noqa: E402
from tests.tiny_engine import make_gpu_engine  # noqa: E402

OPTIONS = CompileOptions(MOST, 4)
PATIENCE_S = 60
Folder = tuple[Path, Manifest]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(monkeypatch)


@pytest.fixture
def engine(at: Both, tmp_path: Path) -> Folder:
    return make_gpu_engine(tmp_path / "engines")


def refused(engine: Folder) -> str:
    """Why it is not compiled."""
    with pytest.raises(CompileFailed) as raised:
        compile_engine(engine[0], OPTIONS)
    return str(raised.value)


def assert_nothing_is_left(at: Both, engine: Folder) -> None:
    assert plans(engine[0]) == []
    with pytest.raises(EngineError, match="not compiled for any GPU yet"):
        found(engine)
    gc.collect()  # errors that were expected, and their frames
    at.check()


REFUSALS: dict[str, tuple[Any, str, str]] = {
    "network": (True, "makes no network", "create_network"),
    "network_unsupported": (True, "does not support this network", "is_network_supported"),
    "profile_refused": (True, "does not take the profile min_batch=1", "add_optimization_profile"),
    "build": (True, "compiled nothing", "build_serialized_network"),
    "deserialize": (True, "does not load what it has just compiled", "deserialize_cuda_engine"),
    "context": (True, "the plan does not run on the GPU it was compiled on", "create_execution_context"),
    "execute": (True, "the plan does not run on the GPU it was compiled on", "execute_async_v3"),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_what_tensorrt_refuses_is_said(at: Both, engine: Folder, fault: str) -> None:
    value, what, method = REFUSALS[fault]
    setattr(at.faults, fault, value)
    said = refused(engine)
    assert what in said
    assert f"said: fault injected in {method}" in said
    assert_nothing_is_left(at, engine)


def test_a_profile_that_is_inconsistent(at: Both, engine: Folder) -> None:
    at.faults.profile_raises = True
    with pytest.raises(CompileFailed, match=r"does not take the profile .*: Shape provided for image is inconsistent"):
        compile_engine(engine[0], OPTIONS)
    assert_nothing_is_left(at, engine)


def test_every_node_that_the_parser_refuses_is_named(at: Both, engine: Folder) -> None:
    at.faults.parse = [ParseFault("no importer", 3, "conv1", "Odd"), ParseFault("bad weights", 9, "fc", "Gemm")]
    said = refused(engine)
    assert "node 3 'conv1' (Odd): no importer; node 9 'fc' (Gemm): bad weights" in said
    assert said.endswith("said: node 3 conv1: no importer | node 9 fc: bad weights")
    assert_nothing_is_left(at, engine)


def interrupting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sends this process's main thread a SIGINT as Ctrl-C does, in the second phase of a build; returns what happens.

    TensorRT goes on when it is told that the build was cancelled, and not before.
    """
    from engine_build.tensorrt.monitor import BuildBar

    happened: list[str] = []
    cancelled, start, cancel = threading.Event(), BuildBar.phase_start, BuildBar.cancel

    def phase_start(self: Any, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        start(self, phase_name, parent_phase, num_steps)
        if parent_phase == "Building engine":
            happened.append("interrupted")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            assert cancelled.wait(PATIENCE_S)

    def cancelling(self: Any) -> None:
        happened.append("cancelled")
        cancel(self)
        cancelled.set()

    monkeypatch.setattr(BuildBar, "phase_start", phase_start)
    monkeypatch.setattr(BuildBar, "cancel", cancelling)
    return happened


@pytest.mark.parametrize("by_command", [False, True])
def test_ctrl_c_ends_the_build_at_its_next_step(
    at: Both,
    engine: Folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    by_command: bool,
) -> None:
    happened = interrupting(monkeypatch)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        if by_command:
            assert main(["compile", str(engine[0])]) == 130
            assert "nothing was left behind" in capsys.readouterr().err
        else:
            with pytest.raises(KeyboardInterrupt):
                compile_engine(engine[0], OPTIONS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert happened == ["interrupted", "cancelled"]
    assert at.calls("deserialize_cuda_engine") == []
    assert_nothing_is_left(at, engine)


def test_the_precision_is_what_the_compiled_engine_says(at: Both, tmp_path: Path) -> None:
    engine = make_gpu_engine(tmp_path / "engines", precision="fp16")  # in name: its ONNX is fp32
    with pytest.raises(BuildError, match=r"compiled an fp16 engine with 1 in fp32 layers; .*prepare --force"):
        compile_engine(engine[0], OPTIONS)
    assert_nothing_is_left(at, engine)


def test_a_plan_that_answers_wrongly_is_not_kept(at: Both, engine: Folder) -> None:
    compute = at.trt.world.compute
    assert compute is not None
    at.trt.world.compute = lambda pictures: compute(pictures)[::-1]  # the rows of a batch, exchanged
    with pytest.raises(VerificationFailed, match="answers wrongly on this GPU"):
        compile_engine(engine[0], OPTIONS)
    assert_nothing_is_left(at, engine)


def test_a_plan_that_answers_what_is_not_a_number_is_not_kept(at: Both, engine: Folder) -> None:
    at.trt.world.compute = lambda pictures: np.full((len(pictures), CLASSES), np.nan, np.float32)
    with pytest.raises(VerificationFailed, match="answers wrongly on this GPU"):
        compile_engine(engine[0], OPTIONS)
    assert_nothing_is_left(at, engine)


def test_a_plan_that_writes_nothing_is_not_kept(at: Both, engine: Folder) -> None:
    at.writes = False
    assert "the engine did not write its output" in refused(engine)
    assert_nothing_is_left(at, engine)


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """The system cuts larger files short, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        with redirect_stdout(io.StringIO()):  # pytest's is a file too
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("written", [1.0, 0.5, 0.01])
def test_files_that_cannot_be_written_to_their_end(at: Both, engine: Folder, tmp_path: Path, written: float) -> None:
    """Its record, the plan, or what was measured."""
    other = make_gpu_engine(tmp_path / "others")
    _, path = compile_engine(other[0], OPTIONS)
    assert path.with_suffix(".json").stat().st_size > path.stat().st_size
    with files_of_at_most(max(8, int(path.stat().st_size * written))), pytest.raises(OSError, match="too large"):
        compile_engine(engine[0], OPTIONS)
    assert_nothing_is_left(at, engine)
    compile_engine(engine[0], OPTIONS)
    found(engine)
    assert len(plans(engine[0])) == 2
    at.check()


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_plan_and_the_record_of_another_are_never_together(
    at: Both, engine: Folder, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """However far it came in replacing a plan."""
    compile_engine(engine[0], OPTIONS)
    replace, calls = os.replace, itertools.count(1)

    def failing(source: Path, target: Path) -> None:
        if next(calls) == call:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("os.replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        compile_engine(engine[0], CompileOptions(MOST, 4, force=True))
    if call == 1:  # of what was measured
        found(engine)
    else:
        with pytest.raises(EngineError, match="not compiled for any GPU yet"):
            found(engine)
    assert not [name for name in plans(engine[0]) if name.startswith(".") or name.endswith(".part")]
    at.check()


def test_a_full_disk_is_said_in_one_line(
    at: Both, engine: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(28, "No space left on device", "some.plan")

    monkeypatch.setattr("os.fsync", fsync)
    assert main(["compile", str(engine[0])]) == 1
    assert "no space left on the disk at some.plan; free some and run this again" in capsys.readouterr().err
    assert_nothing_is_left(at, engine)


def test_a_plan_that_fails_does_not_take_the_one_that_is_there(at: Both, engine: Folder) -> None:
    record, _ = compile_engine(engine[0], OPTIONS)
    at.trt.world.compute = lambda pictures: np.zeros((len(pictures), CLASSES), np.float32)
    with pytest.raises(VerificationFailed):
        compile_engine(engine[0], CompileOptions(MOST, 4, force=True))
    assert found(engine) == record
    at.check()


def test_without_a_gpu_nothing_is_compiled(at: Both, engine: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    cuda.fail("cuInit", 100)
    assert main(["compile", str(engine[0])]) == 1
    assert "no NVIDIA GPU that CUDA can use" in capsys.readouterr().err
    assert not (engine[0] / PLANS_DIR).exists()
    at.check()


def test_a_plan_that_breaks_the_gpu_is_not_kept(at: Both, engine: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    at.trt.world.compute = lambda pictures: np.zeros((0, 0), np.float32)  # the kernel raises
    assert main(["compile", str(engine[0])]) == 1
    assert "the plan does not run on the GPU it was compiled on: " in capsys.readouterr().err
    assert plans(engine[0]) == []
    assert cuda.report().is_balanced()


def test_a_gpu_that_fails_at_the_end_is_said(at: Both, engine: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    cuda.fail("cuStreamSynchronize", 700, sticky=True)  # first called by close
    assert main(["compile", str(engine[0])]) == 1
    assert "did not come to rest: cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL" in capsys.readouterr().err
    assert plans(engine[0]) == []
    assert cuda.report().is_balanced()
