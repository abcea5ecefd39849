from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.client.pace import Pace


def answers(pace: Pace, count: int) -> None:
    for _ in range(count):
        pace.sent()
        pace.answered()


def test_it_starts_small_and_doubles_each_round_until_the_first_refusal() -> None:
    pace = Pace(2, most=64)
    windows = []
    for _ in range(6):
        windows.append(pace.window)
        answers(pace, pace.window)
    assert windows == [2, 4, 8, 16, 32, 64]
    answers(pace, 100)
    assert pace.window == 64


def test_a_refusal_halves_it_and_then_it_grows_by_one_a_round() -> None:
    pace = Pace(16)
    pace.refused(pace.sent())
    assert pace.window == 8
    for wanted in (9, 10, 11):
        answers(pace, wanted)  # a round, and one for the rounding
        assert pace.window == wanted


def test_the_refusals_of_one_round_halve_it_once() -> None:
    pace = Pace(32)
    round_ = [pace.sent() for _ in range(32)]
    for number in round_:
        pace.refused(number)
    assert pace.window == 16
    pace.refused(pace.sent())  # sent since
    assert pace.window == 8


def test_never_below_one() -> None:
    pace = Pace(2)
    for _ in range(10):
        pace.refused(pace.sent())
    assert pace.window == 1
    answers(pace, 2)
    assert pace.window == 2


def test_a_window_that_is_told_does_not_move() -> None:
    pace = Pace(100, least=100, most=100)
    answers(pace, 10)
    pace.refused(pace.sent())
    assert pace.window == 100


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=300), st.integers(1, 100))
def test_it_stays_within_its_bounds(refusals: list[bool], start: int) -> None:
    pace = Pace(start, most=20)
    for refused in refusals:
        number = pace.sent()
        if refused:
            pace.refused(number)
        else:
            pace.answered()
        assert 1 <= pace.window <= 20
