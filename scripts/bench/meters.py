"""CPU and memory of a server by process, and how busy the machine was: what a request costs, and who spends it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.bench.processes import (
    Machine,
    Process,
    Reader,
    read_machine,
    read_memory_bytes,
    read_processes,
    tree,
)

Snapshot = dict[str, list[Process]]
"""Root's name to the processes of its tree."""


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU time inside one window.

    Attributes:
        seconds: length of the window.
        cpu_s: CPU time by process group.
        idle_share: of the whole machine's time on all cores, 0 to 1.
        steal_share: likewise, what the hypervisor gave to others.
    """

    seconds: float
    requests: int
    cpu_s: dict[str, float]
    idle_share: float
    steal_share: float

    def core_ms_per_request(self) -> dict[str, float]:
        """By process group, the most expensive first; empty where nothing was requested."""
        if not self.requests:
            return {}
        ordered = sorted(self.cpu_s.items(), key=lambda item: -item[1])
        return {name: spent_s * 1e3 / self.requests for name, spent_s in ordered}

    def total_core_ms_per_request(self) -> float:
        """Of all groups together."""
        return sum(self.core_ms_per_request().values())

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {
            "core_ms_per_request": self.core_ms_per_request(),
            "total_core_ms_per_request": self.total_core_ms_per_request(),
        }


class CpuMeter:
    """CPU time of process trees between `start` and `stop` (or `end`).

    What begins inside the window counts from its beginning. Of what ends inside it, the time that its parent
    collected counts, under the parent's name and "(ended children)"; a parent that ignores its children's end
    (Ray's raylet) hides it. The kernel counts in steps of 10 ms, so a window should last seconds.
    """

    def __init__(
        self,
        roots: Mapping[str, int],
        *,
        read: Reader = read_processes,
        machine: Callable[[], Machine] = read_machine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`roots`: name to pid; the names are shown only where there are several."""
        self._roots, self._read, self._machine, self._clock = dict(roots), read, machine, clock
        self._before: tuple[float, Machine, Snapshot] | None = None
        self._after: tuple[float, Machine, Snapshot] | None = None

    def start(self) -> None:
        """The window begins."""
        self._after = None
        self._before = (self._clock(), self._machine(), self._snapshot({}))

    def end(self) -> None:
        """The window ends, while the number of requests is not known yet; `stop` then only computes."""
        if self._before is None:
            raise RuntimeError("the meter was not started")
        self._after = (self._clock(), self._machine(), self._snapshot(self._before[2]))

    def stop(self, requests: int) -> CpuUse:
        """What was spent; ends the window unless `end` did."""
        if self._after is None:
            self.end()
        assert self._before is not None
        assert self._after is not None
        (began_s, machine, before), (ended_s, machine_after, after) = self._before, self._after
        spent: defaultdict[str, float] = defaultdict(float)
        for root, processes in after.items():
            prefix = f"{root}/" if len(self._roots) > 1 else ""
            for name, spent_s in spent_by_group(before.get(root, []), processes).items():
                spent[prefix + name] += spent_s
        whole_s = (machine_after.total_s - machine.total_s) or 1.0
        return CpuUse(
            seconds=ended_s - began_s,
            requests=requests,
            cpu_s=dict(spent),
            idle_share=(machine_after.idle_s - machine.idle_s) / whole_s,
            steal_share=(machine_after.steal_s - machine.steal_s) / whole_s,
        )

    def _snapshot(self, before: Snapshot) -> Snapshot:
        """Trees as they are now, with what was in them before and is an orphan now."""
        processes = self._read()
        found = {}
        for name, root in self._roots.items():
            known = [
                one.pid for one in before.get(name, []) if one.pid in processes and processes[one.pid].key == one.key
            ]
            found[name] = tree(processes, {root, *known})
        return found


def spent_by_group(before: list[Process], after: list[Process]) -> dict[str, float]:
    """CPU seconds by process name between two snapshots of one tree."""
    earlier = {one.key: one for one in before}
    alive = {one.key for one in after}
    # What dead children had spent before the window is in their parent's sum as well.
    buried: defaultdict[int, float] = defaultdict(float)
    for one in before:
        if one.key not in alive:
            buried[one.parent] += one.cpu_s + one.ended_children_cpu_s
    spent: defaultdict[str, float] = defaultdict(float)
    for one in after:
        old = earlier.get(one.key)
        spent[one.name] += one.cpu_s - (old.cpu_s if old else 0.0)
        collected_s = one.ended_children_cpu_s - (old.ended_children_cpu_s if old else 0.0) - buried[one.pid]
        if collected_s > 1e-9:
            spent[f"{one.name} (ended children)"] += collected_s
    return dict(spent)


def memory_bytes(
    roots: Mapping[str, int],
    *,
    read: Reader = read_processes,
    memory: Callable[[int], int | None] = read_memory_bytes,
) -> dict[str, int]:
    """PSS (RSS where PSS cannot be read) of every process below the roots, bytes; several of a name are name#1, ..."""
    processes = read()
    sizes: dict[str, list[int]] = {}
    for root, pid in roots.items():
        prefix = f"{root}/" if len(roots) > 1 else ""
        for process in tree(processes, {pid}):
            size = memory(process.pid)
            if size:
                sizes.setdefault(prefix + process.name, []).append(size)
    return {
        name if len(of_group) == 1 else f"{name}#{number}": size
        for name, of_group in sizes.items()
        for number, size in enumerate(of_group, 1)
    }
