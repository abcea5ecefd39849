"""The GPU half of the service and of engine-build, on the genuine pycuda over stand-ins for TensorRT and the driver."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.errors import GpuMissing
from serve_app.runtime import GpuOptions, load_plan
from serve_app.runtime.tensorrt.machine import this_machine
from tests.fakes import manifest
from tests.gpu import binding, fakecuda, fakecuda_build

ROOT = Path(__file__).parent.parent
SERVING = fakecuda.Cases("tensorrt_cases.py")
FAILING = fakecuda.Cases("failure_cases.py")
COMPILING = fakecuda.Cases("compile_cases.py")
NOT_COMPILING = fakecuda.Cases("compile_failure_cases.py")


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("case", SERVING.names())
def test_serving(case: str) -> None:
    SERVING.check(case)


@pytest.mark.parametrize("case", FAILING.names())
def test_failing(case: str) -> None:
    FAILING.check(case)


@pytest.mark.parametrize("case", COMPILING.names())
def test_compiling(case: str) -> None:
    COMPILING.check(case)


@pytest.mark.parametrize("case", NOT_COMPILING.names())
def test_not_compiling(case: str) -> None:
    NOT_COMPILING.check(case)


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver(tmp_path: Path) -> None:
    for ask in (this_machine, lambda: load_plan(tmp_path / "some.plan", manifest(), GpuOptions())):
        with pytest.raises(GpuMissing, match=r"no NVIDIA driver \(libcuda\.so\.1\).*configs/cpu\.yaml"):
            ask()


OPEN = """
import sys, threading
from pathlib import Path
import pytest
from tests.gpu import fakecuda
cuda = fakecuda.load()
from serve_app.errors import GpuFailed
from tests.gpu.both import Both, noise
at = Both(pytest.MonkeyPatch())
runtime = at.opened(at.compiled(Path(sys.argv[1])), cuda_graphs=True)
runtime.infer(noise(3))

def ask():
    try:
        runtime.infer(noise(2))
    except GpuFailed:
        pass  # too late
"""
ENDINGS = {
    "idle": "",
    "asked": "for n in range(4): threading.Thread(target=ask, daemon=True).start()",
    "in a run": """
running = threading.Event()
at.run_ms = lambda n: running.set() or 1.0
runtime._thread.lanes.graphs.clear()
threading.Thread(target=ask, daemon=True).start()
assert running.wait(60)
""",
    "raising": "raise SystemExit('the end')",
    "collected": "del runtime, at",
}


@pytest.mark.skipif(fakecuda_build.why_missing() is not None, reason=f"the stand-in: {fakecuda_build.why_missing()}")
@pytest.mark.skipif(binding.why_missing() is not None, reason=f"TensorRT's binding: {binding.why_missing()}")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_may_end_with_an_open_engine(tmp_path: Path, ending: str) -> None:
    """A context that is still pushed in some thread would abort it."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN + ENDINGS[ending], str(tmp_path)],
        cwd=ROOT,
        env=fakecuda.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    expected = (1, "the end\n") if ending == "raising" else (0, "")
    assert (done.returncode, done.stderr) == expected
