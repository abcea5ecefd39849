#!/usr/bin/env python
"""Does load change answers? Every picture is asked for alone first, then many clients ask for all of them at once.

    .venv/bin/python scripts/consistency.py --images DIR [--address http://localhost:8000] [--clients 64]

Without --address the service is started with configs/local.yaml. Prints the number of errors, of answers that
differ from the lone request's in any class or in a score by more than 1e-5, and pictures per second.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from scripts.local_service import ROOT, load, running
from scripts.pictures import add_images, picture_files

SCORE_TOLERANCE = 1e-5
Answer = list[tuple[int, float]]


@dataclass
class Result:
    """Counts of one run."""

    requests: int = 0
    errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    seconds: float = 0.0


def ask(client: httpx.Client, body: bytes) -> Answer:
    """Top-3 of one picture as (class, score)."""
    answer = client.post("/predict", content=body).raise_for_status().json()
    return [(one["class_id"], one["score"]) for one in answer["predictions"]]


def same(one: Answer, other: Answer) -> bool:
    """Same classes in the same order, scores within the tolerance."""
    return [a for a, _ in one] == [b for b, _ in other] and all(
        abs(a - b) <= SCORE_TOLERANCE for (_, a), (_, b) in zip(one, other, strict=True)
    )


def run(address: str, pictures: dict[str, bytes], *, requests: int, clients: int, seed: int = 0) -> Result:
    """Lone requests first, then `requests` shuffled ones from `clients` connections."""
    with httpx.Client(base_url=address, timeout=60) as client:
        lone = {name: ask(client, body) for name, body in tqdm(pictures.items(), desc="alone", unit="picture")}
    names = list(itertools.islice(itertools.cycle(pictures), requests))
    random.Random(seed).shuffle(names)
    result, work, lock = Result(), iter(names), threading.Lock()
    bar = tqdm(total=requests, desc=f"{clients} clients", unit="picture")

    def client_loop() -> None:
        with httpx.Client(base_url=address, timeout=120) as client:
            while True:
                with lock:
                    name = next(work, None)
                if name is None:
                    return
                failure = _failure(client, pictures[name], lone[name])
                with lock:
                    result.requests += 1
                    bar.update()
                    if failure:
                        (result.different if failure == "different" else result.errors).append(f"{name}: {failure}")

    threads = [threading.Thread(target=client_loop) for _ in range(clients)]
    began_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.monotonic() - began_s
    bar.close()
    return result


def _failure(client: httpx.Client, body: bytes, expected: Answer) -> str | None:
    try:
        return None if same(ask(client, body), expected) else "different"
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"


@contextmanager
def _service(address: str | None, config: str) -> Iterator[str]:
    if address:
        yield address
        return
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "engines").symlink_to(ROOT / "engines")
        with running(load(config), Path(name)) as own:
            yield own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_images(parser)
    parser.add_argument("--address", help="of a running service")
    parser.add_argument("--config", default="local", help="name of the configuration to start (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    arguments: Any = parser.parse_args()
    pictures = {path.name: path.read_bytes() for path in picture_files(arguments.images)}
    with _service(arguments.address, arguments.config) as address:
        result = run(address, pictures, requests=arguments.requests, clients=arguments.clients)
    print(
        f"{result.requests} requests of {len(pictures)} pictures, {arguments.clients} clients: {len(result.errors)} "
        f"errors, {len(result.different)} different answers, {result.requests / result.seconds:.0f} pictures/s"
    )
    for line in (result.errors + result.different)[:20]:
        print(f"  {line}")
    return 1 if result.errors or result.different else 0


if __name__ == "__main__":
    sys.exit(main())
