"""What is measured: this service in any configuration, and its peers, each started alone and ended completely."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from scripts.bench.load import Target
from scripts.bench.peer_environment import ENVIRONMENT, PEERS
from scripts.local_service import ROOT, NotStarted, free_port, load, running, with_args
from serve_app.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class Running:
    """A system that answers: where pictures are posted, and the root of its processes."""

    name: str
    url: str
    root_pid: int

    def target(self, pictures: tuple[bytes, ...]) -> Target:
        """One picture a request, the file as the body."""
        return Target(self.name, self.url, pictures)


@dataclass(frozen=True, slots=True)
class Ours:
    """This service: a configuration, changes to its `args` and deployments, environment variables.

    Attributes:
        args: merged into the application's `args`, section by section.
        deployments: merged into the deployments of these names; None takes a key away.
        command: instead of `image-serve start`.
    """

    name: str
    describe: str
    config: str = "local"
    args: Mapping[str, Any] = field(default_factory=dict)
    deployments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    command: list[str] | None = None

    def configuration(self) -> dict[str, Any]:
        """What is started."""
        config = with_args(load(self.config), self.args)
        for deployment in config["applications"][0]["deployments"]:
            changed = {**deployment, **self.deployments.get(deployment["name"], {})}
            deployment.clear()
            deployment.update({key: value for key, value in changed.items() if value is not None})
        return config

    @contextmanager
    def start(self, engine_dir: Path, picture: bytes, folder: Path) -> Iterator[Running]:
        """From ready to gone; see `running` of scripts/local_service.py."""
        link = folder / "engines"
        if not link.exists():
            link.symlink_to(ROOT / "engines")
        before = {child.pid for child in psutil.Process().children()}
        with running(self.configuration(), folder, env=self.env, command=self.command) as address:
            [child] = [child for child in psutil.Process().children() if child.pid not in before]
            yield Running(self.name, f"{address}/predict", child.pid)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server.

    Attributes:
        command: `PYTHON` (of the peers' environment), `BIN` (its scripts) and `PORT` are replaced.
        path: where pictures are posted, as they are.
    """

    name: str
    describe: str
    command: tuple[str, ...]
    path: str
    env: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def start(self, engine_dir: Path, picture: bytes, folder: Path) -> Iterator[Running]:
        """From the first answered picture until no process of it is left."""
        port = free_port()
        log_path = folder / f"{self.name.replace(' ', '_')}-{port}.log"
        env = {
            **os.environ,
            "ENGINE": str(engine_dir / "model.xml"),
            "PORT": str(port),
            "BENTOML_DO_NOT_TRACK": "True",
            "ARCH": read_manifest(engine_dir).architecture,
            "PYTHONPATH": f"{PEERS}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
            **self.env,
        }
        scripts = ENVIRONMENT / "bin"
        words = {"PYTHON": str(scripts / "python"), "BIN": str(scripts), "PORT": str(port)}
        command = [_filled(word, words) for word in self.command]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=PEERS, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        running = Running(self.name, f"http://127.0.0.1:{port}{self.path}", process.pid)
        try:
            _wait_for_answer(process, running, picture, log_path)
            yield running
        finally:
            _end(process)


def _filled(word: str, words: Mapping[str, str]) -> str:
    for key, value in words.items():
        word = word.replace(key, value)
    return word


def _wait_for_answer(process: subprocess.Popen[bytes], running: Running, picture: bytes, log: Path) -> None:
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s and process.poll() is None:
        with suppress(httpx.HTTPError):
            answer = httpx.post(running.url, content=picture, headers={"content-type": "image/jpeg"}, timeout=30)
            if answer.status_code == 200:
                return
        time.sleep(0.3)
    raise NotStarted(f"{running.name}: exit code {process.poll()}; {log} ends with:\n{log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    tree: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(tree, timeout=5)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


_FLASK = ("PYTHON", "-m", "flask", "--app", "flask_torch", "run", "--port", "PORT")
_GUNICORN = ("BIN/gunicorn", "-w", "4", "--threads", "2", "-b", "127.0.0.1:PORT", "flask_torch:app")
_MOSEC = ("PYTHON", "mosec_ov.py", "--address", "127.0.0.1", "--port", "PORT", "--timeout", "30000")
_LITSERVE = ("PYTHON", "litserve_ov.py")
_BENTOML = ("BIN/bentoml", "serve", "bentoml_ov:Classifier", "--host", "127.0.0.1", "--port", "PORT")
_OURS = {"DECODE": "ours"}

PEER_SYSTEMS = (
    Peer("flask", "Flask, torch eager fp32, 1 process, 2 torch threads: the article's baseline", _FLASK, "/predict"),
    Peer(
        "gunicorn 4x2",
        "Flask, torch eager fp32, 4 workers of 2 threads: the article's tuned service",
        _GUNICORN,
        "/predict",
        {"NT": "1"},
    ),
    Peer("bentoml", "BentoML, 2 workers, adaptive batching, raw body", _BENTOML, "/predict"),
    Peer("litserve", "LitServe, 2 workers, 2 HTTP processes, raw body", _LITSERVE, "/predict"),
    Peer("litserve, our decode", "the same with this project's decode", _LITSERVE, "/predict", _OURS),
    Peer("mosec split", "mosec, a decode and an inference stage", _MOSEC, "/inference", {"LAYOUT": "split"}),
    Peer("mosec fused", "mosec, both stages in each of 2 workers", _MOSEC, "/inference"),
    Peer("mosec fused, our decode", "the same with this project's decode", _MOSEC, "/inference", _OURS),
)


def fresh_folder(folder: Path) -> Path:
    """An empty folder of that name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
