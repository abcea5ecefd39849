"""`autoscale`: what the autoscaling policies do with a load."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.autoscale import plots
from scripts.autoscale.contenders import CONTENDERS
from scripts.autoscale.profile import load_profile
from scripts.autoscale.replay import RAY_BEST, Comparison, compare, trace_of
from scripts.autoscale.tables import comparison_table, ratio_table
from scripts.autoscale.traces import SHAPES
from scripts.bench.contenders import fresh_folder
from serve_app.errors import SetupError

ROOT = Path(__file__).parents[2]
REPLAY = "simulate the service under loads on a fake clock, with the real policies"
LIVE = "a load step against the real service on a real local Ray, with an engine that only takes time"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns an exit status: 1 if it could not be done (one line on stderr says why), or if a live
    run missed a target."""
    arguments = _parser().parse_args(argv)
    try:
        met = arguments.run(arguments)
    except SetupError as error:
        print(f"autoscale: {error}", file=sys.stderr)
        return 1
    return 1 if met is False else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="autoscale", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    replay = commands.add_parser("replay", help=REPLAY, description=REPLAY)
    replay.set_defaults(run=_replay)
    traces = f"any of {', '.join(SHAPES)}, or FILE.csv (seconds,pictures_per_s); default: all of the former"
    replay.add_argument("traces", nargs="*", default=list(SHAPES), metavar="TRACE", help=traces)
    replay.add_argument("--profile", default="cpu", help="profiles/NAME.yaml, or a path (default: %(default)s)")
    replay.add_argument("--seed", type=int, default=1, help="of arrivals and start-ups (default: %(default)s)")
    replay.add_argument("--policies", nargs="+", choices=list(CONTENDERS), default=["ours", "ray"])
    replay.add_argument("--search", action="store_true", help=f"{RAY_BEST} too: a grid of settings per trace; slow")
    replay.add_argument("--out", type=Path, default=ROOT / "logs" / "autoscale", help="default: %(default)s")
    _add_live(commands)
    return parser


def _add_live(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    live = commands.add_parser("live", help=LIVE, description=LIVE)
    live.set_defaults(run=_live)
    live.add_argument("--rate", type=float, default=30, help="pictures/s before the step (default: %(default)s)")
    live.add_argument("--times", type=float, default=4, help="the step (default: %(default)s)")
    live.add_argument("--before", type=float, default=15, help="seconds before the step (default: %(default)s)")
    live.add_argument("--during", type=float, default=45, help="seconds of it (default: %(default)s)")
    live.add_argument("--after", type=float, default=60, help="seconds after it (default: %(default)s)")
    live.add_argument("--keep-s", type=float, default=20, help="keep_s of the policy (default: %(default)s)")
    live.add_argument("--max-wait-ms", type=int, default=1000, help="limits.max_wait_ms (default: %(default)s)")
    live.add_argument("--out", type=Path, default=ROOT / "logs" / "autoscale-live", help="default: %(default)s")


def _live(arguments: argparse.Namespace) -> bool:
    from scripts.autoscale.live import Step, live  # here: it needs Ray's processes and the load generator

    step = Step(
        arguments.rate,
        arguments.times,
        before_s=arguments.before,
        during_s=arguments.during,
        after_s=arguments.after,
        keep_s=arguments.keep_s,
        max_wait_ms=arguments.max_wait_ms,
    )
    met = live(step, fresh_folder(arguments.out.absolute()))
    print(f"\nraw results and plot: {arguments.out}")
    return met


def _replay(arguments: argparse.Namespace) -> None:
    profile = load_profile(arguments.profile)
    traces = [trace_of(name, profile) for name in arguments.traces]  # all of them are checked before one is run
    arguments.out.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for trace in traces:
        comparison = compare(
            trace, profile, arguments.policies, arguments.seed, search=arguments.search, tell=_progress
        )
        comparisons.append(comparison)
        print(f"{comparison_table(comparison)}\n", flush=True)
        _save(comparison, arguments.out)
    print("\n\n".join(_ratios(comparisons)))
    print(f"\nraw results and plots: {arguments.out}")


def _ratios(comparisons: Sequence[Comparison]) -> list[str]:
    """Ours against Ray's, where both ran."""
    tables = []
    for theirs in ("ray", RAY_BEST):
        if any(comparison.of("ours") and comparison.of(theirs) for comparison in comparisons):
            tables.append(ratio_table(comparisons, "ours", theirs))
    return tables


def _save(comparison: Comparison, folder: Path) -> None:
    name = comparison.trace.name
    plots.draw(comparison, folder / f"{name}.png")
    raw = {"trace": asdict(comparison.trace), "outcomes": [asdict(one) for one in comparison.outcomes]}
    (folder / f"{name}.json").write_text(json.dumps(raw))


def _progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr)
