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
from serve_app.errors import SetupError

ROOT = Path(__file__).parents[2]
REPLAY = "simulate the service under loads on a fake clock, with the real policies"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns an exit status: 1 if it could not be done, with one line on stderr that says why."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except SetupError as error:
        print(f"autoscale: {error}", file=sys.stderr)
        return 1
    return 0


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
    return parser


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
