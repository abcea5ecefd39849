"""How scripts/build_pycuda ends where it cannot do its work; that it can is shown by test_fakecuda.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.fakecuda_build import why_missing

SCRIPT = Path(__file__).parent.parent / "scripts" / "build_pycuda"
TOOLS = ("bash", "env", "awk", "cat", "dirname", "find", "grep", "head", "mkdir", "mktemp", "readlink", "rm", "tar")


def build(venv: Path, tools: Path | None = None, cuda: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the script, with only the programs in a folder and with a CUDA toolkit's folder, if they are given."""
    path = os.environ["PATH"] if tools is None else str(tools)
    environment = {"PATH": path, "TMPDIR": str(venv.parent)} | ({"CUDA_HOME": str(cuda)} if cuda else {})
    return subprocess.run([SCRIPT, venv], env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """What every machine has, and no compiler."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        if (found := shutil.which(name)) is None:
            pytest.skip(f"{name} is not installed")
        (folder / name).symlink_to(found)
    return folder


@pytest.fixture
def cuda(tmp_path: Path) -> Path:
    """A toolkit's folder, with empty headers."""
    include = tmp_path / "cuda" / "include"
    include.mkdir(parents=True)
    for name in ("cuda.h", "cudaProfiler.h"):
        (include / name).touch()
    return include.parent


def program(path: Path, says: str = "") -> None:
    """A program that prints something and fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\necho '{says}'\nexit 1\n")
    path.chmod(0o755)


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("build_pycuda: ")
    return line


def test_it_does_nothing_where_pycuda_is() -> None:
    if reason := why_missing():
        pytest.skip(reason)
    done = build(Path(sys.prefix))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_folder_without_an_environment_is_named(tmp_path: Path) -> None:
    assert "is not a virtual environment; make it first" in only_line(build(tmp_path / "none"))


def test_a_missing_compiler_is_named(tmp_path: Path, tools: Path) -> None:
    program(tmp_path / "venv" / "bin" / "python")
    assert "install a C++ compiler" in only_line(build(tmp_path / "venv", tools))


@pytest.mark.parametrize(
    ("says", "advice"),
    [
        ("Failed to establish a new connection", "check the network"),
        ("fatal error: Python.h: No such file or directory", "python3-dev"),
        ("No space left on device", "free 1 GiB"),
        ("something else", "its log is"),
    ],
)
def test_what_stops_pip_is_told(tmp_path: Path, tools: Path, cuda: Path, says: str, advice: str) -> None:
    venv = tmp_path / "venv"
    program(venv / "bin" / "python", says)
    program(tools / "g++")
    before = set(tmp_path.iterdir())
    assert advice in only_line(build(venv, tools, cuda))
    assert set(tmp_path.iterdir()) == before, "it left its work behind"
    assert says in (venv / "build_pycuda.log").read_text()
