"""The plots are drawn; how they look is for eyes."""

from __future__ import annotations

import math
from pathlib import Path

from scripts.bench import plots


def test_every_plot_is_a_png(tmp_path: Path) -> None:
    lines = [plots.Line("image-serve", [(1, 50.0), (8, 160.0), (64, 170.0)]), plots.Line("other", [(1, 9.0), (8, 9.5)])]
    latency = plots.RateLatency(20, 8.0, 15.0, 40.0), plots.RateLatency(80, 9.0, 30.0, math.nan)
    bars = [
        plots.Bar("image-serve", {"replica": 11.0, "haproxy": 0.4, "gcs": 0.01, "raylet": 0.02}),
        plots.Bar("b", {}),
    ]
    plots.throughput_by_concurrency(lines, tmp_path / "throughput.png", title="Throughput")
    plots.latency_by_rate([plots.RateLine("image-serve", latency)], tmp_path / "latency.png", title="Latency")
    plots.core_ms_by_process(bars, tmp_path / "cores.png", title="Cores")
    plots.memory_over_requests([plots.Line("replica", [(0, 3e8), (1e5, 3.1e8)])], tmp_path / "m.png", title="Memory")
    files = list(tmp_path.iterdir())
    assert len(files) == 4
    assert all(file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000 for file in files)


def test_a_plot_of_nothing_is_drawn_too(tmp_path: Path) -> None:
    plots.throughput_by_concurrency([], tmp_path / "t.png", title="")
    plots.core_ms_by_process([], tmp_path / "c.png", title="")
    assert len(list(tmp_path.iterdir())) == 2
