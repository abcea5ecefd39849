"""Medians, ratios within a round, and a table that hides no failed request."""

from __future__ import annotations

import math

import pytest

from scripts.bench.floor import Pieces
from scripts.bench.tables import Sample, median_of, ratios, table


def one(system: str, number: int, rate: float, failed: int = 0) -> Sample:
    return Sample(system, number, 32, rate, 5.0, 10.0, failed, {"worker": 2.0, "front": 0.5}, 0.1)


RUN = [one("a", 0, 100), one("b", 0, 50), one("a", 1, 300), one("b", 1, 100), one("a", 2, 90), one("b", 2, 60)]


def test_medians_are_over_rounds_of_one_number_of_clients() -> None:
    assert median_of(RUN, "a", 32, "pictures_per_s") == 100
    assert median_of(RUN, "b", 32, "p99_ms") == 10
    assert math.isnan(median_of(RUN, "a", 8, "pictures_per_s"))


def test_ratios_pair_within_a_round() -> None:
    assert ratios(RUN, "a", "b", 32) == [2.0, 3.0, 1.5]  # the ratio of the medians would be 1.67


def test_a_round_without_the_other_is_no_pair() -> None:
    assert ratios([*RUN, one("a", 3, 1000), one("a", 4, 5), one("b", 4, 0.0)], "a", "b", 32) == [2.0, 3.0, 1.5]
    assert ratios([one("a", 0, 1), one("b", 1, 1)], "a", "b", 32) == []


def test_failed_requests_are_in_the_table() -> None:
    lines = table([one("a", 0, 5000, failed=2), one("a", 1, 5000, failed=1), one("b", 0, 1)], "b").splitlines()
    assert lines[2].endswith("| 3 |")
    assert lines[3].endswith("| 0 |")


def test_a_row_has_medians_and_the_baselines_ratio() -> None:
    row = [cell.strip() for cell in table(RUN, "a", floor_per_s=200).splitlines()[3].strip("|").split("|")]
    assert row == ["b", "32", "60", "30%", "2.00 (1.50..3.00)", "5", "10", "2.50", "10%", "0"]


def test_the_floor_is_decode_and_the_best_batch() -> None:
    pieces = Pieces(2, {"exact": 9.0, "fast": 1.0}, {1: 3.0, 2: 1.0, 4: 1.5}, {1: 700.0})
    assert pieces.floor_ms() == pytest.approx(2.0)
    assert pieces.floor_per_s() == pytest.approx(1000)
    assert pieces.floor_ms("exact") == pytest.approx(10.0)
