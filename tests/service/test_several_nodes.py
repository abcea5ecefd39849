"""Replicas on several nodes: where they are, what a death costs, and nodes that come and go with the work.

All nodes are on this machine and only claim their GPUs. The engine only takes time, but its answer depends on every
pixel, so that a mixed-up one shows. Tests share nodes, and each begins by waiting for what it needs.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.service.nodes import Load, Nodes, Replica, configuration, different_pictures, several_nodes, until

pytestmark = pytest.mark.service

KEPT_S = 6
"""The last replica of a stage that may have none stays for so long when nothing comes."""


@pytest.fixture(scope="module")
def pictures(photographs: dict[str, bytes]) -> dict[str, bytes]:
    return different_pictures(photographs, 24)


# Fixtures of a class, not of the module: one set of nodes at a time.
@pytest.fixture(scope="class")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    # Serve asks every 10 s otherwise whether a replica lives.
    config = configuration({"num_replicas": 2, "health_check_period_s": 1})
    with several_nodes(config, tmp_path_factory.mktemp("two_workers"), "--workers", "2") as started:
        yield started


@pytest.fixture(scope="class")
def autoscaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Workers that Ray adds and removes, for a Classifier of no to two replicas; a start waits for the first."""
    bounds = {"min_replicas": 0, "max_replicas": 2, "metrics_interval_s": 0.5, "look_back_period_s": 4}
    policy = {
        "policy_function": "serve_app.autoscaling:PipelinePolicy",
        "policy_kwargs": {"stages": {"Classifier": {"keep_s": 4, "keep_last_s": KEPT_S}}},
    }
    config = configuration(
        {"autoscaling_config": {**bounds, "upscale_delay_s": 0, "downscale_delay_s": 0}}, autoscaling_policy=policy
    )
    with several_nodes(config, tmp_path_factory.mktemp("autoscaled"), "--autoscale", "2", "--idle-s", "2") as started:
        yield started


@pytest.fixture
def load(two_workers: Nodes, pictures: dict[str, bytes]) -> Iterator[Load]:
    """More than one replica can do, on both of them, from before a test until after it."""
    until(lambda: len(two_workers.classifiers()) == 2, 60, "two classifiers")
    with Load(two_workers.address, pictures) as clients:
        two_workers.serving(2)
        yield clients


def busiest(nodes: Nodes) -> Replica:
    counts = nodes.classified()
    return max(nodes.classifiers(), key=lambda replica: counts[replica.name])


def one_on_each(nodes: Nodes, replicas: list[Replica]) -> bool:
    return sorted(replica.node for replica in replicas) == sorted(nodes.workers())


class TestOnTwoWorkers:
    """Replicas on nodes of their own, and what is left when one of them dies."""

    def test_replicas_are_on_nodes_of_their_own_and_both_serve(self, two_workers: Nodes, load: Load) -> None:
        replicas = two_workers.serving(2)
        assert one_on_each(two_workers, replicas)
        before = two_workers.classified()
        until(
            lambda: all(two_workers.classified()[one.name] > before[one.name] + 50 for one in replicas),
            30,
            f"more pictures at both replicas than {before}",
        )
        assert load.faults() == {}

    def test_a_killed_replica_loses_nothing_and_is_replaced(self, two_workers: Nodes, load: Load) -> None:
        """Twice: the second time the other one, which has been alone meanwhile."""
        for _ in range(2):
            load.more(100)
            victim = busiest(two_workers)
            os.kill(victim.pid, signal.SIGKILL)
            load.more(100)
            assert victim not in two_workers.serving(2)
        load.more(100)
        assert load.faults() == {}

    def test_a_killed_node_loses_nothing_and_a_new_one_takes_its_place(self, two_workers: Nodes, load: Load) -> None:
        load.more(100)
        dead = busiest(two_workers).node
        two_workers.end(dead)
        load.more(300)
        until(lambda: dead not in two_workers.workers(), 60, "Ray knows that the node is dead")
        two_workers.add_worker()
        assert one_on_each(two_workers, two_workers.serving(2))
        load.more(100)
        assert load.faults() == {}

    def test_a_node_that_falls_silent_loses_nothing_and_stops_nobody(self, two_workers: Nodes, load: Load) -> None:
        """Nothing closes its connections, as when a machine loses its power or its network. Many answers, because
        Serve's router avoids such a replica by itself for as long as it remembers how much that one had to do: 10 s."""
        load.more(100)
        silent = busiest(two_workers).node
        two_workers.freeze(silent)
        try:
            load.more(800, 40)
        finally:
            two_workers.end(silent)
        load.more(200)  # what still waited for that node has now failed
        assert load.faults() == {}


class TestWithAutoscaledWorkers:
    """From no node to two and back."""

    def test_nodes_come_with_the_work_and_go_when_there_is_none(
        self, autoscaled: Nodes, pictures: dict[str, bytes]
    ) -> None:
        with Load(autoscaled.address, pictures, clients=40) as load:
            assert one_on_each(autoscaled, autoscaled.serving(2))
        assert load.faults() == {}
        until(lambda: not autoscaled.classifiers(), 60, "no replica is left")
        until(lambda: not autoscaled.workers(), 60, "no worker is left")

    def test_the_first_requests_after_none_wait_for_a_node_and_its_replica(
        self, autoscaled: Nodes, pictures: dict[str, bytes]
    ) -> None:
        until(lambda: not autoscaled.workers(), 60, "no worker is left")

        def answer(body: bytes) -> str:
            patient = {"x-request-timeout-ms": "120000"}
            got = httpx.post(f"{autoscaled.address}/predict", content=body, headers=patient, timeout=120)
            return str(got.raise_for_status().json()["predictions"])

        bodies = list(pictures.values())[:4]
        with ThreadPoolExecutor(len(bodies)) as pool:
            first = list(pool.map(answer, bodies))
        assert [answer(body) for body in bodies] == first
        assert len(set(first)) > 1

    def test_a_replica_that_was_started_for_one_request_is_kept(
        self, autoscaled: Nodes, pictures: dict[str, bytes]
    ) -> None:
        until(lambda: not autoscaled.classifiers(), 60, "no replica is left")
        httpx.post(
            f"{autoscaled.address}/predict", content=next(iter(pictures.values())), timeout=60
        ).raise_for_status()
        since_s = time.monotonic()
        until(lambda: not autoscaled.classifiers(), 60, "no replica is left")
        assert time.monotonic() - since_s > KEPT_S - 1  # its first report may be older than its first answer
