"""Memory by process while many requests of mixed sizes go through."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from scripts.bench import plots
from scripts.bench.contenders import Ours
from scripts.bench.load import fixed_count
from scripts.bench.meters import memory_bytes

WARM_SHARE = 0.2
"""Of the requests: caches of shapes, arenas and pools fill up first."""
MIB = 2**20


def watch_memory(
    system: Ours, engine_dir: Path, pictures: tuple[bytes, ...], requests: int, clients: int, out: Path
) -> None:
    """Prints per process: after warm-up, at the end, and MiB per 10,000 requests between them."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with system.start(engine_dir, pictures[0], out) as running:

        def sample(done: int) -> None:
            for name, size in memory_bytes({"": running.root_pid}).items():
                points[name].append((float(done), float(size)))

        sample(0)
        result = fixed_count(running.target(pictures), requests=requests, connections=clients, on_progress=sample)
        sample(requests)
    text = growth_table(points, requests)
    text += f"\n\n{result.requests} requests of {len(pictures)} pictures, {result.failed()} failed"
    print(text)
    (out / "table.md").write_text(text + "\n")
    (out / "memory.json").write_text(json.dumps(points))
    lines = [plots.Line(name, values) for name, values in points.items() if values[-1][1] > 50 * MIB]
    plots.memory_over_requests(lines, out / "memory.png", title=f"{requests} requests of mixed sizes")


def growth_table(points: dict[str, list[tuple[float, float]]], requests: int) -> str:
    """Markdown. Points are (requests done, bytes) of each process."""
    rows = ["| process | start MiB | warm MiB | end MiB | growth, MiB per 10,000 requests |", "|---|---|---|---|---|"]
    for name, values in sorted(points.items(), key=lambda item: -item[1][-1][1]):
        warm = next((value for value in values if value[0] >= WARM_SHARE * requests), values[-1])
        last = values[-1]
        growth = (last[1] - warm[1]) / max(last[0] - warm[0], 1) * 10_000 / MIB
        rows.append(
            f"| {name} | {values[0][1] / MIB:.0f} | {warm[1] / MIB:.0f} | {last[1] / MIB:.0f} | {growth:+.1f} |"
        )
    return "\n".join(rows)
