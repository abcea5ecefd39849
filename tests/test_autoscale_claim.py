"""What the README says of the policy against Ray's default one, for every trace it names."""

from __future__ import annotations

import pytest

from scripts.autoscale.profile import load_profile
from scripts.autoscale.replay import compare, trace_of
from scripts.autoscale.traces import SHAPES


@pytest.mark.parametrize("name", SHAPES)
def test_half_of_the_late_and_refused_pictures_at_no_more_replica_seconds(name: str) -> None:
    profile = load_profile("cpu")
    trace = trace_of(name, profile)
    comparison = compare(trace, profile, ["ours", "ray"], seed=1, search=False, tell=lambda text: None)
    ours, rays = comparison.of("ours"), comparison.of("ray")
    assert ours is not None
    assert rays is not None
    assert ours.missed <= rays.missed / 2
    assert ours.total_replica_s <= rays.total_replica_s
    assert all(count <= trace.load_changes() for count in ours.reversals.values())
