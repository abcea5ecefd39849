"""A new version of an engine is taken in under load, in both placements, and no request notices; a bad one is not."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine_build.simulate import ARTIFACT, simulate
from scripts.autoscale.observe import Cluster, cluster_below
from scripts.local_service import load, running
from serve_app.manifest import read_manifest, sha256_of, write_manifest
from tests.service.nodes import deploy, until

pytestmark = pytest.mark.service
HERE, THERE = "here", "there"
DEPLOYMENT = {HERE: "Preprocessor", THERE: f"Classifier-{THERE}"}
BROKEN = 3


def configuration(versions: dict[str, int] | None = None) -> dict[str, Any]:
    """Two simulated models, `here` in the process that decodes and `there` in a replica of its own; one replica each,
    so that nobody else could serve while it changes."""
    config = load("local")
    config.pop("grpc_options", None)
    [application] = config["applications"]
    application["args"] = {
        "engine": {"backend": "simulated"},
        "batching": {"max_batch_size": 4},
        "models": {HERE: {}, THERE: {"placement": "split", "batching": {"max_in_flight": 2}}},
    }
    application["deployments"] = [
        {"name": DEPLOYMENT[HERE], "num_replicas": 1, "max_ongoing_requests": 1000},
        {"name": DEPLOYMENT[THERE], "num_replicas": 1, "max_ongoing_requests": 16},
    ]
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
    if versions:
        application["deployments"][0]["user_config"] = {"models": {HERE: {"version": versions[HERE]}}}
        application["deployments"][1]["user_config"] = {"version": versions[THERE]}
    return config


def engines(folder: Path) -> None:
    for name in (HERE, THERE):
        for version in (1, 2, BROKEN):
            simulate(name, {1: 5.0, 4: 20.0}, folder / "engines", version)
        broken = folder / "engines" / name / str(BROKEN) / "simulated-fp32"
        (broken / ARTIFACT).write_text('{"batch_ms": {}}')  # its hash is right, and it does not run
        manifest = read_manifest(broken, check_files=False)
        write_manifest(broken, manifest.model_copy(update={"files": {ARTIFACT: sha256_of(broken / ARTIFACT)}}))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Cluster, Path]]:
    folder = tmp_path_factory.mktemp("new_versions")
    engines(folder)
    before = {child.pid for child in psutil.Process().children()}
    with running(configuration(), folder) as address:
        [child] = [child for child in psutil.Process().children() if child.pid not in before]
        yield address, cluster_below(child.pid), folder


def change(service: tuple[str, Cluster, Path], versions: dict[str, int]) -> None:
    """The same configuration with other versions in it."""
    address, cluster, folder = service
    done = deploy(cluster, folder, address, configuration(versions))
    assert done.returncode == 0, done.stderr


class Seen:
    """Answers under load, by model and version, and everything that was no answer."""

    def __init__(self) -> None:
        self.versions: Counter[tuple[str, int]] = Counter()
        self.others: list[str] = []

    def note(self, model: str, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            self.versions[model, answer.json()["version"]] += 1
        else:
            self.others.append(f"{model}: {answer.status_code} {answer.text}")


@contextmanager
def load_on(address: str, picture: bytes) -> Iterator[Seen]:
    """Three clients for each model, one request after the other."""
    seen, over = Seen(), threading.Event()

    def ask(model: str) -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            while not over.is_set():
                try:
                    seen.note(model, http.post("/predict", params={"model": model}, content=picture))
                except httpx.HTTPError as error:
                    seen.others.append(f"{model}: {error!r}")

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(ask, model) for model in (HERE, THERE) * 3]
        try:
            yield seen
        finally:
            over.set()
    for one in work:
        one.result()


def replicas(cluster: Cluster) -> set[str]:
    """Log files of the replicas there have been: a restarted one writes another."""
    return {path.name for path in (cluster.session / "logs" / "serve").glob("replica_*.log")}


def serving(address: str) -> dict[str, dict[str, Any]]:
    return dict(json.loads(httpx.get(f"{address}/live", timeout=10).text)["models"])


def test_a_new_version_takes_over_and_a_bad_one_does_not(
    service: tuple[str, Cluster, Path], photographs: dict[str, bytes]
) -> None:
    address, cluster, _ = service
    before = replicas(cluster)
    with load_on(address, photographs["cat.jpg"]) as seen:
        until(lambda: all(seen.versions[name, 1] > 20 for name in (HERE, THERE)), 20, "answers of version 1")
        change(service, {HERE: 2, THERE: 2})
        until(lambda: all(seen.versions[name, 2] > 20 for name in (HERE, THERE)), 30, "answers of version 2")
        change(service, {HERE: BROKEN, THERE: BROKEN})
        refused = f"version {BROKEN} was not taken in, version 2 goes on"
        until(
            lambda: all(refused in (one["refused_version"] or "") for one in serving(address).values()),
            30,
            "the refusal of version 3",
        )
        answered = Counter(seen.versions)
        until(
            lambda: all(seen.versions[name, 2] > answered[name, 2] + 20 for name in (HERE, THERE)), 20, "more answers"
        )
    assert seen.others == []
    assert {version for _, version in seen.versions} == {1, 2}
    assert replicas(cluster) == before
    assert {name: one["versions"] for name, one in serving(address).items()} == {HERE: {"2": 1}, THERE: {"2": 1}}
    models = {one["name"]: one["version"] for one in httpx.get(f"{address}/models").json()["models"]}
    assert models == {HERE: 2, THERE: 2}
