"""One real engine for the session, and the real service on a real local Ray, started as a user starts it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scripts.local_service import BIN, ROOT, load, running

SAMPLES = ROOT / "engine_build" / "samples"
MODEL = "efficientnet_lite0"


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `engines/` in it: the model whose weights need no download, for every configuration."""
    folder = tmp_path_factory.mktemp("service")
    for backend in ("openvino", "torchscript"):
        build = [BIN / "engine-build", "build", "--model", MODEL, "--backend", backend, "--engines-dir", "engines"]
        done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=["local", "cpu"])
def address(request: pytest.FixtureRequest, workplace: Path) -> Iterator[str]:
    """The service behind the fast ingress: `local` is colocated, `cpu` is split."""
    with running(load(request.param), workplace) as started:
        yield started


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as http:
        yield http


@pytest.fixture(scope="session")
def photographs() -> dict[str, bytes]:
    """Real photographs that are part of the project, by file name."""
    return {path.name: path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))}
