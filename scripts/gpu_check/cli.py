"""`gpu_check`: one command for whoever has a GPU: builds, verifies, measures and serves on it, and writes one report.

    .venv/bin/python scripts/gpu_check --model resnet18 --calibration photos/ --images photos/

Goes on where a step fails; Ctrl-C ends it with a report of what was done. `--stand-in` rehearses all of it on a CPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import get_args

from engine_build.download import DEFAULT_WEIGHTS_DIR
from scripts.gpu_check import bench, build, here, report, serve, verify
from scripts.gpu_check.checks import Checks, Data
from scripts.gpu_check.gpus import Peak, find_peak
from scripts.gpu_check.options import Engine, Options
from scripts.local_service import ROOT
from serve_app.errors import GpuMissing
from serve_app.manifest import Precision

VERIFIED: dict[str, Callable[[Options, Engine], Data]] = {
    "answers": verify.answers,
    "second process": verify.second_process,
    "refusals": verify.refusals,
    "health": verify.health,
}
SERVED_FIRST: tuple[Precision, ...] = ("fp16", "int8", "fp32")
"""Which engine is served, of those there are: the one that configs/prod.yaml names, if it can be."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all that ran passed, 1 something failed or there is no GPU, 130 interrupted."""
    options = parsed(argv)
    if not options.stand_in:
        try:
            here.gpu()
        except GpuMissing as error:
            print(f"gpu_check: {error}; to rehearse this script: --stand-in", file=sys.stderr)
            return 1
    checks, began_s, started = Checks(_say), time.monotonic(), datetime.now(UTC)
    try:
        run(options, checks)
    except KeyboardInterrupt:
        checks.interrupted = True
    done = {(outcome.step, outcome.name) for outcome in checks.outcomes}
    about = {
        "rehearsal": options.stand_in,
        "interrupted": checks.interrupted,
        "not_reached": [f"{step}, {name}" for step, name in planned(options) if (step, name) not in done],
        "model": options.model,
        "command": shlex.join(["scripts/gpu_check", *(sys.argv[1:] if argv is None else argv)]),
        "started_utc": started.isoformat(timespec="seconds"),
        "seconds": time.monotonic() - began_s,
    }
    path = report.write(options.out, checks.outcomes, about)
    _say(f"{report.summary(checks.outcomes)}; report: {path}")
    return 130 if checks.interrupted else int(not checks.succeeded())


def planned(options: Options) -> Iterator[tuple[str, str]]:
    """Every step and its name, in order."""
    for name in ("software", "GPU", "GPU memory"):
        yield "machine", name
    for precision in options.precisions:
        yield "prepare", precision
        yield "compile", precision
        for name in VERIFIED:
            yield "verify", f"{precision} {name}"
        yield "bench", precision
    if options.serve:
        yield "serve", "configs/prod.yaml"


def run(options: Options, checks: Checks) -> None:
    """All steps.

    Raises:
        KeyboardInterrupt: during one of them.
    """
    peak = _machine(options, checks)
    engines = [engine for one in options.precisions if (engine := _one_engine(options, checks, one, peak))]
    if not options.serve:
        return
    by_precision = {engine.precision: engine for engine in engines}
    served = next((by_precision[one] for one in SERVED_FIRST if one in by_precision), None)
    if served is None:
        checks.skip("serve", "configs/prod.yaml", "there is no engine to serve")
    else:
        checks.do("serve", "configs/prod.yaml", partial(serve.serve, options, served))


def _machine(options: Options, checks: Checks) -> Peak | None:
    checks.do("machine", "software", here.software)
    if options.stand_in:
        checks.skip("machine", "GPU", "a rehearsal: the CPU stands in for it")
        found: Data | None = None
    else:
        found = checks.do("machine", "GPU", here.gpu)
    checks.do("machine", "GPU memory", partial(here.copy_rate, options.stand_in))
    return find_peak(str(found["gpu"]), int(found["sm_count"])) if found else None


def _one_engine(options: Options, checks: Checks, precision: Precision, peak: Peak | None) -> Engine | None:
    """Everything with one precision but serving; the engine, if it can be served."""
    engines: list[Engine] = []

    def prepare() -> Data:
        engine, data = build.prepare(options, precision)
        engines.append(engine)
        return data

    checks.do("prepare", precision, prepare)
    if not engines:
        _skip_rest(checks, options, precision, "compile", "it was not prepared")
        return None
    [engine] = engines
    compiled = checks.do("compile", precision, partial(build.compile_plan, options, engine))
    if compiled is None and not options.stand_in:
        _skip_rest(checks, options, precision, "verify", "it was not compiled")
        return None
    for name, action in VERIFIED.items():
        checks.do("verify", f"{precision} {name}", partial(action, options, engine))
    checks.do("bench", precision, partial(bench.bench, options, engine, peak))
    return engine


def _skip_rest(checks: Checks, options: Options, precision: Precision, first: str, reason: str) -> None:
    steps = ["compile", "verify", "bench"]
    for step, name in planned(options):
        if step in steps[steps.index(first) :] and name.split()[0] == precision:
            checks.skip(step, name, reason)


def parsed(argv: Sequence[str] | None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="auto", help="of the zoo, or a folder of --engines-dir (default: auto)")
    parser.add_argument("--precisions", type=_precisions, default=get_args(Precision), help="default: fp32,fp16,int8")
    parser.add_argument("--calibration", type=_folder, metavar="DIR", help="photographs for int8, some hundred")
    parser.add_argument("--images", type=_folder, metavar="DIR", help="photographs to compare on; labels.csv: accuracy")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "gpu_check", metavar="DIR", help="of the report")
    parser.add_argument("--engines-dir", type=Path, default=ROOT / "engines", metavar="DIR")
    parser.add_argument("--weights-dir", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR")
    parser.add_argument("--max-batch", type=int, help="of the plans (default: 64, rehearsing 4)")
    parser.add_argument("--opt-batch", type=int, help="the plans are tuned for (default: a quarter of the largest)")
    parser.add_argument("--untrained", action="store_true", help="random weights: for speed, answers mean nothing")
    parser.add_argument("--force", action="store_true", help="compile plans that are there already")
    parser.add_argument("--quick", action="store_true", help="fewer pictures, batch sizes and seconds")
    parser.add_argument("--no-serve", dest="serve", action="store_false", help="leave the service out")
    parser.add_argument("--stand-in", action="store_true", help="rehearse: the CPU in the GPU's place")
    found = vars(parser.parse_args(argv))
    found["max_batch"] = found["max_batch"] or (4 if found["stand_in"] else 64)
    found["opt_batch"] = found["opt_batch"] or max(1, found["max_batch"] // 4)
    if not 1 <= found["opt_batch"] <= found["max_batch"] <= 512:
        parser.error("--opt-batch and --max-batch must be 1 <= opt <= max <= 512")
    return Options(**found)


def _precisions(text: str) -> tuple[Precision, ...]:
    wanted = tuple(one for one in get_args(Precision) if one in text.split(","))
    if unknown := set(text.split(",")) - set(wanted):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of fp32, fp16, int8")
    return wanted


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path


def _say(text: str) -> None:
    print(text, flush=True)
