"""Reads Linux's /proc: parsing of its texts, readable names of processes, process trees. Times in seconds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
_INTERPRETER = re.compile(r"(python|pypy)[\d.]*")
_ACTOR_METHOD = re.compile(r"\.\w+(\(\))?$")
_RAY_FILES = {
    "dashboard/dashboard.py": "dashboard",
    "dashboard/agent.py": "dashboard agent",
    "runtime_env/agent/main.py": "runtime env agent",
    "log_monitor.py": "log monitor",
    "autoscaler/_private/monitor.py": "autoscaler monitor",
    "workers/default_worker.py": "ray worker",
}
_RAY_TITLES = {"DashboardAgent": "dashboard agent", "RuntimeEnvAgent": "runtime env agent", "IDLE": "idle worker"}


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment.

    Attributes:
        started: in clock ticks since boot; with `pid` it tells a process from a later one of the same number.
        cpu_s: of all its threads, user and system.
        ended_children_cpu_s: of the children it has waited for, and theirs.
    """

    pid: int
    parent: int
    started: int
    cpu_s: float
    ended_children_cpu_s: float
    name: str

    @property
    def key(self) -> tuple[int, int]:
        """The same for two snapshots of one process only."""
        return self.pid, self.started


@dataclass(frozen=True, slots=True)
class Machine:
    """Times since boot, summed over all cores."""

    total_s: float
    idle_s: float
    steal_s: float


Reader = Callable[[], dict[int, Process]]


def parse_stat(text: str, name: str) -> Process:
    """/proc/PID/stat; the name in it may contain spaces and parentheses, and is used where `name` is empty."""
    head, _, tail = text.rpartition(")")
    pid, _, comm = head.partition("(")
    fields = tail.split()  # from field 3 of proc(5) on
    user, system, child_user, child_system = (int(fields[index]) for index in (11, 12, 13, 14))
    return Process(
        pid=int(pid),
        parent=int(fields[1]),
        started=int(fields[19]),
        cpu_s=(user + system) / TICKS_PER_S,
        ended_children_cpu_s=(child_user + child_system) / TICKS_PER_S,
        name=name or comm,
    )


def parse_machine(text: str) -> Machine:
    """First line of /proc/stat; waiting for a disk counts as idle, guest time is in user time already."""
    times = [int(one) / TICKS_PER_S for one in text.partition("\n")[0].split()[1:9]]
    return Machine(total_s=sum(times), idle_s=times[3] + times[4], steal_s=times[7])


def parse_kib(text: str, label: str) -> int | None:
    """Bytes of a line like `Pss:  1234 kB`, None where there is none."""
    found = re.search(rf"^{label}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def process_name(cmdline: bytes) -> str:
    """A readable name from /proc/PID/cmdline; processes of one name are one group. Empty for an empty line."""
    words = [word for word in cmdline.decode(errors="replace").split("\0") if word.strip()]
    if not words:
        return ""
    title = words[0].strip()
    if title.startswith("ray::"):
        own = title.removeprefix("ray::").split()[0]
        return _RAY_TITLES.get(own) or _ACTOR_METHOD.sub("", own)
    if title.startswith("ray-dashboard-"):
        return "dashboard"
    program = PurePath(title.split()[0]).name.rstrip(":")
    return _python_name(words[1:]) or program if _INTERPRETER.fullmatch(program) else program


def _python_name(arguments: list[str]) -> str:
    for index, word in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        if word == "-m":
            return following
        if word == "-c":
            return "multiprocessing" if "multiprocessing" in following else "python -c"
        if word in ("-X", "-W"):  # their value is the next word
            return _python_name(arguments[index + 2 :])
        if not word.startswith("-"):
            known = next((name for end, name in _RAY_FILES.items() if word.endswith(end)), None)
            return known or PurePath(word).name
    return ""


def read_processes(proc: Path = PROC) -> dict[int, Process]:
    """All processes that can be read, by pid."""
    found = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with suppress(*_GONE):
                stat = (folder / "stat").read_text()
                found[int(folder.name)] = parse_stat(stat, process_name((folder / "cmdline").read_bytes()))
    return found


def read_machine(proc: Path = PROC) -> Machine:
    """Times of the whole machine since boot."""
    return parse_machine((proc / "stat").read_text())


def read_memory_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Proportional set size, which shares out shared pages; resident size where that is forbidden; None once gone."""
    for file, label in (("smaps_rollup", "Pss"), ("status", "VmRSS")):
        with suppress(OSError):
            if (found := parse_kib((proc / str(pid) / file).read_text(), label)) is not None:
                return found
    return None


def tree(processes: Mapping[int, Process], tops: Collection[int]) -> list[Process]:
    """The processes `tops` and all below them, by pid."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    left = [pid for pid in tops if pid in processes]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return [processes[pid] for pid in sorted(found)]
