"""This service alone: throughput by clients, latency by rate."""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager
from pathlib import Path

from scripts.bench import plots
from scripts.bench.ablations import engine_args
from scripts.bench.compare import measure_closed
from scripts.bench.contenders import Ours, Running
from scripts.bench.floor import measure
from scripts.bench.load import Target, closed_loop, multipart_body, open_loop
from scripts.local_service import ROOT
from scripts.pictures import picture_files


def ours(engine: str, preprocess: str, config: str = "local") -> Ours:
    """This service with `engine`, else as its configuration says."""
    return Ours("image-serve", f"configs/{config}.yaml, {preprocess}", config, engine_args(engine, preprocess))


def pictures(path: Path) -> tuple[bytes, ...]:
    """The file, or all pictures of the folder."""
    return tuple(file.read_bytes() for file in (picture_files(path) if path.is_dir() else [path]))


def engine_dir(engine: str) -> Path:
    """The folder of MODEL/BACKEND-PRECISION."""
    return ROOT / "engines" / engine


def _started(arguments: argparse.Namespace, files: tuple[bytes, ...]) -> AbstractContextManager[Running]:
    system = ours(arguments.engine, arguments.preprocess, arguments.config)
    return system.start(engine_dir(arguments.engine), files[0], arguments.out)


def closed(arguments: argparse.Namespace) -> None:
    """Prints pictures/s, latency, core-ms and the share of the floor by number of clients."""
    files = pictures(arguments.images)
    floor = measure(engine_dir(arguments.engine), files[0])
    rates, results = [], []
    print(
        "| clients | pictures/s | of the floor | p50 ms | p99 ms | core-ms/picture | idle | failed |\n"
        + "|---" * 8
        + "|"
    )
    with _started(arguments, files) as running:
        target = running.target(files) if arguments.per_request == 1 else _many(running, files, arguments.per_request)
        for clients in arguments.clients:
            result, cpu = measure_closed(target, running.root_pid, clients, arguments.seconds)
            rates.append((float(clients), result.pictures_per_s()))
            results.append({**result.as_dict(), "cpu": cpu.as_dict()})
            core_ms = cpu.total_core_ms_per_request() / arguments.per_request
            share = result.pictures_per_s() / floor.floor_per_s(arguments.preprocess)
            print(
                f"| {clients} | {result.pictures_per_s():.0f} | {share:.0%} | {result.percentile_ms(50):.0f} | "
                f"{result.percentile_ms(99):.0f} | {core_ms:.2f} | {cpu.idle_share:.0%} | {result.failed()} |",
                flush=True,
            )
    _keep(arguments.out, {"pieces": floor.as_dict(), "results": results})
    line = plots.Line(f"{arguments.config}, {arguments.preprocess}", rates)
    plots.throughput_by_concurrency([line], arguments.out / "throughput.png", title=arguments.engine)


def _many(running: Running, files: tuple[bytes, ...], count: int) -> Target:
    bodies = [multipart_body([files[(at + shift) % len(files)] for at in range(count)]) for shift in range(len(files))]
    kind = bodies[0][1]
    assert all(content_type == kind for _, content_type in bodies)
    return Target(running.name, running.url, tuple(body for body, _ in bodies), kind, pictures_per_request=count)


def opened(arguments: argparse.Namespace) -> None:
    """Finds the peak, then prints latency percentiles at shares of it; rates above 1 are pictures per second."""
    files = pictures(arguments.images)
    points, results = [], []
    print("| offered /s | answered /s | p50 ms | p90 ms | p99 ms | p99.9 ms | max ms | failed | generator late ms |")
    print("|---" * 9 + "|")
    with _started(arguments, files) as running:
        target = running.target(files)
        peak_per_s = closed_loop(target, connections=64, seconds=arguments.seconds).requests_per_s()
        print(f"| peak, 64 clients | {peak_per_s:.0f} |||||||")
        for rate in arguments.rates:
            per_s = rate * peak_per_s if rate <= 1 else rate
            result = open_loop(target, rate_per_s=per_s, seconds=arguments.seconds)
            results.append(result.as_dict())
            p50, p90, p99, p999, most = (result.percentile_ms(p) for p in (50, 90, 99, 99.9, 100))
            points.append(plots.RateLatency(per_s, p50, p99, p999))
            print(
                f"| {per_s:.0f} ({per_s / peak_per_s:.0%}) | {result.requests_per_s():.0f} | {p50:.0f} | {p90:.0f} | "
                f"{p99:.0f} | {p999:.0f} | {most:.0f} | {result.failed()} | {result.max_lag_ms:.0f} |",
                flush=True,
            )
    _keep(arguments.out, {"peak_per_s": peak_per_s, "results": results})
    line = plots.RateLine(f"{arguments.config}, {arguments.preprocess}", points)
    plots.latency_by_rate([line], arguments.out / "latency.png", title=arguments.engine)


def _keep(folder: Path, document: object) -> None:
    (folder / "results.json").write_text(json.dumps(document, indent=1))
