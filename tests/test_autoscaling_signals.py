"""What replicas report, read as one load of the stage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.autoscaling.signals import (
    BACKLOG,
    KNEE,
    OFFERED,
    RATE,
    Reports,
    Series,
    StageLoad,
    stage_load,
    together,
)

NOW_S = 1000.0
STALE_AFTER_S = 10.0


def told(
    *counters: Series,
    rates: tuple[float, ...] = (100.0,),
    backlogs: tuple[float, ...] = (),
    knees: tuple[float, ...] = (),
    at_s: float = NOW_S,
) -> Reports:
    """Replicas "0", "1", ... whose gauges were last read at `at_s`."""
    gauges = {RATE: rates, BACKLOG: backlogs, KNEE: knees}
    read: dict[str, dict[str, Series]] = {
        name: {str(replica): [(at_s - 1, -1.0), (at_s, value)] for replica, value in enumerate(values)}
        for name, values in gauges.items()
    }
    return {**read, OFFERED: {str(replica): counter for replica, counter in enumerate(counters)}}


def load_of(reports: Reports) -> StageLoad:
    load = stage_load(reports, NOW_S, STALE_AFTER_S)
    assert load is not None
    return load


def arrivals_per_s(*counters: Series) -> float:
    return load_of(told(*counters, rates=(100.0,) * len(counters))).arrivals_per_s


def ago(*points: tuple[float, float]) -> Series:
    """(seconds ago, value) as a series that ends now."""
    return [(NOW_S - seconds, value) for seconds, value in points]


def growing(*phases: tuple[float, float]) -> Series:
    """(seconds, pictures per second) one after the other, reported every quarter of a second until now."""
    ends_s = [sum(seconds for seconds, _ in phases[: at + 1]) for at in range(len(phases))]
    total_s = ends_s[-1]

    def count(at_s: float) -> float:
        starts_s = [0.0, *ends_s]
        return sum(
            max(0.0, min(at_s, end) - start) * rate
            for start, end, (_, rate) in zip(starts_s[:-1], ends_s, phases, strict=True)
        )

    times_s = [0.25 * step for step in range(int(total_s * 4))] + [total_s]
    return [(NOW_S - total_s + at_s, count(at_s)) for at_s in times_s]


@pytest.mark.parametrize(
    ("counter", "per_s"),
    [
        (growing((10, 100)), 100),
        (growing((9, 100), (1, 140)), 104),  # 36 more than expected in a second: chance, or a lump
        (growing((9, 30), (1, 120)), 120),  # four times as many are not
        (growing((8, 30), (2, 120)), 120),
        (growing((8, 100), (2, 130)), 106),  # nor is a third more for two seconds
        (growing((8, 100), (2, 150)), 150),  # but half as many more are
        (growing((30, 100), (5, 125)), 125),  # and a quarter for five
        (growing((9.5, 2), (0.5, 20)), 2.9),  # a dozen pictures at once
        (growing((5, 120), (5, 30)), 75),  # a fall is believed in as it becomes the past
        (growing((0.8, 50)), (40 - 40**0.5) / 0.8),  # nothing but a short look is there
    ],
)
def test_a_rate_is_that_of_the_past_until_the_present_is_more_than_chance(counter: Series, per_s: float) -> None:
    assert arrivals_per_s(counter) == pytest.approx(per_s, rel=0.01)


def test_the_arrivals_of_all_replicas_are_one_stream() -> None:
    """What could be chance at one of them is not when it happens to all."""
    counter = growing((9, 20), (1, 48))
    assert arrivals_per_s(counter) == pytest.approx(22.8, rel=0.01)
    assert arrivals_per_s(*[counter] * 4) == pytest.approx(4 * 48, rel=0.01)


@pytest.mark.parametrize(
    ("counter", "per_s"),
    [
        (ago((3, 0), (0, 300)), 100),
        (ago((4, 0), (2, 60), (0.5, 60), (0, 460)), 400),  # the last second began in a pause
        (ago((9, 0), (1.25, 80), (0.75, 380), (0, 480)), 250),  # and here in the middle of a rush
    ],
)
def test_between_its_reports_a_counter_is_on_the_line(counter: Series, per_s: float) -> None:
    assert arrivals_per_s(counter) == pytest.approx(per_s)


@given(
    st.floats(1, 1e4),
    st.lists(st.floats(0.05, 3), min_size=1, max_size=30),
    st.floats(0, 1e6),
)
def test_a_steady_stream_has_one_rate_whenever_it_is_reported(
    per_s: float, steps_s: list[float], before: float
) -> None:
    steps_s = [2.0, *steps_s]  # what is shorter is rated lower
    behind_s = [sum(steps_s[at:]) for at in range(len(steps_s) + 1)]
    counter = [(NOW_S - seconds, before + per_s * (behind_s[0] - seconds)) for seconds in behind_s]
    assert arrivals_per_s(counter) == pytest.approx(per_s, rel=1e-3)


def test_a_replica_that_just_started_adds_what_came_since() -> None:
    steady = growing((9, 100))
    young = ago((0.5, 30), (0, 50))
    assert arrivals_per_s(steady, young) == pytest.approx(100 + 20 / 9)


@pytest.mark.parametrize(
    "counters", [(), (ago((0, 70)),), (ago((5, 70), (1, 70), (0, 70)),), ([],)], ids=["none", "one", "still", "empty"]
)
def test_counters_that_do_not_grow_are_no_arrivals(counters: tuple[Series, ...]) -> None:
    assert load_of(told(*counters)).arrivals_per_s == 0


def test_a_load_is_the_sum_of_backlogs_the_mean_of_rates_and_the_largest_knee() -> None:
    load = load_of(told(rates=(80, 120), backlogs=(30, 12), knees=(4, 16)))
    assert (load.backlog_pictures, load.pictures_per_s, load.knee_pictures) == (42, 100, 16)
    assert load.reporting == 2


def test_one_picture_is_efficient_where_no_replica_says_otherwise() -> None:
    assert load_of(told()).knee_pictures == 1
    assert load_of(told()).backlog_pictures == 0


def test_a_replica_that_has_no_rate_yet_has_a_backlog_all_the_same() -> None:
    load = load_of(told(ago((5, 0), (0, 300)), ago((5, 0), (0, 200)), rates=(100, 0), backlogs=(5, 50)))
    assert (load.pictures_per_s, load.reporting) == (100, 1)
    assert (load.backlog_pictures, load.arrivals_per_s) == (55, 100)


@pytest.mark.parametrize(("silent_s", "counted"), [(STALE_AFTER_S, True), (STALE_AFTER_S + 0.1, False)])
def test_a_replica_that_fell_silent_is_left_out(silent_s: float, counted: bool) -> None:
    live = told(ago((5, 0), (0, 300)), rates=(100,), backlogs=(5,), knees=(4,))
    gone = told(ago((5, 0), (0, 2500)), rates=(300,), backlogs=(900,), knees=(64,), at_s=NOW_S - silent_s)
    both = {name: {"live": live[name]["0"], "gone": gone[name]["0"]} for name in live}
    load = load_of(both)
    alone = StageLoad(5, 60, 100, 4, reporting=1)
    assert load == (StageLoad(905, 560, 200, 64, reporting=2) if counted else alone)


@pytest.mark.parametrize(
    "reports",
    [
        {},
        {RATE: {}},
        {RATE: {"0": []}},
        told(rates=(0, 0), backlogs=(9, 9)),
        told(rates=(100,), at_s=NOW_S - STALE_AFTER_S - 1),
        {BACKLOG: {"0": ago((0, 9))}, OFFERED: {"0": ago((1, 0), (0, 9))}, KNEE: {"0": ago((0, 9))}},
        {RATE: {"0": ago((0, float("nan")))}},
    ],
    ids=["empty", "no replica", "no report", "no rate", "stale", "other signals", "not a number"],
)
def test_without_a_rate_there_is_no_load(reports: Reports) -> None:
    assert stage_load(reports, NOW_S, STALE_AFTER_S) is None


def test_models_in_one_replica_are_one_stage() -> None:
    fast = {BACKLOG: 3.0, OFFERED: 299, RATE: 100.0, KNEE: 4}
    slow = {BACKLOG: 2.0, OFFERED: 99, RATE: 10.0, KNEE: 2}
    assert together([fast]) == fast
    both = together([fast, slow])
    assert (both[BACKLOG], both[OFFERED], both[KNEE]) == (5.0, 398, 4)
    # Of 400 pictures 300 take a hundredth of a second and 100 a tenth: 13 s.
    assert both[RATE] == pytest.approx(400 / 13)
