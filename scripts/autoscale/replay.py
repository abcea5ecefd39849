"""Every chosen policy under every chosen load: the same arrivals for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.autoscale.contenders import CONTENDERS, ray_grid
from scripts.autoscale.profile import Profile
from scripts.autoscale.simulate import STEP_S, Outcome, Simulation
from scripts.autoscale.traces import SHAPES, Trace, arrivals, generated, read_csv
from serve_app.errors import ConfigError

RAY_BEST = "ray-best"
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One load and what became of it under each policy."""

    trace: Trace
    outcomes: list[Outcome]

    def of(self, policy: str) -> Outcome | None:
        return next((one for one in self.outcomes if one.policy == policy), None)


def trace_of(name: str, profile: Profile) -> Trace:
    """A generated trace, or the recorded one in a file NAME.csv.

    Raises:
        ConfigError: it is neither, or the file is wrong.
    """
    if name.endswith(".csv"):
        return read_csv(Path(name))
    if name not in SHAPES:
        raise ConfigError(f"no trace {name!r}; there are {', '.join(SHAPES)}, and files whose names end in .csv")
    return generated(name, profile.bottleneck_per_s)


def compare(
    trace: Trace, profile: Profile, policies: Sequence[str], seed: int, *, search: bool, tell: Tell
) -> Comparison:
    """Runs `policies`, names in `CONTENDERS`; with `search` also the best setting of Ray's default policy."""
    arriving = arrivals(trace, seed, STEP_S)
    outcomes = []
    for name in policies:
        tell(f"{trace.name}: {name}")
        outcomes.append(Simulation(arriving, profile, CONTENDERS[name](profile), seed).run())
    comparison = Comparison(trace, outcomes)
    if search:
        tell(f"{trace.name}: {RAY_BEST}")
        ours = comparison.of("ours") or Simulation(arriving, profile, CONTENDERS["ours"](profile), seed).run()
        tried = [Simulation(arriving, profile, contender, seed).run() for contender in ray_grid(profile)]
        outcomes.append(best_within(tried, ours.total_replica_s))
    return comparison


def best_within(tried: Sequence[Outcome], replica_s: float) -> Outcome:
    """The fewest late or shed pictures among those that use no more than `replica_s`; if none does, the cheapest."""
    affordable = [one for one in tried if one.total_replica_s <= replica_s]
    if not affordable:
        return min(tried, key=lambda one: one.total_replica_s)
    return min(affordable, key=lambda one: (one.missed, one.total_replica_s))
