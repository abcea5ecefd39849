from __future__ import annotations

import numpy as np
import pytest

from serve_app.latency import LatencyTable, measure_latency, padded_sizes, table_sizes, warm_up
from serve_app.types import Logits, Pictures
from tests.fakes import SHAPE, FakeClock, scores_of


def test_estimates_lie_on_the_line_between_measured_sizes() -> None:
    table = LatencyTable.of({8: 40.0, 1: 10.0, 4: 22.0})
    assert [table.estimate_ms(size) for size in (1, 4, 8)] == [10.0, 22.0, 40.0]
    assert table.estimate_ms(2) == pytest.approx(14.0)
    assert table.estimate_ms(16) == pytest.approx(80.0)


def test_the_best_rate_is_not_always_the_largest_batch() -> None:
    assert LatencyTable.of({1: 10.0, 4: 20.0, 8: 80.0}).best_pictures_per_s() == pytest.approx(200)


@pytest.mark.parametrize(
    ("latency_ms", "knee"),
    [
        ({1: 19.6, 2: 38.2, 4: 75.2}, 1),  # nothing is saved by waiting for others
        ({1: 1.9, 2: 3.3, 4: 6.2, 8: 12.4}, 2),
        ({1: 5.0, 8: 6.0, 16: 7.0}, 16),  # as on a GPU
        ({1: 10.0, 4: 20.0, 8: 80.0}, 4),
    ],
)
def test_the_knee_is_the_smallest_batch_that_is_nearly_as_good_as_the_best(
    latency_ms: dict[int, float], knee: int
) -> None:
    assert LatencyTable.of(latency_ms).knee() == knee


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        LatencyTable.of({})


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16]), (17, [1, 2, 4, 8, 16, 17])]
)
def test_table_sizes_always_include_the_largest(largest: int, sizes: list[int]) -> None:
    assert table_sizes(largest) == sizes


def test_warm_up_runs_every_size() -> None:
    sizes: list[int] = []

    def infer(pictures: Pictures) -> Logits:
        sizes.append(len(pictures))
        return scores_of(pictures)

    warm_up(infer, SHAPE, 5)
    assert sorted(sizes) == [1, 2, 3, 4, 5]


def test_latency_is_the_median_of_repeats_without_the_first_run() -> None:
    clock = FakeClock()
    durations_s = iter([9.0, 0.1, 0.3, 0.2])

    def infer(pictures: Pictures) -> Logits:
        clock.advance(next(durations_s))
        return scores_of(pictures)

    table = measure_latency(infer, SHAPE, [2], repeats=3, clock=clock)
    assert table.as_dict() == {2: pytest.approx(200.0)}
    assert np.shape(table.sizes) == (1,)


@pytest.mark.parametrize(
    ("latency_ms", "sizes"),
    [
        ({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}, [0, 1, 2, 3, 4]),
        ({1: 1.0, 2: 2.0, 3: 5.0, 4: 3.0}, [0, 1, 2, 4, 4]),
        ({1: 4.0, 2: 4.0, 3: 4.0, 4: 4.0}, [0, 1, 2, 3, 4]),  # no faster: no padding
        ({1: 4.0, 2: 3.7, 3: 9.0, 4: 3.5}, [0, 4, 2, 4, 4]),  # 2 gains 7 % on 1, 4 gains 12 %
        ({1: 9.0, 2: 9.0, 3: 2.0, 4: 2.0}, [0, 3, 3, 3, 4]),  # of two as fast the smaller
        ({1: 8.0, 4: 4.0}, [0, 4, 4, 4, 4]),  # 2 and 3 lie on the line between
        ({1: 2.0, 4: 8.0}, [0, 1, 2, 3, 4]),
    ],
)
def test_a_batch_is_padded_only_where_that_is_faster(latency_ms: dict[int, float], sizes: list[int]) -> None:
    assert padded_sizes(LatencyTable.of(latency_ms), 4) == sizes


def test_a_batch_is_padded_to_no_more_than_the_largest() -> None:
    table = LatencyTable.of({1: 9.0, 2: 9.0, 4: 3.0, 8: 1.0})
    assert padded_sizes(table, 3) == [0, 1, 2, 3]
    assert padded_sizes(table, 4) == [0, 4, 4, 4, 4]
    assert padded_sizes(table, 8) == [0] + [8] * 8


def test_how_much_faster_it_has_to_be_can_be_said() -> None:
    table = LatencyTable.of({1: 10.0, 2: 8.0})
    assert padded_sizes(table, 2, gain=0.19) == [0, 2, 2]
    assert padded_sizes(table, 2, gain=0.21) == [0, 1, 2]
