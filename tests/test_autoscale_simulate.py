"""The simulated service, and the genuine policies on its clock."""

from __future__ import annotations

import time

import pytest
from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID

from scripts.autoscale import contenders
from scripts.autoscale.contenders import CLASSIFY, CONTENDERS, DECODE
from scripts.autoscale.controller import PolicyFailed, on_clock
from scripts.autoscale.profile import Profile, load_profile
from scripts.autoscale.reports import StageReports
from scripts.autoscale.simulate import STEP_S, Outcome, Service, Simulation
from scripts.autoscale.stage import Line, Replicas, Stage
from scripts.autoscale.traces import Trace, arrivals
from serve_app.autoscaling.policies import StagePolicy, reports
from serve_app.autoscaling.signals import OFFERED, stage_load

CPU = load_profile("cpu")
JUMP = Trace("jump", ((0, 100), (30, 100), (30, 450), (70, 450), (70, 20), (150, 20)))


def run(policy: str, trace: Trace = JUMP, profile: Profile = CPU, seed: int = 1) -> Outcome:
    return Simulation(arrivals(trace, seed, STEP_S), profile, CONTENDERS[policy](profile), seed).run()


def line(waiting: int) -> Line:
    made = Line(CPU.classify)
    made.put(0.0, waiting)
    return made


def test_a_replica_serves_only_after_its_start_up() -> None:
    replicas = Replicas(1, start_up_s=6.0, seed=1)
    replicas.aim(4, now_s=10.0)
    assert (replicas.target, len(replicas.running)) == (4, 1)
    replicas.advance(10 + 6 * 0.85 - 0.01)
    assert len(replicas.running) == 1
    replicas.advance(10 + 6 * 1.15)
    assert len(replicas.running) == replicas.target == 4
    assert len({replica.since_s for replica in replicas.running[1:]}) == 3  # each start takes its own time


def test_those_that_start_are_taken_away_first() -> None:
    replicas = Replicas(3, start_up_s=6.0, seed=1)
    replicas.aim(5, now_s=0.0)
    replicas.aim(3, now_s=1.0)
    assert (len(replicas.starting_s), len(replicas.running)) == (0, 3)
    replicas.aim(1, now_s=1.0)
    assert [replica.number for replica in replicas.running] == [0]


def test_shrinking_loses_nothing() -> None:
    stage = Stage(CLASSIFY, CPU.classify, replicas=4, seed=1)
    stage.line.put(0.0, 200)
    done = 0
    for number in range(200):
        if number == 5:
            stage.replicas.aim(1, number * STEP_S)
        stage.line.serve(number * STEP_S, len(stage.replicas.running), STEP_S)
        done += sum(count for *_, count in stage.line.finished((number + 1) * STEP_S))
    assert done == 200
    assert stage.line.pictures == 0


def test_a_line_is_as_fast_as_its_replicas_and_its_batches() -> None:
    crowded = line(10_000)
    for number in range(200):
        crowded.serve(number * STEP_S, 2, STEP_S)
    assert 10_000 - crowded.waiting == pytest.approx(10 * 2 * 16 / 0.2992, abs=1)
    first = crowded.finished(100.0)[0]
    assert first[0] == pytest.approx(0.2992)  # as long as a full batch takes
    lone = line(1)
    lone.serve(0.0, 2, STEP_S)
    [(finished_s, arrived_s, count)] = lone.finished(100.0)
    assert finished_s == pytest.approx(0.0193)
    assert (arrived_s, count) == (0.0, 1)


def test_an_idle_line_saves_nothing_up() -> None:
    idle = Line(CPU.classify)
    for number in range(200):
        idle.serve(number * STEP_S, 1, STEP_S)
    idle.put(10.0, 100)
    idle.serve(10.0, 1, STEP_S)
    assert idle.in_work == int(STEP_S * 16 / 0.2992)


def test_pictures_keep_their_order() -> None:
    mixed = line(64)
    mixed.serve(0.0, 1, STEP_S)
    mixed.put(0.05, 1)
    for number in range(1, 100):
        mixed.serve(number * STEP_S, 1, STEP_S)
    done = mixed.finished(100.0)
    assert [one[0] for one in done] == sorted(one[0] for one in done)
    assert [one[1] for one in done] == sorted(one[1] for one in done)
    assert sum(one[2] for one in done) == 65


def test_what_would_wait_too_long_is_refused() -> None:
    service = Service(CPU, first_per_s=40.0, seed=1)  # one replica of each stage
    service.step(0.0, 1000)
    assert service.inside == int(CPU.max_wait_s * CPU.classify.pictures_per_s)
    assert service.tally.shed == 1000 - service.inside
    service.step(STEP_S, 5)
    assert service.tally.shed == 1005 - service.inside


@pytest.mark.parametrize("policy", CONTENDERS)
def test_no_picture_is_lost_or_counted_twice(policy: str) -> None:
    counts = arrivals(JUMP, 1, STEP_S)
    simulation = Simulation(counts, CPU, CONTENDERS[policy](CPU), 1)
    service = simulation.service
    number = 0
    while number < len(counts) or service.inside:
        simulation.step(number)
        number += 1
        done = service.tally.in_time + service.tally.late + service.tally.shed
        assert service.tally.offered == sum(counts[:number]) == done + service.inside
    desired = [one.desired[CLASSIFY] for one in simulation.moments]
    assert max(desired) > desired[0] > min(desired)  # it grew and shrank meanwhile


def test_every_policy_meets_the_same_pictures() -> None:
    offered = {name: [one.offered for one in run(name).moments] for name in CONTENDERS}
    assert len({tuple(counts) for counts in offered.values()}) == 1
    assert run("ours").offered == sum(arrivals(JUMP, 1, STEP_S))


def test_the_same_seed_gives_the_same_outcome() -> None:
    assert run("ours") == run("ours")
    assert run("ours") != run("ours", seed=2)


def test_without_a_shortage_nothing_is_late_or_refused() -> None:
    plenty = CPU.model_copy(update={"classify": CPU.classify.model_copy(update={"min_replicas": 16})})
    outcome = run("ours", profile=plenty)
    assert (outcome.late, outcome.shed) == (0, 0)
    assert outcome.in_time == outcome.offered
    assert outcome.p99_ms is not None
    assert outcome.p99_ms < 200
    assert outcome.replica_s[CLASSIFY] == pytest.approx(16 * JUMP.seconds)


def test_with_a_shortage_pictures_are_refused() -> None:
    poor = CPU.model_copy(update={"classify": CPU.classify.model_copy(update={"max_replicas": 2})})
    outcome = run("ours", profile=poor)
    expected = 40 * (450 - 2 * CPU.classify.pictures_per_s)
    assert outcome.shed == pytest.approx(expected, rel=0.1)
    assert outcome.most[CLASSIFY] == 2


def test_an_objective_that_cannot_be_met_makes_pictures_late() -> None:
    hasty = CPU.model_copy(update={"objective_s": 0.01})
    outcome = run("ours", profile=hasty)
    assert outcome.in_time == 0
    assert outcome.late == outcome.offered - outcome.shed
    assert outcome.missed == outcome.offered


def first_growth_s(upscale_delay_s: float) -> float:
    contender = contenders.ray(CPU, upscale_delay_s=upscale_delay_s)
    outcome = Simulation(arrivals(JUMP, 1, STEP_S), CPU, contender, 1).run()
    first = outcome.moments[0].desired[CLASSIFY]
    return next(one.at_s for one in outcome.moments if one.desired[CLASSIFY] > first)


def test_rays_delay_runs_on_the_simulated_clock() -> None:
    at_once, later = first_growth_s(0.0), first_growth_s(3.0)
    assert at_once > 30.0
    assert later - at_once == pytest.approx(3.0)


def test_rays_clock_is_its_own_again_afterwards() -> None:
    with on_clock(lambda: 12.0):
        assert autoscaling_policy.time.time() == 12.0
    assert autoscaling_policy.time is time


def test_a_policy_that_fails_fails_the_replay() -> None:
    with on_clock(lambda: 0.0), pytest.raises(PolicyFailed, match="utilisation"):
        StagePolicy(utilisation=0.7)


def reported(per_s: int, replicas: int, until_s: float) -> tuple[Stage, StageReports]:
    """A stage that is offered pictures evenly and has reported up to `until_s`."""
    stage = Stage(CLASSIFY, CPU.classify, replicas, seed=1)
    made = StageReports(DeploymentID(CLASSIFY, "image-serve"), stage, look_back_period_s=10.0)
    for number in range(round(until_s / STEP_S) + 1):
        now_s = number * STEP_S
        stage.replicas.offer(round(per_s * STEP_S))
        if number % 8 == 0:
            made.sample(now_s, ongoing=30)
        if number % 10 == 0:
            made.push(now_s)
    return stage, made


def test_the_policies_read_the_load_from_the_reports() -> None:
    _, made = reported(per_s=200, replicas=4, until_s=20.0)
    load = stage_load(reports(made.raw_metrics()), 20.0, stale_after_s=10.0)
    assert load is not None
    assert load.arrivals_per_s == pytest.approx(200)
    assert load.pictures_per_s == pytest.approx(1e3 / 19.3)
    assert (load.knee_pictures, load.reporting) == (1, 4)


def test_a_new_replica_is_heard_after_its_first_report_and_counts_from_zero() -> None:
    stage, made = reported(per_s=200, replicas=4, until_s=20.0)
    stage.replicas.aim(5, 20.0)
    stage.replicas.advance(30.0)
    assert len(made.raw_metrics()[OFFERED]) == 4
    made.sample(30.0, ongoing=30)
    made.push(30.0)
    offered = {replica.unique_id: series[-1].value for replica, series in made.raw_metrics()[OFFERED].items()}
    assert offered["4"] == 0
    assert offered["0"] == pytest.approx(1000, rel=0.01)


def test_old_notes_are_not_reported() -> None:
    _, made = reported(per_s=200, replicas=2, until_s=30.0)
    for series in made.raw_metrics()[OFFERED].values():
        assert series[0].timestamp >= 20.0
        assert series[-1].timestamp == pytest.approx(30.0)
        assert len(series) == 26


def test_ray_sees_the_mean_of_all_requests() -> None:
    stage, made = reported(per_s=200, replicas=4, until_s=20.0)
    assert made.total_num_requests(20.0) == pytest.approx(30)
    stage.replicas.aim(3, 20.0)  # the share of a replica that is gone is gone from the sum
    assert made.total_num_requests(20.0) == pytest.approx(30 * 3 / 4)


def test_an_ingress_request_is_ongoing_while_it_waits_for_the_classifier() -> None:
    few = CPU.classify.model_copy(update={"max_replicas": 1})
    outcome = run("ray", profile=CPU.model_copy(update={"classify": few, "max_wait_s": 10.0}))
    assert outcome.most[DECODE] > 1  # decoding alone never needs two under this load
