"""What a stranger sees when the first command cannot work: one line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.local_service import ROOT

TOOLS = ["bash", "env", "df", "awk", "grep", "rm", "mkdir", "touch", "dirname", "pwd", "sed", "cat"]


def install(folder: Path, path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """scripts/install in a copy of the project's outline, with `path` as its only PATH."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in ("serve_app", "engine_build"):
        (folder / package).mkdir(exist_ok=True)
        (folder / package / "__init__.py").touch()
    (folder / "README.md").touch()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    return subprocess.run(
        [ROOT / "scripts" / "install", ".venv", "build"],
        cwd=folder,
        env=clean | {"PATH": str(path)} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with the shell's tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return folder


def with_python(path: Path) -> Path:
    (path / "python3.11").symlink_to(sys.base_prefix + f"/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
    return path


def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_no_python(tmp_path: Path, path: Path) -> None:
    assert "no Python 3.11, 3.12 or 3.13 found" in one_line(install(project(tmp_path), path))


def test_an_old_python_is_no_python(tmp_path: Path, path: Path) -> None:
    old = path / "python3.11"
    old.write_text("#!/bin/bash\nexit 1\n")
    old.chmod(0o755)
    assert "no Python" in one_line(install(project(tmp_path), path))


def test_no_venv_module(tmp_path: Path, path: Path) -> None:
    old = path / "python3.11"
    old.write_text('#!/bin/bash\n[ "$1" = -c ] && exit 0\nexit 1\n')
    old.chmod(0o755)
    folder = project(tmp_path)
    assert "apt-get install python3-venv" in one_line(install(folder, path))
    assert not (folder / ".venv").exists()


def test_no_room(tmp_path: Path, path: Path) -> None:
    (path / "df").unlink()
    (path / "df").write_text(
        "#!/bin/bash\necho 'Filesystem 1024-blocks Used Available'\necho '/dev/x 9 8 1000 90% /'\n"
    )
    (path / "df").chmod(0o755)
    assert "less than 8 GiB free" in one_line(install(project(tmp_path), with_python(path)))


def test_no_network(tmp_path: Path, path: Path) -> None:
    """A real pip against a port where nothing listens."""
    env = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    folder = project(tmp_path)
    done = install(folder, with_python(path), **env)
    assert "the package index cannot be reached" in one_line(done)
    assert not (folder / ".venv" / ".installed-build").exists()
