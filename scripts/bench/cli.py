"""`bench`: how fast, beside whom, and why. Every figure of the README's performance table is printed by it."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scripts.bench import plots, runs
from scripts.bench.ablations import VARIANTS, all_names
from scripts.bench.compare import compare
from scripts.bench.contenders import PEER_SYSTEMS, Ours, fresh_folder
from scripts.bench.floor import Pieces, measure
from scripts.bench.memory import watch_memory
from scripts.bench.overload import Overload, overload
from scripts.bench.peer_environment import ensure_peer_environment
from scripts.bench.tables import Sample, table
from scripts.local_service import ROOT

DEFAULT_PICTURE = ROOT / "engine_build" / "samples" / "cat.jpg"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns an exit status: 1 where a run had targets and missed one."""
    arguments = _parser().parse_args(argv)
    arguments.out = fresh_folder(arguments.out.absolute())
    met = arguments.run(arguments)
    print(f"raw results and plots: {arguments.out}")
    return 1 if met is False else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    closed = _command(commands, "closed", "throughput by number of clients that wait for answers", runs.closed)
    closed.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    closed.add_argument("--per-request", type=int, default=1, help="pictures in one request (default: %(default)s)")
    opened = _command(commands, "open", "latency from the intended send time, at rates (Poisson arrivals)", runs.opened)
    opened.add_argument("--rates", type=float, nargs="+", default=[0.3, 0.6, 0.8], help="as shares of the peak, or /s")
    for one in (closed, opened):
        _serving(one)
        one.add_argument("--seconds", type=float, default=10)
    peers = _command(commands, "peers", "other servers and this one, interleaved, same file, same engine", _peers)
    names = [peer.name for peer in PEER_SYSTEMS]
    peers.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    ablate = _command(commands, "ablate", "this service with one switch changed at a time", _ablate)
    ablate.add_argument(
        "--only", nargs="+", choices=all_names(), metavar="NAME", help=f"some of: {', '.join(all_names())}"
    )
    for one in (peers, ablate):
        one.add_argument("--clients", type=int, nargs="+", default=[32, 64])
        one.add_argument("--rounds", type=int, default=5)
        one.add_argument("--seconds", type=float, default=6)
    _command(commands, "pieces", "the floor: decoding and the engine alone", _pieces)
    memory = _command(commands, "memory", "memory by process over many requests of mixed sizes", _memory)
    _serving(memory)
    memory.add_argument("--requests", type=int, default=50_000)
    memory.add_argument("--clients", type=int, default=32)
    overload = _command(
        commands, "overload", "more load than it can take: goodput, latency, refusals, memory", _overload
    )
    _serving(overload)
    overload.add_argument("--times", type=float, default=3, help="the peak, so many times over (default: %(default)s)")
    overload.add_argument("--seconds", type=float, default=60, help="of the flood (default: %(default)s)")
    overload.add_argument("--objective-ms", type=float, default=1000, help="99 of 100 answers (default: %(default)s)")
    overload.add_argument(
        "--max-wait-ms", type=int, default=600, help="limits.max_wait_ms of the service (default: %(default)s)"
    )
    return parser


def _command(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--engine", default="resnet18/openvino-int8", help="folder in engines/ (default: %(default)s)")
    parser.add_argument("--images", type=Path, default=DEFAULT_PICTURE, help="a file, or a folder of mixed pictures")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "bench" / name, help="default: %(default)s")
    return parser


def _serving(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="local", help="configs/NAME.yaml (default: %(default)s)")
    parser.add_argument("--preprocess", choices=["exact", "fast"], default="fast")


def _peers(arguments: argparse.Namespace) -> None:
    ensure_peer_environment()
    chosen = [peer for peer in PEER_SYSTEMS if arguments.only is None or peer.name in arguments.only]
    ours = runs.ours(arguments.engine, "fast")
    _compare(arguments, [ours, *chosen], ours.name)


def _ablate(arguments: argparse.Namespace) -> None:
    ours = runs.ours(arguments.engine, "fast")
    variants = [make(arguments.engine) for make in VARIANTS]
    chosen = [one for one in variants if arguments.only is None or one.name in arguments.only]
    _compare(arguments, [ours, *chosen], ours.name)


def _compare(arguments: argparse.Namespace, systems: Sequence[Any], baseline: str) -> None:
    pictures = runs.pictures(arguments.images)
    engine_dir = runs.engine_dir(arguments.engine)
    pieces = measure(engine_dir, pictures[0])
    samples = compare(
        systems,
        engine_dir,
        pictures,
        clients=arguments.clients,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        folder=arguments.out,
    )
    text = f"{_heading(arguments, pieces)}\n\n{table(samples, baseline, pieces.floor_per_s())}\n"
    text += "\n".join(["", *(f"- {one.name}: {one.describe}" for one in systems)])
    print(f"\n{text}")
    (arguments.out / "table.md").write_text(text + "\n")
    (arguments.out / "samples.json").write_text(json.dumps([asdict(one) for one in samples], indent=1))
    _plot(samples, arguments.out, arguments.engine)


def _heading(arguments: argparse.Namespace, pieces: Pieces) -> str:
    return (
        f"{arguments.engine}, {arguments.images.name}, {arguments.rounds} rounds of {arguments.seconds:g} s, "
        f"{pieces.cores} cores of {_cpu_name()}; floor {pieces.floor_per_s():.0f}/s "
        f"(decode {pieces.decode_ms['fast']:.2f} + engine {min(pieces.inference_ms.values()):.2f} core-ms)"
    )


def _plot(samples: Sequence[Sample], folder: Path, title: str) -> None:
    most = max(one.clients for one in samples)
    last = {one.system: one for one in samples if one.clients == most}
    bars = [plots.Bar(name, one.core_ms) for name, one in last.items()]
    plots.core_ms_by_process(bars, folder / "core_ms.png", title=f"{title}, {most} clients")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _pieces(arguments: argparse.Namespace) -> None:
    pieces = measure(runs.engine_dir(arguments.engine), runs.pictures(arguments.images)[0])
    print(json.dumps(pieces.as_dict(), indent=2))
    (arguments.out / "pieces.json").write_text(json.dumps(pieces.as_dict(), indent=2))


def _overload(arguments: argparse.Namespace) -> bool:
    system: Ours = runs.ours(arguments.engine, arguments.preprocess, arguments.config)
    limits = {
        "batching": {"latency_objective_ms": arguments.objective_ms},
        "limits": {"max_wait_ms": arguments.max_wait_ms},
    }
    wanted = Overload(arguments.times, arguments.seconds, arguments.objective_ms, arguments.max_wait_ms)
    return overload(
        replace(system, args={**system.args, **limits}),
        runs.engine_dir(arguments.engine),
        runs.pictures(arguments.images),
        wanted,
        arguments.out,
    )


def _memory(arguments: argparse.Namespace) -> None:
    system: Ours = runs.ours(arguments.engine, arguments.preprocess, arguments.config)
    pictures = runs.pictures(arguments.images)
    engine_dir = runs.engine_dir(arguments.engine)
    watch_memory(system, engine_dir, pictures, arguments.requests, arguments.clients, arguments.out)
