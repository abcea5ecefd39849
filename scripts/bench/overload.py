"""More load than the service can take: what is answered, how fast, what the rest is told, and what memory does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.contenders import Ours, Running
from scripts.bench.load import LoadResult, closed_loop, open_loop
from scripts.bench.meters import memory_bytes
from scripts.bench.patience import Patience, patient_crowd

PEAK_CLIENTS = 16
"""As many as keep both cores busy, and none of them has to be refused: these clients do not wait when they are."""
MEMORY_EVERY_S = 2.0
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Overload:
    """What is offered.

    Attributes:
        times: the peak is offered so many times over.
        seconds: of the flood.
        objective_ms: what answers are to take at most (99 of 100).
        max_wait_ms: `limits.max_wait_ms` of the service under test.
    """

    times: float
    seconds: float
    objective_ms: float
    max_wait_ms: float


def overload(system: Ours, engine_dir: Path, pictures: tuple[bytes, ...], wanted: Overload, out: Path) -> bool:
    """Prints the table; returns whether every target was met."""
    with system.start(engine_dir, pictures[0], out) as running:
        target = running.target(pictures)
        peak = closed_loop(target, connections=PEAK_CLIENTS, seconds=10, warmup_s=5)
        with _memory(running) as memory:
            flood = open_loop(
                target, rate_per_s=wanted.times * peak.pictures_per_s(), seconds=wanted.seconds, max_connections=1024
            )
        crowd_size = round(wanted.times * peak.pictures_per_s() * wanted.max_wait_ms / 1e3)
        crowd = patient_crowd(running.url, pictures[0], clients=crowd_size, seconds=wanted.seconds / 2)
        after = closed_loop(target, connections=PEAK_CLIENTS, seconds=5, warmup_s=1)
    lines = _verdicts(peak, flood, crowd, after, memory, wanted)
    print(_table(system, peak, flood, crowd, crowd_size, memory, lines))
    document = {
        "wanted": {name: getattr(wanted, name) for name in wanted.__slots__},
        "peak": peak.as_dict(),
        "flood": flood.as_dict(),
        "after": after.as_dict(),
        "memory_bytes": memory,
        "crowd": {name: getattr(crowd, name) for name in crowd.__slots__},
    }
    (out / "overload.json").write_text(json.dumps(document))
    return all(met for _, _, met in lines)


@contextmanager
def _memory(running: Running) -> Iterator[list[int]]:
    """Bytes of all processes of the service, every few seconds until the block ends."""
    sizes: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(MEMORY_EVERY_S):
            sizes.append(sum(memory_bytes({"": running.root_pid}).values()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


Line = tuple[str, str, bool]
"""What was wanted, what was seen, whether that is it."""


def _verdicts(
    peak: LoadResult, flood: LoadResult, crowd: Patience, after: LoadResult, memory: list[int], wanted: Overload
) -> list[Line]:
    share = flood.pictures_per_s() / peak.pictures_per_s()
    p99_ms = flood.percentile_ms(99)
    settled = memory[len(memory) // 5 :]
    growth = settled[-1] / settled[0] - 1
    errors = [*flood.errors, *after.errors, *crowd.errors]
    return [
        ("goodput 90 % of the peak", f"{flood.pictures_per_s():.0f}/s, {share:.0%}", share >= 0.9),
        (f"admitted p99 within {wanted.objective_ms:g} ms", f"{p99_ms:.0f} ms", p99_ms <= wanted.objective_ms),
        ("nothing but 200 and announced 429", f"{len(errors)} others {errors[:3] or ''}", not errors),
        (
            "Retry-After right within a factor of two (9 of 10)",
            f"{crowd.within(2):.0%}, median of waited / promised {crowd.median_ratio():.2f}",
            crowd.within(2) >= 0.9,
        ),
        ("memory flat (5 %)", f"{settled[0] / MIB:.0f} -> {settled[-1] / MIB:.0f} MiB", abs(growth) <= 0.05),
        (
            "peak again afterwards",
            f"{after.pictures_per_s():.0f}/s",
            after.pictures_per_s() >= 0.9 * peak.pictures_per_s(),
        ),
    ]


def _table(
    system: Ours,
    peak: LoadResult,
    flood: LoadResult,
    crowd: Patience,
    crowd_size: int,
    memory: list[int],
    lines: list[Line],
) -> str:
    rows: list[Any] = [
        f"{system.name}: peak {peak.pictures_per_s():.0f} pictures/s with {PEAK_CLIENTS} clients",
        f"flood: {flood.rate_per_s or 0:.0f}/s offered for {flood.seconds:.0f} s, nobody comes back: {flood.requests} "
        f"answered, {flood.shed} refused, p50 {flood.percentile_ms(50):.0f} ms, p99 {flood.percentile_ms(99):.0f} ms",
        f"crowd: {crowd_size} clients that come back when they are told to: {crowd.answered} answered, "
        f"{crowd.refusals} refusals on the way, {len(crowd.waited_s)} requests were refused at first",
        "",
        "| wanted | seen | |",
        "|---|---|---|",
        *(f"| {want} | {seen} | {'met' if met else 'MISSED'} |" for want, seen, met in lines),
    ]
    return "\n".join(rows)
