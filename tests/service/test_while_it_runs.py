"""What changes while the service runs, and what does not: batching by `user_config`, and who goes first under load."""

from __future__ import annotations

import statistics
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine_build.simulate import simulate
from scripts.autoscale.observe import Cluster, cluster_below
from scripts.local_service import load, running, with_args
from tests.service.nodes import deploy, until

pytestmark = pytest.mark.service
ONE_MS, SIXTEEN_MS = 15.0, 120.0


def configuration() -> dict[str, Any]:
    """Split stages, one replica each, in front of an engine that takes 15 ms for one picture and 120 for sixteen."""
    args = {"engine": {"model": "stand_in", "backend": "simulated"}, "limits": {"max_wait_ms": 10_000}}
    config = with_args(load("cpu"), args)
    for deployment in config["applications"][0]["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
        deployment["autoscaling_config"]["max_replicas"] = 1
    return config


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Cluster, Path]]:
    folder = tmp_path_factory.mktemp("while_it_runs")
    simulate("stand_in", {1: ONE_MS, 16: SIXTEEN_MS}, folder / "engines")
    before = {child.pid for child in psutil.Process().children()}
    with running(configuration(), folder) as address:
        [child] = [child for child in psutil.Process().children() if child.pid not in before]
        yield address, cluster_below(child.pid), folder


def engine_ms(address: str, picture: bytes) -> float:
    """Longest engine run of a request of sixteen pictures."""
    answer = httpx.post(f"{address}/predict", files=[("image", ("cat.jpg", picture))] * 16, timeout=60)
    return max(float(result["timing_ms"]["inference"]) for result in answer.json()["results"])


def change(
    cluster: Cluster, folder: Path, address: str, user_config: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """The same configuration again, with another `user_config`."""
    config = configuration()
    for deployment in config["applications"][0]["deployments"]:
        deployment["user_config"] = user_config
    return deploy(cluster, folder, address, config)


def replicas(cluster: Cluster) -> set[str]:
    """Log files of the replicas there have been: a restarted one writes another."""
    return {path.name for path in (cluster.session / "logs" / "serve").glob("replica_*.log")}


def test_batching_changes_without_a_restart(service: tuple[str, Cluster, Path], photographs: dict[str, bytes]) -> None:
    address, cluster, folder = service
    assert engine_ms(address, photographs["cat.jpg"]) > 2 * ONE_MS
    before = replicas(cluster)
    done = change(cluster, folder, address, {"max_batch_size": 1})
    assert done.returncode == 0, done.stderr
    # The command returns when Serve has the configuration; replicas have it a moment later.
    until(lambda: engine_ms(address, photographs["cat.jpg"]) < 2 * ONE_MS, 20, "batches of one")
    assert change(cluster, folder, address, {}).returncode == 0
    until(lambda: engine_ms(address, photographs["cat.jpg"]) > 2 * ONE_MS, 20, "larger batches")
    assert replicas(cluster) == before


def test_interactive_requests_go_before_batch_ones(
    service: tuple[str, Cluster, Path], photographs: dict[str, bytes]
) -> None:
    """24 clients with eight pictures each of priority batch all the time, and one client with a lone picture."""
    address, _, _ = service
    over = threading.Event()
    files = [("image", ("cat.jpg", photographs["cat.jpg"]))] * 8

    def bulk(_: int) -> list[int]:
        codes = []
        with httpx.Client(timeout=60) as http:
            while not over.is_set():
                codes.append(http.post(f"{address}/predict", files=files, headers={"x-priority": "batch"}).status_code)
        return codes

    def lone_ms(priority: str) -> float:
        with httpx.Client(timeout=60) as http:
            answer = http.post(
                f"{address}/predict", content=photographs["cat.jpg"], headers={"x-priority": priority}
            ).raise_for_status()
        return float(answer.json()["timing_ms"]["queue"])

    with ThreadPoolExecutor(24) as pool:
        work = pool.map(bulk, range(24))
        try:
            waits = {name: [lone_ms(name) for _ in range(6)] for name in ("batch", "interactive")}
        finally:
            over.set()
        codes = {code for each in work for code in each}
    assert codes <= {200, 429}
    assert statistics.median(waits["interactive"]) < statistics.median(waits["batch"]) / 2
