"""The peers as far as they can be checked without their packages, how they are ended, how their environment is made."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest

from scripts.bench import contenders, peer_environment
from scripts.bench.peer_environment import PEERS, PeersNotInstalled, ensure_peer_environment
from scripts.local_service import ROOT

FILES = sorted(PEERS.glob("*.py"))
PICTURE = ROOT / "engine_build" / "samples" / "cat.jpg"


def peer_decode() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer_decode", PEERS / "_decode.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_a_peer_compiles(file: Path) -> None:
    compile(file.read_text(), str(file), "exec")


def test_every_peer_is_a_file_that_exists() -> None:
    words = [word for peer in contenders.PEER_SYSTEMS for word in peer.command]
    modules = {word.removesuffix(".py").partition(":")[0] for word in words if "_ov" in word or "_torch" in word}
    assert modules == {"flask_torch", "mosec_ov", "litserve_ov", "bentoml_ov"}
    assert modules <= {file.stem for file in FILES}


def test_the_peers_own_decode() -> None:
    picture = peer_decode().decode(PICTURE.read_bytes())
    assert picture.shape == (224, 224, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


def test_our_decode_for_a_peer_is_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app import manifest
    from serve_app.preprocess import preprocess_fast

    spec = manifest.InputSpec(interpolation="bicubic")
    monkeypatch.setenv("DECODE", "ours")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(manifest, "read_manifest", lambda folder: type("Found", (), {"input": spec}))
    body = PICTURE.read_bytes()
    found = peer_decode().make_decode(tmp_path)(body)
    assert np.array_equal(found, preprocess_fast(body, spec, max_pixels=10**8))


def test_another_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODE", "theirs")
    with pytest.raises(SystemExit, match="theirs"):
        peer_decode().make_decode(tmp_path)


class FakeRunner:
    """Makes what `python -m venv` makes, as far as anybody looks at it; remembers what it was asked."""

    def __init__(self, folder: Path, fails: str = "") -> None:
        self.folder, self.fails, self.asked = folder, fails, list[str]()

    def __call__(self, command: Sequence[str]) -> None:
        tool = command[2]
        self.asked.append(tool)
        if tool == self.fails:
            raise PeersNotInstalled(f"{tool} failed")
        if tool == "venv":
            (self.folder / "bin").mkdir(parents=True)
            (self.folder / "bin" / "python").touch()


def test_the_environment_is_made_once_and_sees_our_packages(tmp_path: Path) -> None:
    folder = tmp_path / "env"
    runner = FakeRunner(folder)
    assert ensure_peer_environment(folder, runner) == folder / "bin" / "python"
    [shared] = folder.rglob("product.pth")
    assert shared.read_text().strip() == sysconfig.get_paths()["purelib"]
    ensure_peer_environment(folder, runner)
    assert runner.asked == ["venv", "pip"]


def test_changed_requirements_are_installed_into_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "env"
    runner = FakeRunner(folder)
    ensure_peer_environment(folder, runner)
    changed = tmp_path / "requirements.txt"
    changed.write_text("mosec==1.0\n")
    monkeypatch.setattr(peer_environment, "REQUIREMENTS", changed)
    ensure_peer_environment(folder, runner)
    assert runner.asked == ["venv", "pip", "pip"]


def test_pip_failing_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "env"
    with pytest.raises(PeersNotInstalled):
        ensure_peer_environment(folder, FakeRunner(folder, fails="pip"))
    again = FakeRunner(folder)
    ensure_peer_environment(folder, again)
    assert again.asked == ["pip"]


def test_a_peer_is_ended_with_children_that_ignore_it_or_left_its_group() -> None:
    stubborn = (
        "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess,sys,time\n"
        f"for own in (False, True): subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=own)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout:
        for _ in range(2):
            process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        contenders._end(process)
    assert process.poll() is not None
    _, left = psutil.wait_procs(children, timeout=5)
    assert not left
