"""What a running service does about its load: replicas from Ray's status, decisions and senders from its logs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
_STAMP = re.compile(r"^\w+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ")
_DECISION = re.compile(r"autoscaling (\{.*\})$")
_SENDING = re.compile(r"(\d+) classifier\(s\) for")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a local Ray can be reached, and its session folder."""

    address: str
    session: Path


@dataclass(frozen=True, slots=True)
class Sample:
    """Replicas by stage at a time (seconds since the epoch)."""

    at_s: float
    running: dict[str, int]
    starting: dict[str, int]


@dataclass(frozen=True, slots=True)
class Told:
    """One line of a log: when, and what it says."""

    at_s: float
    fields: dict[str, Any]


@dataclass(slots=True)
class Observed:
    """Everything seen between the start and the end of a watch."""

    samples: list[Sample] = field(default_factory=list)
    decisions: list[Told] = field(default_factory=list)
    classifiers: list[Told] = field(default_factory=list)

    def of(self, deployment: str) -> list[Told]:
        """The decisions about one stage."""
        return [one for one in self.decisions if one.fields["deployment"] == deployment]

    def first_running(self, deployment: str, count: int, after_s: float) -> float | None:
        """When a stage had `count` serving replicas for the first time since `after_s`."""
        return next(
            (one.at_s for one in self.samples if one.at_s >= after_s and one.running.get(deployment, 0) >= count), None
        )


def cluster_below(pid: int) -> Cluster:
    """The Ray that process `pid` started, as its node's daemon was told."""
    for child in psutil.Process(pid).children(recursive=True):
        if child.name() == "raylet":
            options = dict(word.lstrip("-").split("=", 1) for word in child.cmdline() if "=" in word)
            port = options["gcs-address"].rpartition(":")[2]
            return Cluster(f"127.0.0.1:{port}", Path(options["session_dir"]))
    raise LookupError(f"process {pid} runs no Ray")


@contextmanager
def watching(cluster: Cluster, application: str) -> Iterator[Observed]:
    """Samples the replicas while the block runs; decisions are read from the logs at its end.

    Raises:
        LookupError: the cluster cannot be asked.
    """
    seen, began_s = Observed(), time.time()
    command = [sys.executable, "-m", "scripts.autoscale.sampler", cluster.address, application]
    # What a Ray of its own has; its token is in the home folder.
    env = {**os.environ, "RAY_AUTH_MODE": "token"}
    with tempfile.TemporaryFile("w+") as samples:
        sampler = subprocess.Popen(command, cwd=ROOT, env=env, stdout=samples, stderr=subprocess.DEVNULL)
        try:
            yield seen
        finally:
            ended = sampler.poll()
            sampler.kill()
            sampler.wait()
        if ended is not None:
            raise LookupError(f"the Ray at {cluster.address} could not be asked: the sampler ended with {ended}")
        samples.seek(0)
        # The last line may have been cut off.
        seen.samples = [Sample(*json.loads(line)) for line in samples if line.endswith("\n")]
    logs = cluster.session / "logs" / "serve"
    for path in logs.glob("controller_*.log"):
        seen.decisions += [Told(at_s, json.loads(text)) for at_s, text in _lines(path, _DECISION, began_s)]
    for path in logs.glob("replica_*Preprocessor*.log"):
        lines = _lines(path, _SENDING, began_s)
        seen.classifiers += [Told(at_s, {"log": path.name, "classifiers": int(text)}) for at_s, text in lines]


def _lines(path: Path, pattern: re.Pattern[str], since_s: float) -> Iterator[tuple[float, str]]:
    for line in path.read_text().splitlines():
        stamp, found = _STAMP.match(line), pattern.search(line)
        if stamp and found:
            at_s = datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            if at_s >= since_s:
                yield at_s, found[1]
