"""`engine-build compile` over the stand-ins; test_tensorrt_behaviour.py runs this in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gpu import fakecuda

cuda = fakecuda.load()

from engine_build.cli import main  # noqa: E402
from engine_build.tensorrt.compile import CompileOptions, compile_engine  # noqa: E402
from serve_app.errors import EngineError  # noqa: E402
from serve_app.manifest import Manifest  # noqa: E402
from serve_app.plans import PLANS_DIR, find_plan, plan_path  # noqa: E402
from serve_app.runtime.tensorrt.machine import this_machine  # noqa: E402
from tests.gpu.both import MOST, Both, assert_answers, found, noise, plans  # noqa: E402
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


def caches(folder: Path) -> list[Path]:
    return sorted((folder / PLANS_DIR).glob("*.cache"))


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
    steps: tuple[str, ...] = (
        "create_network",
        "parse_from_file",
        "set_shape",
        "add_optimization_profile",
        "set_timing_cache",
    )
    steps += ("is_network_supported", "build_serialized_network", "get_timing_cache", "serialize")
    steps += ("create_engine_inspector", "get_engine_information", "create_execution_context")
    assert [call.method for call in at.calls(*steps)] == list(steps)
    at.check()


def test_without_a_workspace_it_is_tensorrts_own(at: Both, engine: Folder) -> None:
    compile_engine(engine[0], OPTIONS)
    assert at.calls("set_memory_pool_limit") == []


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
