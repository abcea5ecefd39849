"""From a load to replicas: growing at once, shrinking late, and the reasons given. All of it on a fake clock."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.autoscaling.signals import StageLoad
from serve_app.autoscaling.sizing import Decision, Memory, Replicas, backlogged, decide, demand
from serve_app.settings import ScalingGoal

GOAL = ScalingGoal(
    utilization=0.75, drain_s=5, max_wait_s=5, start_up_s=4, keep_s=60, keep_last_s=300, slack=0.1, stale_after_s=10
)
RATE = 100.0
KNEE = 8.0
FITS = RATE * GOAL.utilization
"""Arrivals per second that one replica is meant for."""


def load(arrivals_per_s: float, backlog: float = 0.0, rate: float = RATE, knee: float = KNEE) -> StageLoad:
    return StageLoad(backlog, arrivals_per_s, rate, knee, reporting=1)


class Stage:
    """Decides once a second; the replicas it asks for are there at the next decision, unless `running` says else."""

    def __init__(self, target: int = 1, bounds: tuple[int, int] = (1, 20), goal: ScalingGoal = GOAL) -> None:
        self.target = target
        self.now_s = 0.0
        self.memory = Memory()
        self._bounds = bounds
        self._goal = goal

    def decide(self, told: StageLoad | None, running: int | None = None, floor: int = 0) -> Decision:
        replicas = Replicas(self.target if running is None else running, self.target, *self._bounds)
        decision = decide(told, replicas, self._goal, self.memory, self.now_s, floor)
        self.now_s += 1
        self.target, self.memory = decision.replicas, decision.memory
        return decision

    def run(self, told: StageLoad | None, seconds: int) -> list[int]:
        return [self.decide(told).replicas for _ in range(seconds)]


@pytest.mark.parametrize(
    ("told", "running", "for_arrivals", "for_backlog"),
    [
        (load(0), 1, 0, 0),
        (load(150), 2, 2, 0),
        (load(150, backlog=2 * KNEE), 2, 2, 0),  # a batch at each of the two is work
        (load(200, backlog=2 * KNEE + 100), 2, 200 / 75, 100 / 500),  # full, so it is there when new ones begin
        (load(50, backlog=KNEE + 300), 1, 50 / 75, 100 / 500),  # a third of it is left in 4 s
        (load(50, backlog=KNEE + 200), 1, 50 / 75, 0),  # gone in 4 s
        (load(150), 1, 2, 200 / 500),  # 50/s more than it does, for 4 s
        (load(2000), 1, 2000 / 75, 500 / 500),  # 5 s of work are held, what is more will have been refused
        (load(2000, backlog=KNEE + 900), 1, 2000 / 75, 900 / 500),  # but what waits does wait
        (load(0, backlog=64 + 32, rate=2, knee=64), 1, 0, (32 - 2 * 4) / 64),  # 5 s are less than an efficient batch
    ],
)
def test_demand(told: StageLoad, running: int, for_arrivals: float, for_backlog: float) -> None:
    assert demand(told, running, GOAL, start_up_s=4) == pytest.approx((for_arrivals, for_backlog))


def test_the_backlog_is_that_after_the_start_up_time() -> None:
    assert [demand(load(150), 1, GOAL, start_up_s)[1] for start_up_s in (0, 2, 8)] == pytest.approx([0, 0.2, 0.8])


@pytest.mark.parametrize(
    ("told", "full"),
    [
        (load(0, backlog=2 * 250), False),  # half of the 5 s at which pictures are refused
        (load(0, backlog=2 * 250 + 1), True),
        (load(0, backlog=2 * 64, rate=1, knee=64), False),  # a batch at each is none, however slow they are
        (None, False),
    ],
)
def test_backlogged_is_more_than_half_of_what_is_refused(told: StageLoad | None, full: bool) -> None:
    assert backlogged(told, 2, GOAL) is full


@pytest.mark.parametrize(
    ("told", "count", "reason"),
    [
        (load(4 * FITS), 4 + 1, "arrivals"),  # one more for the backlog until the four are up
        (load(4 * FITS, backlog=KNEE + 4000), 4 + 8, "backlog"),
        (load(FITS), 1, "enough"),
        (load(FITS * 1.001), 2, "arrivals"),
        (load(50 * FITS), 20, "maximum"),
    ],
)
def test_a_stage_grows_at_once(told: StageLoad, count: int, reason: str) -> None:
    decision = Stage().decide(told)
    assert (decision.replicas, decision.reason) == (count, reason)


def test_a_stage_shrinks_when_it_has_not_needed_them_for_keep_s() -> None:
    stage = Stage(target=5)
    decisions = [stage.decide(load(10)) for _ in range(62)]
    assert [decision.replicas for decision in decisions] == [5] * 60 + [1] * 2
    assert [decision.reason for decision in decisions] == ["keeping"] * 60 + ["arrivals", "enough"]


def test_a_backlog_needs_replicas_as_arrivals_do() -> None:
    waiting = 5 * KNEE + 4 * (5 * RATE - 10) + 2.5 * 500  # after four seconds of five replicas, two and a half are due
    assert Stage(target=5).run(load(10, waiting), 61) == [5] * 60 + [3]


def test_a_stage_shrinks_to_the_most_that_was_needed_lately() -> None:
    stage = Stage(target=5)
    stage.run(load(10), 10)
    stage.run(load(2.5 * FITS), 1)  # three, at second 10
    stage.run(load(1.5 * FITS), 1)  # two, at second 11
    assert stage.run(load(10), 49) == [5] * 48 + [3]  # up to second 60
    assert stage.run(load(10), 12) == [3] * 10 + [2] + [1]


def test_a_spike_within_the_window_keeps_the_replicas() -> None:
    stage = Stage(target=5)
    stage.run(load(10), 50)
    stage.run(load(5 * FITS), 1)
    assert stage.run(load(10), 60) == [5] * 60
    assert stage.decide(load(10)).replicas == 1


def test_growth_starts_the_window_again() -> None:
    stage = Stage(target=2)
    stage.run(load(1.5 * FITS), 200)
    assert stage.decide(load(3 * FITS), running=3).replicas == 3
    assert stage.run(load(10), 60) == [3] * 60
    assert stage.decide(load(10)).replicas == 1


@given(
    st.integers(1, 8),
    st.lists(st.floats(0.955, 1.045), min_size=200, max_size=200),
)
@settings(max_examples=30, deadline=None)
def test_arrivals_that_jitter_around_a_boundary_change_nothing(count: int, jitter: list[float]) -> None:
    stage = Stage(target=count + 1)
    assert {stage.decide(load(count * FITS * share)).replicas for share in jitter} == {count + 1}


@pytest.mark.parametrize(("share", "count"), [(0.92, 3), (0.90, 2)])
def test_replicas_go_if_arrivals_may_grow_by_the_slack_without_them(share: float, count: int) -> None:
    assert Stage(target=3).run(load(2 * FITS * share), 61)[-1] == count


def test_the_last_replica_goes_when_nothing_came_for_keep_last_s() -> None:
    assert Stage(target=3, bounds=(0, 20)).run(load(0), 302) == [3] * 60 + [1] * 240 + [0] * 2


def test_one_request_keeps_the_last_replica() -> None:
    stage = Stage(bounds=(0, 20))
    stage.run(load(0), 299)
    stage.run(load(0.2), 1)
    assert stage.run(load(0), 300) == [1] * 300
    assert stage.decide(load(0)).replicas == 0


def test_the_last_replica_is_kept_as_long_as_the_others_at_least() -> None:
    goal = GOAL.model_copy(update={"keep_last_s": 10.0})
    assert Stage(bounds=(0, 20), goal=goal).run(load(0), 61) == [1] * 60 + [0]


def test_back_from_zero() -> None:
    stage = Stage(target=0, bounds=(0, 20))
    assert stage.run(None, 100) == [0] * 100
    stage.target = 1  # Ray starts one for the first request
    assert [stage.decide(None, running=0).replicas for _ in range(5)] == [1] * 5
    assert stage.decide(load(3 * FITS)).replicas == 4


@pytest.mark.parametrize(
    ("arrivals", "bounds", "floor", "count", "reason"),
    [
        (10, (2, 8), 0, 2, "minimum"),
        (10, (2, 8), 1, 2, "minimum"),
        (10, (2, 8), 2, 2, "minimum"),
        (10, (2, 8), 5, 5, "schedule"),
        (10, (2, 8), 50, 8, "schedule"),
        (10, (0, 8), 1, 1, "enough"),
        (500, (2, 8), 5, 8, "arrivals"),
        (5000, (2, 8), 5, 8, "maximum"),
        (None, (2, 8), 0, 2, "minimum"),
        (None, (2, 8), 5, 5, "schedule"),
        (None, (2, 8), 50, 8, "schedule"),
        (None, (0, 8), 1, 1, "no_data"),
    ],
)
def test_bounds(arrivals: float | None, bounds: tuple[int, int], floor: int, count: int, reason: str) -> None:
    told = None if arrivals is None else load(arrivals)
    decision = Stage(target=1, bounds=bounds).decide(told, floor=floor)
    assert (decision.replicas, decision.reason) == (count, reason)


def test_a_maximum_that_is_lowered_holds_at_once() -> None:
    assert Stage(target=8, bounds=(1, 4)).decide(load(10)).replicas == 4
    assert Stage(target=8, bounds=(1, 4)).decide(None).replicas == 4


def test_no_data_keeps_the_target() -> None:
    stage = Stage(target=7)
    assert stage.run(None, 1000) == [7] * 1000
    assert stage.decide(None).reason == "no_data"
    assert stage.decide(None).needed is None


def test_the_start_up_time_is_measured_and_used() -> None:
    stage = Stage(target=1)
    assert stage.decide(load(5 * FITS), running=1).start_up_s == 4
    for _ in range(9):
        assert stage.decide(load(0), running=2).start_up_s == 4
    assert [stage.decide(load(0), running=stage.target).start_up_s for _ in range(3)] == [10] * 3
    needed = stage.decide(load(220), running=2).needed
    assert needed == pytest.approx(220 / FITS + 20 * 10 / 500)


def test_a_start_for_the_schedule_is_measured_without_data() -> None:
    stage = Stage(target=1)
    stage.decide(None, floor=3)
    stage.now_s = 6
    assert stage.decide(None).start_up_s == 6


def test_a_later_measurement_counts_for_three_tenths() -> None:
    stage = Stage(target=1)
    stage.memory = Memory(start_up_s=10)
    stage.decide(load(2 * FITS))
    stage.now_s += 19
    assert stage.decide(load(0)).start_up_s == pytest.approx(10 + 0.3 * 10)


def test_growth_that_goes_on_is_measured_from_its_begin() -> None:
    stage = Stage(target=1)
    stage.decide(load(2 * FITS), running=1)
    stage.decide(load(4 * FITS), running=1)
    stage.now_s = 6
    assert stage.decide(load(0), running=3).start_up_s == 6


def test_a_start_that_takes_minutes_is_none() -> None:
    stage = Stage(target=1)
    stage.decide(load(2 * FITS))
    stage.now_s = 301
    assert stage.decide(load(0)).start_up_s == 4
    assert stage.memory.asked is None


def test_a_start_that_was_given_up_is_not_measured() -> None:
    stage = Stage(target=1)
    stage.decide(load(2 * FITS), running=1)
    while stage.target > 1:
        stage.decide(load(0), running=1)
    assert stage.decide(load(0), running=1).start_up_s == 4


COUNTS = st.integers(0, 50)
SECONDS = st.floats(0, 1e9)
MEMORIES = st.builds(
    Memory,
    wishes=st.lists(st.tuples(SECONDS, COUNTS), max_size=5).map(tuple),
    since_s=st.none() | SECONDS,
    start_up_s=st.none() | st.floats(0, 300),
    asked=st.none() | st.tuples(SECONDS, COUNTS),
)
LOADS = st.builds(
    StageLoad,
    backlog_pictures=st.floats(0, 1e9),
    arrivals_per_s=st.floats(0, 1e9),
    pictures_per_s=st.floats(1e-3, 1e6),
    knee_pictures=st.floats(0, 1e4),
    reporting=st.integers(1, 50),
)
GOALS = st.builds(
    ScalingGoal,
    utilization=st.floats(0.01, 1),
    drain_s=st.floats(0.01, 1e3),
    max_wait_s=st.floats(0.01, 1e3),
    start_up_s=st.floats(0, 1e3),
    keep_s=st.floats(0, 1e3),
    keep_last_s=st.floats(0, 1e3),
    slack=st.floats(0, 0.99),
)


@given(MEMORIES)
def test_a_memory_survives_json(memory: Memory) -> None:
    assert Memory.of(json.loads(json.dumps(memory.as_dict()))) == memory


def test_no_memory_is_an_empty_one() -> None:
    assert Memory.of({}) == Memory()


@given(st.none() | LOADS, st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), GOALS, MEMORIES, SECONDS, COUNTS)
def test_a_decision_is_within_bounds(
    told: StageLoad | None, have: tuple[int, int, int, int], goal: ScalingGoal, memory: Memory, now_s: float, floor: int
) -> None:
    running, target, least, more = have
    decision = decide(told, Replicas(running, target, least, least + more), goal, memory, now_s, floor)
    assert max(least, min(floor, least + more)) <= decision.replicas <= least + more
    json.dumps(decision.memory.as_dict(), allow_nan=False)


@given(LOADS, st.floats(0, 1e6), st.integers(1, 20), st.integers(1, 20), GOALS)
def test_more_arrivals_never_mean_fewer_replicas(
    told: StageLoad, more_per_s: float, running: int, target: int, goal: ScalingGoal
) -> None:
    more = StageLoad(
        told.backlog_pictures, told.arrivals_per_s + more_per_s, told.pictures_per_s, told.knee_pictures, 1
    )
    counts = [decide(one, Replicas(running, target, 0, 100), goal, Memory(), 0.0).replicas for one in (told, more)]
    assert counts[0] <= counts[1]


@given(st.lists(st.floats(0, 10 * FITS), min_size=1, max_size=100))
@settings(deadline=None)
def test_wishes_that_a_later_one_exceeds_are_forgotten(arrivals: list[float]) -> None:
    stage = Stage(target=9)
    for per_s in arrivals:
        stage.decide(load(per_s))
        assert all(earlier[1] > later[1] for earlier, later in pairwise(stage.memory.wishes))


def counts_under(arrivals_per_s: float, start_s: int, knee: float, maximum: int) -> list[int]:
    """What a stage asks for in ten minutes of constant arrivals, with admission in front of it."""
    stage = Stage(bounds=(1, maximum))
    asked, queue = [1] * (start_s + 1), 0.0
    for _ in range(600):
        running = min(asked[-start_s - 1 :])
        in_work = min(running * knee, arrivals_per_s * 0.1)
        asked.append(stage.decide(load(arrivals_per_s, queue + in_work, knee=knee), running).replicas)
        queue = min(max(0.0, queue + arrivals_per_s - running * RATE), running * RATE * GOAL.max_wait_s)
    return asked


@given(st.floats(0, 30 * FITS), st.integers(0, 30), st.floats(1, 64), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_constant_arrivals_come_to_rest(arrivals_per_s: float, start_s: int, knee: float, maximum: int) -> None:
    counts = counts_under(arrivals_per_s, start_s, knee, maximum)
    assert len(set(counts[-200:])) == 1
    assert counts[-1] >= min(arrivals_per_s / RATE, maximum)
    grew = [later > earlier for earlier, later in pairwise(counts) if later != earlier]
    assert sum(before != after for before, after in pairwise(grew)) <= 1
