"""Several systems, interleaved: each round starts every one of them, alone, loads it and ends it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from scripts.bench.contenders import Running
from scripts.bench.load import LoadResult, Target, closed_loop
from scripts.bench.meters import CpuMeter, CpuUse
from scripts.bench.tables import Sample
from scripts.local_service import NotStarted


class System(Protocol):
    """Something that can be started and measured."""

    @property
    def name(self) -> str: ...

    def start(self, engine_dir: Path, picture: bytes, folder: Path) -> AbstractContextManager[Running]: ...


def measure_closed(target: Target, root_pid: int, clients: int, seconds: float) -> tuple[LoadResult, CpuUse]:
    """A closed loop, and the CPU that the processes below `root_pid` spent in exactly its window."""
    meter = CpuMeter({"": root_pid})
    result = closed_loop(
        target, connections=clients, seconds=seconds, warmup_s=2.0, on_begin=meter.start, on_end=meter.end
    )
    return result, meter.stop(max(result.ended_in_window, 1))


def compare(
    systems: Sequence[System],
    engine_dir: Path,
    pictures: tuple[bytes, ...],
    *,
    clients: Sequence[int],
    rounds: int,
    seconds: float,
    folder: Path,
) -> list[Sample]:
    """Measures all systems `rounds` times; a system that does not start is told of and left out of that round.

    The order turns by one from round to round, so that nobody always follows the same neighbour. Raw results are
    appended to `folder`/samples.jsonl as they come.
    """
    samples: list[Sample] = []
    raw = folder / "samples.jsonl"
    for number in range(rounds):
        turn = number % len(systems)
        for system in [*systems[turn:], *systems[:turn]]:
            try:
                for sample in _round(system, engine_dir, pictures, clients, number, seconds, folder):
                    samples.append(sample)
                    with raw.open("a") as file:
                        file.write(json.dumps(asdict(sample)) + "\n")
                    _say(sample)
            except NotStarted as error:
                print(f"round {number + 1}: {system.name} did not start: {error}", flush=True)
    order = [system.name for system in systems]
    return sorted(samples, key=lambda one: (order.index(one.system), one.round, one.clients))


def _round(
    system: System,
    engine_dir: Path,
    pictures: tuple[bytes, ...],
    clients: Sequence[int],
    number: int,
    seconds: float,
    folder: Path,
) -> list[Sample]:
    with system.start(engine_dir, pictures[0], folder) as running:
        time.sleep(1.0)  # what a start leaves behind: log lines, caches of the page, Ray's own first reports
        return [
            _sample(
                system.name, number, count, *measure_closed(running.target(pictures), running.root_pid, count, seconds)
            )
            for count in clients
        ]


def _sample(name: str, number: int, clients: int, result: LoadResult, cpu: CpuUse) -> Sample:
    details: dict[str, Any] = {**result.as_dict(), "cpu": cpu.as_dict()}
    return Sample(
        name,
        number,
        clients,
        result.pictures_per_s(),
        result.percentile_ms(50),
        result.percentile_ms(99),
        result.failed(),
        cpu.core_ms_per_request(),
        cpu.idle_share,
        details,
    )


def _say(sample: Sample) -> None:
    print(
        f"round {sample.round + 1}  {sample.system:<26} {sample.clients:>3} clients {sample.pictures_per_s:7.1f}/s  "
        f"p50 {sample.p50_ms:6.1f} ms  p99 {sample.p99_ms:6.1f} ms  {sum(sample.core_ms.values()):6.2f} core-ms  "
        f"idle {sample.idle_share:4.0%}" + (f"  FAILED {sample.failed}" if sample.failed else ""),
        flush=True,
    )
