"""CPU and memory by process, from literal texts of /proc and from this very process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from scripts.bench.meters import CpuMeter, memory_bytes
from scripts.bench.processes import (
    TICKS_PER_S,
    Machine,
    Process,
    parse_kib,
    parse_machine,
    parse_stat,
    process_name,
    tree,
)

STAT = "4242 (ray::S (x) y) S 17 4242 4242 0 -1 4194560 9000 70 5 0 1000 250 30 20 20 0 12 0 987654 2000000 5000 184467"


def test_stat_is_read_behind_the_last_parenthesis() -> None:
    found = parse_stat(STAT, "")
    assert (found.pid, found.parent, found.started, found.name) == (4242, 17, 987654, "ray::S (x) y")
    assert found.cpu_s == pytest.approx(1250 / TICKS_PER_S)
    assert found.ended_children_cpu_s == pytest.approx(50 / TICKS_PER_S)
    assert parse_stat(STAT, "named").name == "named"


def test_the_machine_counts_disk_waits_as_idle_and_guests_once() -> None:
    found = parse_machine("cpu  100 1 20 300 40 5 6 7 50 50\ncpu0 1 2 3\n")
    assert found.total_s == pytest.approx(479 / TICKS_PER_S)
    assert found.idle_s == pytest.approx(340 / TICKS_PER_S)
    assert found.steal_s == pytest.approx(7 / TICKS_PER_S)


def test_sizes_are_bytes() -> None:
    text = "Rss:   2000 kB\nPss:                1234 kB\nPss_Dirty: 1 kB\n"
    assert parse_kib(text, "Pss") == 1234 * 1024
    assert parse_kib(text, "VmRSS") is None


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["ray::ServeReplica:image-serve:Preprocessor"], "ServeReplica:image-serve:Preprocessor"),
        (["ray::ServeReplica:app:Classifier.handle_request", "", ""], "ServeReplica:app:Classifier"),
        (["ray::HAProxyManager.update()"], "HAProxyManager"),
        (["ray::IDLE"], "idle worker"),
        (["ray::IDLE_SpillWorker"], "IDLE_SpillWorker"),
        (["ray::DashboardAgent"], "dashboard agent"),
        (["ray-dashboard-JobHead-0 (/usr/bin/python -u dashboard.py)"], "dashboard"),
        (["/v/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp"], "gcs_server"),
        (["/v/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=x"], "raylet"),
        (["/usr/sbin/haproxy", "-f", "haproxy.cfg"], "haproxy"),
        (["nginx: worker process"], "nginx"),
        (["/v/bin/python", "-u", "/v/ray/_private/log_monitor.py", "--x"], "log monitor"),
        (["/v/bin/python3.11", "/v/ray/dashboard/dashboard.py"], "dashboard"),
        (["/v/bin/python3", "/v/bin/image-serve", "start", "local.yaml"], "image-serve"),
        (["python", "-W", "error", "-m", "scripts.bench.load_worker"], "scripts.bench.load_worker"),
        (["python", "-c", "from multiprocessing.spawn import spawn_main"], "multiprocessing"),
        (["python", "-c", "print()"], "python -c"),
        (["python"], "python"),
        ([], ""),
    ],
)
def test_names_are_readable(words: list[str], name: str) -> None:
    assert process_name("\0".join(words).encode() + b"\0") == name


def process(pid: int, parent: int, name: str, cpu_s: float = 0.0, ended_s: float = 0.0, started: int = 1) -> Process:
    return Process(pid, parent, started, cpu_s, ended_s, name)


def table(*processes: Process) -> dict[int, Process]:
    return {one.pid: one for one in processes}


BEFORE = table(
    process(1, 0, "init"),
    process(10, 1, "server", 5.0, 1.0),
    process(11, 10, "worker", 3.0),
    process(12, 10, "worker", 4.0),
    process(13, 11, "helper", 1.0),
    process(20, 1, "stranger", 7.0),
)


def measured(after: dict[int, Process], roots: dict[str, int], requests: int = 100) -> dict[str, float]:
    tables, clock = iter([BEFORE, after]), iter([50.0, 60.0])
    machines = iter([Machine(100, 40, 1), Machine(120, 45, 2)])
    meter = CpuMeter(roots, read=lambda: next(tables), machine=lambda: next(machines), clock=lambda: next(clock))
    meter.start()
    meter.end()
    use = meter.stop(requests)
    assert [use.seconds, use.idle_share, use.steal_share] == pytest.approx([10, 0.25, 0.05])
    json.dumps(use.as_dict())
    assert use.total_core_ms_per_request() == pytest.approx(sum(use.core_ms_per_request().values()))
    return {name: round(spent_ms, 6) for name, spent_ms in use.core_ms_per_request().items() if spent_ms}


def changed(**cpu_s: float) -> dict[int, Process]:
    """BEFORE with other CPU times, p11=4.5 for pid 11."""
    return {pid: replace(one, cpu_s=cpu_s.get(f"p{pid}", one.cpu_s)) for pid, one in BEFORE.items()}


def test_processes_of_one_name_are_one_group_and_strangers_none() -> None:
    assert measured(changed(p10=5.5, p11=4.0, p12=4.25, p20=9.0), {"ours": 10}) == {"worker": 12.5, "server": 5.0}


def test_several_roots_are_told_apart() -> None:
    assert measured(changed(p11=4.0, p20=9.0), {"a": 10, "b": 20}) == {"b/stranger": 20.0, "a/worker": 10.0}


def test_a_process_that_begins_counts_from_its_beginning() -> None:
    assert measured(changed() | table(process(30, 12, "new", 0.5)), {"ours": 10}) == {"new": 5.0}


def test_a_pid_that_is_used_again_is_another_process() -> None:
    after = changed() | table(process(13, 11, "helper", 0.2, started=9))
    assert measured(after, {"ours": 10}) == {"helper": 2.0}


def test_what_ended_counts_where_its_parent_collected_it() -> None:
    after = changed()
    del after[12]
    after[10] = replace(after[10], ended_children_cpu_s=1.0 + 4.0 + 0.6)  # 4.0 of it from before the window
    assert measured(after, {"ours": 10}) == {"server (ended children)": 6.0}


def test_orphans_stay_in_the_tree() -> None:
    after = changed(p13=1.5)
    del after[11]
    after[13] = replace(after[13], parent=1)
    assert measured(after, {"ours": 10}) == {"helper": 5.0}


def test_no_requests_no_quotient() -> None:
    assert measured(changed(p10=9.0), {"ours": 10}, requests=0) == {}


def test_a_meter_must_be_started() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        CpuMeter({}).stop(1)


def test_memory_lists_the_processes_of_a_group() -> None:
    sizes = {10: 100, 11: 20, 12: 30, 13: None}
    found = memory_bytes({"ours": 10}, read=lambda: BEFORE, memory=lambda pid: sizes[pid])
    assert found == {"server": 100, "worker#1": 20, "worker#2": 30}


def test_a_tree_ends_where_nothing_is_left() -> None:
    assert [one.pid for one in tree(BEFORE, {11, 12})] == [11, 12, 13]
    assert tree(BEFORE, {99}) == []


def test_the_real_proc() -> None:
    """A child that runs on, and one that ends inside the window."""
    burn = "import time, sys\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
    meter = CpuMeter({"test": os.getpid()})
    meter.start()
    subprocess.run([sys.executable, "-c", burn], check=True)
    child = subprocess.Popen([sys.executable, "-c", burn + "print(flush=True)\nsys.stdin.read()"], stdin=-1, stdout=-1)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        use = meter.stop(10)
        sizes = memory_bytes({"test": os.getpid()})
        child.communicate()
    assert use.cpu_s["python -c"] >= 0.15
    assert sum(spent_s for name, spent_s in use.cpu_s.items() if name.endswith("(ended children)")) >= 0.15
    assert 0 <= use.idle_share <= 1
    assert min(sizes.values()) > 1_000_000
    assert len(sizes) >= 2
