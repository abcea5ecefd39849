"""A load step against the real service on a real local Ray: when replicas are asked for, when they serve, when they go.

The engine is a simulated one, so that two cores can stand for many replicas; everything else is what is served.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from engine_build.simulate import simulate
from scripts.autoscale.live_plot import draw
from scripts.autoscale.observe import Observed, cluster_below, watching
from scripts.bench.load import LoadResult, Target, open_loop
from scripts.local_service import ROOT, load, running

APPLICATION, DECODE, CLASSIFY = "image-serve", "Preprocessor", "Classifier"
BATCH_MS = {1: 20.0, 16: 320.0}
PICTURE = ROOT / "engine_build" / "samples" / "cat.jpg"


@dataclass(frozen=True, slots=True)
class Step:
    """Pictures per second before, during and after the step, and how long each lasts.

    Attributes:
        keep_s: `keep_s` of both stages.
    """

    base_per_s: float
    times: float
    before_s: float
    during_s: float
    after_s: float
    keep_s: float
    max_wait_ms: int

    def rates(self) -> list[tuple[float, float]]:
        """(pictures per second, seconds) of each phase."""
        return [
            (self.base_per_s, self.before_s),
            (self.base_per_s * self.times, self.during_s),
            (self.base_per_s, self.after_s),
        ]


def configuration(step: Step) -> dict[str, Any]:
    """configs/cpu.yaml with the simulated engine, replicas that need little CPU, and the step's times."""
    config = copy.deepcopy(load("cpu"))
    [application] = config["applications"]
    application["args"] |= {
        "engine": {"model": "stand_in", "backend": "simulated"},
        "limits": {"max_wait_ms": step.max_wait_ms},
    }
    for goal in application["autoscaling_policy"]["policy_kwargs"]["stages"].values():
        goal |= {"keep_s": step.keep_s, "max_wait_s": step.max_wait_ms / 1e3, "log_every_s": 0.4}
    config["logging_config"] = {"enable_access_log": False}
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
        deployment["autoscaling_config"]["max_replicas"] = 6
        deployment.pop("logging_config", None)
    return config


@dataclass(frozen=True, slots=True)
class Phase:
    """One rate, when it began (seconds since the epoch), and what became of it."""

    began_s: float
    rate_per_s: float
    result: LoadResult


def live(step: Step, out: Path) -> bool:
    """Runs it, prints the table, saves plot and raw data; returns whether every target was met."""
    simulate("stand_in", BATCH_MS, out / "engines")
    before = {child.pid for child in psutil.Process().children()}
    with running(configuration(step), out) as address:
        [child] = [child for child in psutil.Process().children() if child.pid not in before]
        with watching(cluster_below(child.pid), APPLICATION) as seen:
            phases = [_offer(address, rate, seconds) for rate, seconds in step.rates()]
    lines = verdicts(seen, phases, step)
    print("\n".join(_table(phases, lines)))
    draw(seen, [(phase.began_s, phase.rate_per_s) for phase in phases], out / "live.png")
    raw = {
        "step": asdict(step),
        "phases": [{"began_s": one.began_s, **one.result.as_dict()} for one in phases],
        "samples": [asdict(one) for one in seen.samples],
        "decisions": [asdict(one) for one in seen.decisions],
        "classifiers": [asdict(one) for one in seen.classifiers],
    }
    (out / "live.json").write_text(json.dumps(raw))
    return all(met for _, _, met in lines)


def _offer(address: str, rate_per_s: float, seconds: float) -> Phase:
    target = Target("live", f"{address}/predict", (PICTURE.read_bytes(),))
    began_s = time.time()
    return Phase(began_s, rate_per_s, open_loop(target, rate_per_s=rate_per_s, seconds=seconds, warmup_s=0))


Line = tuple[str, str, bool]
"""What was wanted, what was seen, whether that is it."""


def verdicts(seen: Observed, phases: list[Phase], step: Step) -> list[Line]:
    """The targets of a step, each with what was measured."""
    step_s, quiet_s = phases[1].began_s, phases[2].began_s
    asked_s = next(
        (one.at_s for one in seen.of(CLASSIFY) if one.at_s > step_s and one.fields["desired"] > one.fields["before"]),
        float("inf"),
    )
    started_s = seen.first_running(CLASSIFY, 2, asked_s) or float("inf")
    serves_s = next((one.at_s for one in seen.classifiers if one.at_s > asked_s and one.fields["classifiers"] > 1), 0)
    most = {name: max(one.running.get(name, 0) for one in seen.samples) for name in (DECODE, CLASSIFY)}
    last = seen.samples[-1].running
    errors = [error for one in phases for error in one.result.errors.items()]
    back_s = next((one.at_s for one in reversed(seen.samples) if one.running.get(CLASSIFY, 0) > 1), quiet_s) - quiet_s
    return [
        ("first replica asked for within 2 s of the step", f"{asked_s - step_s:.1f} s", asked_s - step_s <= 2),
        (
            "it answers within its start-up time + 1 s",
            f"start-up {started_s - asked_s:.1f} s, first answer {serves_s - started_s:+.1f} s from then",
            bool(serves_s) and serves_s - started_s <= 1,
        ),
        (
            "only the stage that is the bottleneck grows",
            f"most {DECODE}s {most[DECODE]}, {CLASSIFY}s {most[CLASSIFY]}",
            most[DECODE] == 1 and most[CLASSIFY] > 1,
        ),
        (
            "back to the minimum after the quiet time",
            f"{back_s:.0f} s after the load fell (keep_s {step.keep_s:g})",
            last == {DECODE: 1, CLASSIFY: 1},
        ),
        ("nothing but 200 and announced 429", f"{len(errors)} others {errors or ''}", not errors),
    ]


def _table(phases: list[Phase], lines: list[Line]) -> list[str]:
    rows = ["| offered /s | answered | refused (429) | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for phase in phases:
        result = phase.result
        rows.append(
            f"| {phase.rate_per_s:g} | {result.requests} | {result.shed} | {result.percentile_ms(50):.0f} | "
            f"{result.percentile_ms(99):.0f} |"
        )
    rows += ["", "| wanted | seen | |", "|---|---|---|"]
    return rows + [f"| {want} | {seen} | {'met' if met else 'MISSED'} |" for want, seen, met in lines]
