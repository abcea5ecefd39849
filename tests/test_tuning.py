from __future__ import annotations

import pytest

from serve_app.latency import LatencyTable
from serve_app.settings import BatchingSettings
from serve_app.tuning import MAX_AUTO_WAIT_S, REPLAN_EVERY, LatencyModel, Tuner, plan_batches

GPU = LatencyTable.of({1: 2.0, 2: 2.1, 4: 2.4, 8: 3.2, 16: 5.0, 32: 9.6, 64: 19.0})
"""Larger batches are much faster per picture, up to 16 or so."""
CPU = LatencyTable.of({1: 20.0, 2: 40.0, 4: 80.0, 8: 160.0, 16: 320.0})
"""They are not."""


@pytest.mark.parametrize(
    ("table", "objective_ms", "most"),
    [(GPU, 1000, 64), (GPU, 40, 33), (GPU, 8, 1), (CPU, 1000, 12), (CPU, 2000, 16), (CPU, 50, 1)],
)
def test_the_running_batch_and_the_next_fit_into_half_of_the_objective(
    table: LatencyTable, objective_ms: float, most: int
) -> None:
    plan = plan_batches(table, BatchingSettings(max_batch_size=table.sizes[-1], latency_objective_ms=objective_ms))
    assert plan.max_batch_size == most
    assert most == 1 or 2 * table.estimate_ms(most) <= objective_ms / 2
    assert most == table.sizes[-1] or 2 * table.estimate_ms(most + 1) > objective_ms / 2


def test_waiting_for_others_is_worth_it_only_where_larger_batches_are_faster() -> None:
    assert plan_batches(CPU, BatchingSettings()).wait_s == 0
    assert plan_batches(GPU, BatchingSettings(max_batch_size=64)).wait_s == pytest.approx(0.002)
    slow = LatencyTable.of({1: 100.0, 16: 200.0})
    assert plan_batches(slow, BatchingSettings()).wait_s == MAX_AUTO_WAIT_S
    assert plan_batches(slow, BatchingSettings(latency_objective_ms=20)).wait_s == 0  # the objective allows lone ones
    assert plan_batches(CPU, BatchingSettings(merge_wait_s=0.02)).wait_s == 0.02


def test_the_model_follows_what_batches_take_nearby_faster_than_elsewhere() -> None:
    model = LatencyModel(CPU)
    for _ in range(20):
        model.observe(8, 320.0)
    now = model.table.as_dict()
    assert now[8] == pytest.approx(320, rel=0.15)
    assert 20 < now[1] < 40 * 1.05
    for _ in range(200):
        model.observe(8, 320.0)
    assert model.table.as_dict()[8] == pytest.approx(320, rel=0.01)


def test_one_stalled_batch_hardly_moves_it() -> None:
    model = LatencyModel(CPU)
    model.observe(4, 60_000.0)
    assert model.table.as_dict()[4] == pytest.approx(80 * 1.4)


def test_the_plan_follows_the_model() -> None:
    tuner = Tuner(CPU, BatchingSettings())
    assert tuner.plan.max_batch_size == 12
    for _ in range(40 * REPLAN_EVERY):
        tuner.observe(8, 400.0)
    assert tuner.plan.max_batch_size < 8


def test_the_plan_follows_settings_that_change_at_once() -> None:
    tuner = Tuner(CPU, BatchingSettings())
    tuner.batching = BatchingSettings(max_batch_size=3)
    assert tuner.plan.max_batch_size == 3
    assert tuner.batching.max_batch_size == 3


def test_the_rate_is_that_of_efficient_batches() -> None:
    assert Tuner(CPU, BatchingSettings()).pictures_per_s() == pytest.approx(50)
    tuner = Tuner(GPU, BatchingSettings(max_batch_size=64))
    assert tuner.plan.knee == 16
    assert tuner.pictures_per_s() == pytest.approx(3200)
