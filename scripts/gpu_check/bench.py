"""How fast an engine is alone, by batch size, and how near that is to what its GPU could do."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.gpu_check.gpus import Peak
from scripts.gpu_check.options import Engine, Options
from scripts.gpu_check.roofline import Floor, Network, floor, read_network
from serve_app.latency import table_sizes
from serve_app.runtime import GpuOptions
from serve_app.runtime.gpu.runtime import GpuRuntime
from serve_app.types import GpuTimes

CALLERS = 2


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: runs of each batch size, and seconds of each throughput."""

    runs: int
    seconds: float
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One batch size.

    Attributes:
        ran_as: the batch size that the engine pads it to.
        copy_in_ms, run_ms, copy_out_ms: medians by the GPU's clock, alone on the GPU.
        call_ms: median from the call to the answer, by this machine's clock.
        graph_run_ms: `run_ms` as one CUDA graph; None where that was not measured.
        one_per_s, two_per_s, graphs_per_s: pictures per second of two callers, with one batch on the GPU at a time,
            with two that overlap, and with two and CUDA graphs.
        copy_in_gb_s: of the pictures, by `copy_in_ms`.
        floor_ms, bound: see `roofline.Floor`; None where the GPU's peak is not known.
        share: of the floor in the faster of the two runs, 0..1.
    """

    batch: int
    ran_as: int
    copy_in_ms: float
    run_ms: float
    copy_out_ms: float
    call_ms: float
    graph_run_ms: float | None
    one_per_s: float
    two_per_s: float
    graphs_per_s: float | None
    copy_in_gb_s: float
    floor_ms: float | None
    layered_ms: float | None
    bound: str | None
    share: float | None


@dataclass(slots=True)
class _Measured:
    """One way to run an engine: medians by batch size, and pictures per second."""

    times: dict[int, GpuTimes]
    call_ms: dict[int, float]
    per_s: dict[int, float]
    start_s: float


def effort(options: Options) -> Effort:
    """As much as `options.quick` allows."""
    sizes = table_sizes(options.max_batch)
    if options.quick:
        chosen = sorted({1, options.opt_batch, options.max_batch})
        return Effort(runs=10, seconds=0.3, sizes=tuple(chosen))
    return Effort(runs=50, seconds=2.0, sizes=tuple(sizes))


def bench(options: Options, engine: Engine, peak: Peak | None) -> Mapping[str, Any]:
    """Measures the engine three times: with one batch on the GPU at a time, with two, and with two and CUDA graphs."""
    network = read_network(engine.folder / engine.manifest.artifact)
    wanted = effort(options)
    ways = {"one": (1, False), "two": (2, False), "graphs": (2, True)}
    found: dict[str, _Measured] = {}
    with tqdm(total=len(ways) * len(wanted.sizes), desc="      measuring", leave=False, disable=None) as bar:
        for name, (slots, graphs) in ways.items():
            found[name] = _measure(options, engine, wanted, slots, graphs, bar)
    rows = [_row(found, network, peak, size) for size in wanted.sizes]
    return {
        "rows": [asdict(row) for row in rows],
        "best_per_s": max(max(row.one_per_s, row.two_per_s, row.graphs_per_s or 0) for row in rows),
        "start_s": {name: measured.start_s for name, measured in found.items()},
        "runs": wanted.runs,
        "seconds": wanted.seconds,
        "macs": network.macs,
        "peak": asdict(peak) if peak else None,
    }


def _measure(options: Options, engine: Engine, wanted: Effort, slots: int, graphs: bool, bar: tqdm[Any]) -> _Measured:
    seen: list[GpuTimes] = []
    gpu = GpuOptions(options.max_batch, options.device, slots=slots, cuda_graphs=graphs, observe=seen.append)
    began_s = time.monotonic()
    runtime = engine.open(gpu)
    found = _Measured({}, {}, {}, round(time.monotonic() - began_s, 2))
    with closing(runtime):
        _fill(runtime)
        for size in wanted.sizes:
            found.call_ms[size] = _call_ms(runtime, size, wanted.runs, seen)
            found.times[size] = middle(seen)
            found.per_s[size] = _per_s(runtime, size, wanted.seconds)
            bar.update()
    return found


def _fill(runtime: GpuRuntime) -> None:
    """In a function of its own: a name that still holds a pinned buffer when the engine is closed leaks it."""
    random = np.random.default_rng(0)
    for buffer in runtime.buffers:
        buffer[:] = random.integers(0, 256, buffer.shape, dtype=np.uint8)


def _call_ms(runtime: GpuRuntime, size: int, runs: int, seen: list[GpuTimes]) -> float:
    """Median of a lone call; what the GPU says of each is in `seen`."""
    pictures, walls = runtime.buffers[0][:size], []
    runtime.infer(pictures)
    seen.clear()
    for _ in range(runs):
        began_s = time.perf_counter()
        runtime.infer(pictures)
        walls.append((time.perf_counter() - began_s) * 1e3)
    return median(walls)


def middle(seen: Sequence[GpuTimes]) -> GpuTimes:
    """The median of each part."""
    parts = ("copy_in_ms", "run_ms", "copy_out_ms")
    return GpuTimes(
        seen[0].pictures, seen[0].batch_size, *(median(getattr(one, part) for one in seen) for part in parts)
    )


def _per_s(runtime: GpuRuntime, size: int, seconds: float) -> float:
    """Pictures per second of two callers that never pause."""
    until_s = time.perf_counter() + seconds
    done, errors = [0] * CALLERS, list[Exception]()

    def call(caller: int) -> None:
        pictures = runtime.buffers[caller % len(runtime.buffers)][:size]
        try:
            while time.perf_counter() < until_s:
                runtime.infer(pictures)
                done[caller] += size
        except Exception as error:
            errors.append(error)

    began_s = time.perf_counter()
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(done) / (time.perf_counter() - began_s)


def _row(found: Mapping[str, _Measured], network: Network, peak: Peak | None, size: int) -> Row:
    alone, graphs = found["two"].times[size], found.get("graphs")
    least: Floor | None = floor(network, peak, size) if peak else None
    graph_run_ms = graphs.times[size].run_ms if graphs else None
    fastest_ms = min(alone.run_ms, graph_run_ms or alone.run_ms)
    return Row(
        batch=size,
        ran_as=alone.batch_size,
        copy_in_ms=alone.copy_in_ms,
        run_ms=alone.run_ms,
        copy_out_ms=alone.copy_out_ms,
        call_ms=found["two"].call_ms[size],
        graph_run_ms=graph_run_ms,
        one_per_s=found["one"].per_s[size],
        two_per_s=found["two"].per_s[size],
        graphs_per_s=graphs.per_s[size] if graphs else None,
        copy_in_gb_s=size * network.picture_bytes / max(alone.copy_in_ms, 1e-6) / 1e6,
        floor_ms=least.floor_ms if least else None,
        layered_ms=least.layered_ms if least else None,
        bound=least.bound if least else None,
        share=least.floor_ms / max(fastest_ms, 1e-6) if least else None,
    )
