#!/usr/bin/env python
"""Several Ray nodes on this machine, with resources that are only claimed, and one configuration served on them.

    .venv/bin/python scripts/several_nodes.py CONFIG.yaml [--head '{"CPU": 2, "ingress": 1}']
                                              [--worker '{"CPU": 1, "GPU": 1}'] [--workers 2 | --autoscale 2]

Rehearses placement, scaling and failures without a cluster, best with engines of `engine-build simulate`: two cores
then stand for any number of GPUs. Serves until Ctrl-C; SIGUSR1 adds a worker. With `--autoscale N` Ray's own
autoscaler adds up to N workers and removes idle ones. Touches no other Ray of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))
from scripts.local_service import free_port
from serve_app import launch  # imports Ray only when it starts it
from serve_app.errors import SetupError

HEAD = {"CPU": 2.0, "ingress": 1.0}
WORKER = {"CPU": 1.0, "GPU": 1.0}
STORE_BYTES = 100 * 2**20
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
"""What Ray's pretended cloud calls the head; the nodes that it adds are numbered from there."""

Resources = Mapping[str, float]


def set_environment(folder: Path, autoscale: bool) -> None:
    """Before Ray is imported: the environment of `image-serve start`, free ports, and every file below `folder`.

    One of these files tells `ray.init()` which Ray to join; in its usual place other programs would join this one.
    """
    haproxy = folder / "haproxy"
    # `image-serve start` prefers the usual side ports, and so would another one that starts at the same time.
    wanted = {name: str(free_port()) for name in launch._SIDE_PORTS} | {
        "RAY_TMPDIR": str(folder),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
    }
    if autoscale:
        wanted |= {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    launch.set_environment(os.environ, logs=False)


def node_options(resources: Resources) -> dict[str, Any]:
    """What `Cluster.add_node` takes for a node that claims `resources`."""
    return {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
        "resources": {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")},
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "dashboard_agent_listen_port": 0,
    }


def autoscaler_options(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What `Cluster.add_node` takes besides for a head whose autoscaler adds and removes workers.

    `ray.cluster_utils.AutoscalingCluster` does not serve: it ends every Ray of this user first, and reads a file that
    Ray's wheels lack. That file is why the provider is named by its class here and not by its own type.
    """
    import ray

    port = free_port()
    config = {
        "cluster_name": "several-nodes",
        "max_workers": options.autoscale,
        "idle_timeout_minutes": options.idle_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
        },
        "available_node_types": {
            HEAD_TYPE: {"resources": dict(options.head), "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {**options.worker, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "max_workers": options.autoscale,
            },
        },
        "head_node_type": HEAD_TYPE,
        # Read, though there is nothing to install.
        "cluster_synced_files": [],
        **{f"{which}setup_commands": [] for which in ("", "head_", "worker_")},
    }
    path = folder / "autoscaler.json"
    path.write_text(json.dumps(config))
    names = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_ID}
    return {"autoscaling_config": str(path), "gcs_server_port": port, "env_vars": names}


@contextmanager
def nodes(options: argparse.Namespace, folder: Path) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` with this process as its driver; after the block nothing of it is left."""
    import ray  # after the environment is set
    from ray.cluster_utils import Cluster

    launch._adopt_orphans()
    launch._on_stop_signals(launch._interrupt)
    try:
        head = node_options(options.head)
        if options.autoscale:
            head |= autoscaler_options(options, folder)
        cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        for _ in range(options.workers):
            cluster.add_node(**node_options(options.worker))
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False, logging_level="ERROR")
        yield cluster
    except KeyboardInterrupt:
        pass
    finally:
        launch._on_stop_signals(signal.SIG_IGN)
        ray.shutdown()
        end_everything()


def end_everything() -> None:
    """Every process below this one. More than once: a raylet may start another while the list is being ended."""
    for _ in range(5):
        if not psutil.Process().children():
            return
        launch._end_children()


def serve(options: argparse.Namespace, folder: Path) -> None:
    """Deploys, says where, and adds a worker for each SIGUSR1, until Ctrl-C."""
    wanted: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: wanted.append(number))
    config = yaml.safe_load(options.config.read_text())
    # One proxy: a second one on this machine could not have the same port.
    config["proxy_location"] = "HeadOnly"
    port = (config.get("http_options") or {}).get("port", launch.DEFAULT_PORT)
    with nodes(options, folder) as cluster:
        print(f"Ray at {cluster.address}, pid {os.getpid()}, logs below {folder}", flush=True)
        launch._deploy(config, logs=False)
        launch._wait_until_ready(f"http://127.0.0.1:{port}", time.monotonic() + options.ready_timeout_s)
        print(f"ready at http://127.0.0.1:{port}   (Ctrl-C stops it, SIGUSR1 adds a worker)", flush=True)
        while True:
            time.sleep(0.1)
            while wanted:
                wanted.pop()
                cluster.add_node(**node_options(options.worker))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--head", type=json.loads, default=HEAD, help="resources of the head (default: %(default)s)")
    parser.add_argument("--worker", type=json.loads, default=WORKER, help="of each worker (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="that are there from the beginning")
    parser.add_argument("--autoscale", type=int, default=0, metavar="N", help="workers that Ray may add")
    parser.add_argument("--idle-s", type=float, default=5, help="seconds after which it removes an idle one")
    parser.add_argument("--ready-timeout-s", type=float, default=120, help="how long a start may take")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    # Sockets are made in it, and their paths may have 107 characters: no folder of a test's own.
    folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))
    try:
        set_environment(folder, bool(options.autoscale))
        serve(options, folder)
    except SetupError as error:
        print(f"{error}; its logs are below {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
