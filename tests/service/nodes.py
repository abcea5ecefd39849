"""The service on several invented nodes, what Ray's tables say of it, and clients that check every answer."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from engine_build.simulate import simulate
from scripts.autoscale.observe import Cluster
from scripts.consistency import Answer, ask, same
from scripts.local_service import BIN, ROOT, running

SEVERAL_NODES = [sys.executable, str(ROOT / "scripts" / "several_nodes.py")]
BATCH_MS = {1: 30.0, 8: 120.0}
"""Of the engine that only takes time: 66 pictures per second and replica."""


def until(holds: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Waits for something true and returns it; a test that waits in vain says for what."""
    ends_s = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < ends_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return value


def deploy(cluster: Cluster, folder: Path, address: str, config: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """Another configuration for a service that runs, as an operator would."""
    host, port = address.removeprefix("http://").split(":")
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({**config, "http_options": {"host": host, "port": int(port)}}))
    return subprocess.run(
        [BIN / "serve", "run", "--non-blocking", str(path)],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def configuration(classifier: Mapping[str, Any], **application: Any) -> dict[str, Any]:
    """Decoding on the head, where the ingress is, and a Classifier replica on any node with an invented GPU.

    Args:
        classifier: settings of that deployment.
        application: settings of the application besides.
    """
    on_head = {"num_cpus": 0.1, "resources": {"ingress": 0.01}}
    on_worker = {"num_cpus": 0.1, "num_gpus": 1}
    one = {
        "name": "image-serve",
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "args": {
            "engine": {"model": "stand_in", "backend": "simulated"},
            "placement": "split",
            "preprocess": {"mode": "fast"},
            "batching": {"max_batch_size": 8, "max_in_flight": 2},
        },
        "deployments": [
            {"name": "Preprocessor", "max_ongoing_requests": 1000, "ray_actor_options": on_head},
            {"name": "Classifier", "max_ongoing_requests": 16, "ray_actor_options": on_worker, **classifier},
        ],
        **application,
    }
    return {"logging_config": {"enable_access_log": False}, "applications": [one]}


@dataclass(frozen=True)
class Replica:
    """A process of the Classifier, and the node it is on."""

    name: str
    pid: int
    node: str


def samples_at(url: str, name: str) -> list[tuple[Mapping[str, str], float]]:
    """Labels and value of every series of one metric that a Prometheus port exports."""
    families = text_string_to_metric_families(httpx.get(url).text)
    return [
        (sample.labels, float(sample.value)) for family in families for sample in family.samples if sample.name == name
    ]


class Nodes:
    """The nodes, seen from outside: this process reads Ray's tables and never joins.

    Args:
        address: of the service.
        printed: by `scripts/several_nodes.py`.
    """

    def __init__(self, address: str, printed: str) -> None:
        from ray._private.state import GlobalState
        from ray._raylet import GcsClientOptions

        self.address = address
        found = re.search(r"Ray at (\S+), pid (\d+), logs below (\S+)", printed)
        assert found, printed
        self.logs = Path(found[3])
        self._pid = int(found[2])
        self._tables = GlobalState()
        self._tables._initialize_global_state(
            GcsClientOptions.create(found[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
        )

    def _alive(self) -> dict[str, Mapping[str, Any]]:
        return {node["NodeID"]: node for node in self._tables.node_table() if node["Alive"]}

    def workers(self) -> set[str]:
        """Nodes with an invented GPU that Ray believes alive."""
        return {name for name, node in self._alive().items() if node["Resources"].get("GPU")}

    def classifiers(self) -> list[Replica]:
        """Replicas whose process runs; whether they are warm shows in `classified`."""
        return self.replicas("Classifier")

    def replicas(self, deployment: str) -> list[Replica]:
        """Of any deployment, as `classifiers`."""
        return [
            Replica(actor["Name"].rpartition("#")[2], actor["Pid"], actor["Address"]["NodeID"])
            for actor in self._tables.actor_table(None, None, "ALIVE").values()
            if actor["ActorClassName"] == f"ServeReplica:image-serve:{deployment}"
        ]

    def samples(self, name: str) -> list[tuple[Mapping[str, str], float]]:
        """Labels and value of every series of a metric, as the nodes export them: the last second may be missing."""
        found: list[tuple[Mapping[str, str], float]] = []
        for node in self._alive().values():
            with suppress(httpx.HTTPError):
                found += samples_at(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", name)
        return found

    def classified(self) -> Counter[str]:
        """Pictures by name of replica; see `samples`."""
        counts: Counter[str] = Counter()
        for labels, value in self.samples("ray_image_serve_batch_pictures_sum"):
            counts[labels["replica"]] += int(value)
        return counts

    def serving(self, count: int, timeout_s: float = 60) -> list[Replica]:
        """Waits for `count` replicas that have all classified something; there must be load, or there was some."""

        def those() -> list[Replica]:
            replicas, counts = self.classifiers(), self.classified()
            return replicas if len(replicas) == count and all(counts[one.name] for one in replicas) else []

        found: list[Replica] = until(those, timeout_s, f"{count} classifiers that serve")
        return found

    def add_worker(self) -> None:
        """One more, soon."""
        os.kill(self._pid, signal.SIGUSR1)

    def freeze(self, node: str) -> None:
        """A node that says nothing any more: to others, a machine that lost its power or its network."""
        self._to_all(node, signal.SIGSTOP)

    def end(self, node: str) -> None:
        """Kills all processes of a node at once."""
        self._to_all(node, signal.SIGKILL)

    def _to_all(self, node: str, number: signal.Signals) -> None:
        raylet = self._raylet(self._alive()[node]["RayletSocketName"])
        for process in [raylet, *raylet.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _raylet(self, socket: str) -> psutil.Process:
        for process in psutil.Process(self._pid).children():
            with suppress(psutil.NoSuchProcess):  # zombies among them: the raylets of nodes that were ended
                if f"--raylet_socket_name={socket}" in process.cmdline():
                    return process
        raise LookupError(f"no raylet has {socket}")


@contextmanager
def several_nodes(
    config: Mapping[str, Any], folder: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Nodes]:
    """`config` on invented nodes, from ready to gone.

    Args:
        options: those of `scripts/several_nodes.py`.
        env: added to the environment of all nodes.
    """
    simulate("stand_in", BATCH_MS, folder / "engines")
    env = {"RAY_metrics_report_interval_ms": "1000", **(env or {})}
    with running(config, folder, command=[*SEVERAL_NODES, *options], env=env) as address:
        yield Nodes(address, (folder / f"service-{urlsplit(address).port}.log").read_text())


def different_pictures(photographs: Mapping[str, bytes], count: int) -> dict[str, bytes]:
    """Small pictures cut from larger ones."""
    pictures = {}
    for number in range(count):
        name = sorted(photographs)[number % len(photographs)]
        left = 16 * (number // len(photographs))
        file = io.BytesIO()
        whole = Image.open(io.BytesIO(photographs[name])).convert("RGB")
        whole.crop((left, left, left + 240, left + 240)).save(file, "JPEG")
        pictures[f"{name} from {left}"] = file.getvalue()
    return pictures


class Load:
    """Clients that ask again and again, each when it has its last answer, and compare every answer.

    Args:
        address: of the service.
        pictures: asked for in turn; alone first, which gives the answers expected from then on.
        clients: that ask at the same time.
    """

    def __init__(self, address: str, pictures: Mapping[str, bytes], clients: int = 16) -> None:
        self._address = address
        self._pictures = list(pictures.items())
        with httpx.Client(base_url=address, timeout=60) as client:
            self._expected: dict[str, Answer] = {name: ask(client, body) for name, body in self._pictures}
        assert len({answer[0][0] for answer in self._expected.values()}) > 1, "nothing would show a mixed-up answer"
        self.outcomes: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(turn,)) for turn in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def faults(self) -> dict[str, int]:
        """Everything but right answers and announced refusals, so far."""
        return {what: count for what, count in self.outcomes.items() if what not in ("right", "refused")}

    def more(self, count: int, timeout_s: float = 30) -> None:
        """Waits for so many more right answers."""
        goal = self.outcomes["right"] + count
        try:
            until(lambda: self.outcomes["right"] >= goal, timeout_s, f"{count} more right answers")
        except AssertionError as error:
            raise AssertionError(f"{error}; so far {dict(self.outcomes)}") from None

    def _client(self, turn: int) -> None:
        with httpx.Client(base_url=self._address, timeout=60) as client:
            while not self._stop.is_set():
                name, body = self._pictures[turn % len(self._pictures)]
                turn += 1
                self.outcomes[self._outcome(client, name, body)] += 1

    def _outcome(self, client: httpx.Client, name: str, body: bytes) -> str:
        try:
            return "right" if same(ask(client, body), self._expected[name]) else f"wrong answer to {name}"
        except httpx.HTTPStatusError as error:
            answer = error.response
            if answer.status_code in (429, 503) and "retry-after" in answer.headers:
                self._stop.wait(0.1)
                return "refused"
            return f"{answer.status_code} {answer.text}"
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
