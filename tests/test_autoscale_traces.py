"""Loads: generated, recorded, and the pictures that arrive under them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.autoscale.traces import SHAPES, Trace, arrivals, generated, read_csv, turns
from serve_app.errors import ConfigError


def test_arrivals_are_seeded_and_follow_the_rate() -> None:
    trace = Trace("two", ((0, 100), (60, 100), (60, 400), (120, 400)))
    counts = arrivals(trace, 1, 0.05)
    assert counts == arrivals(trace, 1, 0.05)
    assert counts != arrivals(trace, 2, 0.05)
    assert len(counts) == 2400
    assert sum(counts[:1200]) == pytest.approx(6000, rel=0.05)
    assert sum(counts[1200:]) == pytest.approx(24000, rel=0.05)


@pytest.mark.parametrize("name", SHAPES)
def test_a_generated_load_is_long_and_needs_few_replicas_and_many(name: str) -> None:
    trace = generated(name, replica_per_s=1.0)
    rates = [rate for _, rate in trace.points]
    assert trace.seconds >= 300
    assert 1 < min(rates) <= 3
    assert 8 <= max(rates) <= 16
    assert trace.load_changes() == (9 if name == "burst" else 1)


def test_a_generated_load_scales_with_the_speed_of_a_replica() -> None:
    slow, fast = generated("step", 10.0), generated("step", 50.0)
    assert [rate * 5 for _, rate in slow.points] == [rate for _, rate in fast.points]


@pytest.mark.parametrize(
    ("values", "tolerance", "expected"),
    [
        ([], 0, 0),
        ([3, 3, 3], 0, 0),
        ([1, 2, 2, 5], 0, 0),
        ([1, 5, 5, 2, 1], 0, 1),
        ([1, 5, 4, 6, 1], 0, 3),
        ([1, 5, 4, 6, 1], 2, 1),
    ],
)
def test_turns(values: list[float], tolerance: float, expected: int) -> None:
    assert turns(values, tolerance) == expected


def test_a_recorded_load_holds_each_rate_until_the_next_line(tmp_path: Path) -> None:
    file = tmp_path / "monday.csv"
    file.write_text("seconds,pictures_per_s\n100,50\n110,200\n130,0\n")
    trace = read_csv(file)
    assert trace.name == "monday"
    assert trace.seconds == 30
    counts = arrivals(trace, 1, 0.05)
    assert sum(counts[:200]) == pytest.approx(500, rel=0.15)
    assert sum(counts[200:]) == pytest.approx(4000, rel=0.1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "first line must be"),
        ("time,rate\n0,1\n1,1\n", "first line must be"),
        ("seconds,pictures_per_s\n0,1\n", "at least two lines"),
        ("seconds,pictures_per_s\n0,1\nten,1\n", "line 3: not two numbers: ten,1"),
        ("seconds,pictures_per_s\n0,1\n10\n", "line 3: not two numbers"),
        ("seconds,pictures_per_s\n0,-1\n10,1\n", "line 2"),
        ("seconds,pictures_per_s\n0,nan\n10,1\n", "line 2"),
        ("seconds,pictures_per_s\n0,1\n5,1\n5,1\n", "must increase, but 5 follows 5"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_csv(file)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read"):
        read_csv(tmp_path / "none.csv")
