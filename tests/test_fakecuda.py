from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.gpu import fakecuda, fakecuda_build
from tests.gpu.fakecuda_build import build, why_missing

DRIVER = fakecuda.Cases("driver_cases.py")
MISUSE = fakecuda.Cases("misuse_cases.py")
GRAPHS = fakecuda.Cases("graph_cases.py")

needs_stand_in = pytest.mark.skipif(why_missing() is not None, reason=f"the stand-in for CUDA: {why_missing()}")


@pytest.mark.parametrize("case", DRIVER.names())
def test_driver(case: str) -> None:
    DRIVER.check(case)


@pytest.mark.parametrize("case", MISUSE.names())
def test_misuse(case: str) -> None:
    MISUSE.check(case)


@pytest.mark.parametrize("case", GRAPHS.names())
def test_graphs(case: str) -> None:
    GRAPHS.check(case)


@needs_stand_in
def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library = build()
    monkeypatch.setattr(fakecuda_build, "_compile", None)
    assert build() == library


def test_it_does_not_enter_the_process_that_tests_everything_else() -> None:
    with pytest.raises(RuntimeError, match="a process of its own"):
        fakecuda.load()
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or "image-serve-fakecuda" not in mapped.read_text()


ENDINGS = """
import os
import pytest

from tests.gpu import fakecuda

cuda = fakecuda.load()

def test_passes():
    assert cuda.report().leaks() == {}

@pytest.mark.parametrize("value", [1, 2, 3])
def test_fails(value):
    assert value != 2, "it is two"

def test_skips():
    pytest.skip("not here")
"""


@needs_stand_in
def test_cases_end_here_as_they_ended_there(tmp_path: Path) -> None:
    file = tmp_path / "ending_cases.py"
    file.write_text(ENDINGS)
    cases = fakecuda.Cases(os.fspath(file))
    assert cases.names() == ["test_passes", "test_fails", "test_skips"]
    cases.check("test_passes")
    with pytest.raises(pytest.fail.Exception, match=r"it is two[\s\S]*-k test_fails"):
        cases.check("test_fails")
    with pytest.raises(pytest.skip.Exception, match="not here"):
        cases.check("test_skips")


@needs_stand_in
def test_cases_that_did_not_run_fail(tmp_path: Path) -> None:
    file = tmp_path / "crashing_cases.py"
    file.write_text("import os\n\ndef test_crash():\n    print('last words', flush=True)\n    os.abort()\n")
    with pytest.raises(pytest.fail.Exception, match="ended before test_crash"):
        fakecuda.Cases(os.fspath(file)).check("test_crash")
