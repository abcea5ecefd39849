"""A real Prometheus on this machine, with this project's configuration, for as long as a check takes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from scripts.local_service import ROOT, free_port

MONITORING = ROOT / "configs" / "monitoring"


class NoPrometheus(Exception):
    """Prometheus is not installed, or does not start."""


class Prometheus:
    """Its HTTP API.

    Args:
        address: `http://HOST:PORT`.
    """

    def __init__(self, address: str) -> None:
        # One client for all: each reads the system's certificates anew, which takes longer than a query.
        self._http = httpx.Client(base_url=address, timeout=10, trust_env=False)

    def values(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series of an expression, now; NaN, which is no answer, is left out.

        Raises:
            ValueError: Prometheus does not take the expression; says why.
        """
        answer = self._http.post("/api/v1/query", data={"query": expr}).json()
        if answer["status"] != "success":
            raise ValueError(f"{expr}: {answer['error']}")
        if answer["data"]["resultType"] == "scalar":
            return [({}, float(answer["data"]["result"][1]))]
        found = [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]
        return [(labels, value) for labels, value in found if value == value]

    def ready(self) -> bool:
        """Whether it takes queries."""
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()


def configuration(target: str, interval_s: float) -> dict[str, Any]:
    """configs/monitoring/prometheus.yml for one running service.

    Args:
        target: address of the service, `http://HOST:PORT`.
        interval_s: between scrapes, and between evaluations of the rules.
    """
    config: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    interval = f"{round(interval_s * 1000)}ms"
    config["global"] = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    own = next(job for job in config["scrape_configs"] if job["job_name"] == "image-serve")
    # Ray's own exporters are found through a file that another Ray on this machine may have left behind.
    config["scrape_configs"] = [own | {"static_configs": [{"targets": [urlsplit(target).netloc]}]}]
    return config


@contextmanager
def running_prometheus(config: Mapping[str, Any], folder: Path) -> Iterator[Prometheus]:
    """Prometheus with `config`, from ready to gone.

    Args:
        folder: takes its configuration, its data and its log.

    Raises:
        NoPrometheus: says what to do.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise NoPrometheus("there is no prometheus on the PATH; install it: apt-get install prometheus")
    path, log, port = folder / "prometheus.yml", folder / "prometheus.log", free_port()
    path.write_text(yaml.safe_dump(dict(config)))
    options = [f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    options += [f"--web.listen-address=127.0.0.1:{port}"]
    with log.open("wb") as output:
        process = subprocess.Popen([program, *options], cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        _wait(process, prometheus, log)
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], prometheus: Prometheus, log: Path, timeout_s: float = 20) -> None:
    until_s = time.monotonic() + timeout_s
    while not prometheus.ready():
        if time.monotonic() > until_s or process.poll() is not None:
            raise NoPrometheus(
                f"prometheus is not ready, exit code {process.poll()}; its log: {log.read_text()[-2000:]}"
            )
        time.sleep(0.1)
