"""`engine-build compile` over the stand-ins; test_tensorrt_behaviour.py runs this in its own process.

Whatever goes wrong, it is said in a typed error, and nothing stays that a service would take for a plan.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
from serve_app.plans import PLANS_DIR, PlanRecord, find_plan, plan_path  # noqa: E402
from serve_app.runtime.tensorrt.machine import this_machine  # noqa: E402
from tests.fakes import CLASSES  # noqa: E402
from tests.gpu.both import MOST, Both, assert_answers, noise  # noqa: E402
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


def plans(folder: Path) -> list[str]:
    """What a compilation left, besides what it measured."""
    return sorted(path.name for path in (folder / PLANS_DIR).glob("*") if path.suffix != ".cache")


def caches(folder: Path) -> list[Path]:
    return sorted((folder / PLANS_DIR).glob("*.cache"))


def found(engine: Folder) -> PlanRecord:
    return find_plan(*engine, this_machine(), MOST)[1]


def refused(engine: Folder) -> str:
    """Why it is not compiled; the error itself would keep what its frames hold."""
    with pytest.raises(CompileFailed) as raised:
        compile_engine(engine[0], OPTIONS)
    return str(raised.value)


def assert_nothing_is_left(at: Both, engine: Folder) -> None:
    assert plans(engine[0]) == []
    with pytest.raises(EngineError, match="not compiled for any GPU yet"):
        found(engine)
    at.check()


def test_a_plan_is_compiled_proven_measured_and_served(at: Both, engine: Folder) -> None:
    at.run_ms = lambda n: 3.0
    record, path = compile_engine(engine[0], CompileOptions(MOST, 4, workspace_mib=256, optimization_level=2))
    assert find_plan(*engine, this_machine(), MOST) == (path, record)
    assert plans(engine[0]) == sorted([path.name, path.with_suffix(".json").name])
    assert path == plan_path(engine[0], record.key)
    assert path.stat().st_mode & 0o777 == 0o644
    assert record.layer_types == {"fp32": 1}
    assert record.top1_agreement == 1
    assert record.max_logit_error is not None
    assert record.max_logit_error < 0.1
    assert set(record.latency_ms) == {1, 2, 4, MOST}
    assert min(record.latency_ms.values()) > 0
    assert record.key.machine == this_machine()
    assert record.driver.startswith("13.")
    at.check()
    runtime = at.opened(engine)
    assert_answers(runtime.infer(noise(MOST)), noise(MOST))
    runtime.close()
    at.check()


@pytest.mark.parametrize("tf32", [False, True])
def test_tensorrt_is_told_what_was_asked_for(at: Both, engine: Folder, tf32: bool) -> None:
    trt: Any = at.trt.module
    compile_engine(engine[0], CompileOptions(MOST, 4, tf32=tf32, workspace_mib=256, optimization_level=2))
    flags = [(call.method, *call.arguments) for call in at.calls("set_flag", "clear_flag")]
    assert flags == [("set_flag" if tf32 else "clear_flag", trt.BuilderFlag.TF32)]
    [limit] = at.calls("set_memory_pool_limit")
    assert limit.arguments == (trt.MemoryPoolType.WORKSPACE, 256 * 2**20)
    assert [call.arguments for call in at.calls("builder_optimization_level=")] == [(2,)]
    assert [call.arguments for call in at.calls("profiling_verbosity=")] == [(trt.ProfilingVerbosity.DETAILED,)]
    [profile] = at.calls("set_shape")
    assert profile.arguments == ("image", (1, 4, 4, 3), (4, 4, 4, 3), (MOST, 4, 4, 3))
    at.check()


def test_the_build_is_in_tensorrts_order(at: Both, engine: Folder) -> None:
    compile_engine(engine[0], OPTIONS)
    steps = ("create_network", "parse_from_file", "set_shape", "add_optimization_profile", "set_timing_cache")
    steps += ("is_network_supported", "build_serialized_network", "get_timing_cache", "serialize")
    steps += ("create_engine_inspector", "get_engine_information", "create_execution_context")
    assert [call.method for call in at.calls(*steps)] == list(steps)
    at.check()


def test_without_a_workspace_it_is_tensorrts_own(at: Both, engine: Folder) -> None:
    compile_engine(engine[0], OPTIONS)
    assert at.calls("set_memory_pool_limit") == []


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


def test_what_was_measured_helps_the_next_build(at: Both, engine: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    compile_engine(engine[0], OPTIONS)
    [cache] = caches(engine[0])
    assert cache.read_bytes().count(b"measured") == 1
    compile_engine(engine[0], CompileOptions(MOST, 2))
    assert cache.read_bytes().count(b"measured") == 2
    assert [call.arguments[1] for call in at.calls("set_timing_cache")] == [False, False]
    cuda.device("Other GPU")
    compile_engine(engine[0], OPTIONS)
    assert len(caches(engine[0])) == 2
    assert "not used" not in capsys.readouterr().out
    at.check()


def test_measurements_of_another_machine_are_not_used(
    at: Both, engine: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    compile_engine(engine[0], OPTIONS)
    [cache] = caches(engine[0])
    cache.write_bytes(b"of another TensorRT")
    compile_engine(engine[0], CompileOptions(MOST, 4, force=True))
    assert f"{cache.name} is of another GPU or TensorRT and is not used" in capsys.readouterr().out
    assert cache.read_bytes().count(b"measured") == 1
    found(engine)
    at.check()


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


def test_a_plan_that_writes_nothing_is_not_kept(at: Both, engine: Folder) -> None:
    at.trt.world.compute = lambda pictures: np.full((len(pictures), CLASSES), np.nan, np.float32)
    with pytest.raises(VerificationFailed, match="answers wrongly on this GPU"):
        compile_engine(engine[0], OPTIONS)
    assert_nothing_is_left(at, engine)


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """The system cuts larger files short, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
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
    with pytest.raises(EngineError, match="not compiled for any GPU yet"):
        found(engine)
    assert [name for name in plans(engine[0]) if not name.startswith(".")] == []
    compile_engine(engine[0], OPTIONS)
    found(engine)
    assert len(plans(engine[0])) == 2
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


def test_what_is_there_is_compiled_again_by_force_only(
    at: Both, engine: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compile", str(engine[0]), "--max-batch", str(MOST), "--opt-batch", "4"]
    again = "fake/tensorrt-fp32 is already compiled for Fake GPU (--force compiles it again)"
    for more, builds, is_there in (([], 1, False), ([], 1, True), (["--force"], 2, False), (["--tf32"], 3, False)):
        assert main([*command, *more]) == 0
        assert len(at.calls("build_serialized_network")) == builds
        assert (again in capsys.readouterr().out) == is_there
    assert len(plans(engine[0])) == 4
    at.check()


def test_a_plan_that_fails_does_not_take_the_one_that_is_there(at: Both, engine: Folder) -> None:
    record, _ = compile_engine(engine[0], OPTIONS)
    at.trt.world.compute = lambda pictures: np.zeros((len(pictures), CLASSES), np.float32)
    with pytest.raises(VerificationFailed):
        compile_engine(engine[0], CompileOptions(MOST, 4, force=True))
    assert found(engine) == record
    at.check()


def test_a_gpu_of_another_kind_gets_a_plan_of_its_own(at: Both, engine: Folder) -> None:
    first, _ = compile_engine(engine[0], OPTIONS)
    cuda.device("Other GPU")
    with pytest.raises(EngineError, match=r"gpu \(Fake GPU in the plan, Other GPU here\)"):
        found(engine)
    second, _ = compile_engine(engine[0], OPTIONS)
    assert found(engine) == second
    cuda.device()
    assert found(engine) == first
    at.check()


def test_without_a_gpu_nothing_is_compiled(at: Both, engine: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    cuda.fail("cuInit", 100)
    assert main(["compile", str(engine[0])]) == 1
    assert "no NVIDIA GPU that CUDA can use" in capsys.readouterr().err
    assert not (engine[0] / PLANS_DIR).exists()
    at.check()


def test_what_tensorrt_warns_of_is_in_the_record(at: Both, engine: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine_build.tensorrt.monitor import BuildBar
    from serve_app.runtime.tensorrt.log import collected_log

    trt: Any = at.trt.module
    finish = BuildBar.phase_finish

    def phase_finish(self: Any, phase_name: str) -> None:
        for severity in (trt.ILogger.Severity.INFO, trt.ILogger.Severity.WARNING):
            collected_log().log(severity, f"a line of {severity.name} in {phase_name}\n")
        finish(self, phase_name)

    monkeypatch.setattr(BuildBar, "phase_finish", phase_finish)
    record, _ = compile_engine(engine[0], OPTIONS)
    phases = ("Timing", "Selecting tactics", "Building engine")
    assert record.warnings == tuple(f"a line of WARNING in {phase}" for phase in phases)
    at.check()
