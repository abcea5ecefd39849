"""Hours that have a minimum of their own: time zones, days, midnight, and the nights on which clocks are set."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.autoscaling.schedule import scheduled_minimum
from serve_app.settings import DAYS, ScheduledFloor

WORKDAYS = ("mon", "tue", "wed", "thu", "fri")


def floor(start: str, end: str, min_replicas: int = 3, **more: Any) -> ScheduledFloor:
    return ScheduledFloor.model_validate({"start": start, "end": end, "min_replicas": min_replicas, **more})


def at(day: str, clock: str, zone: str = "UTC") -> datetime:
    """In the week that begins on Monday, 5 January 2026."""
    return datetime.fromisoformat(f"2026-01-{5 + DAYS.index(day):02}T{clock}").replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("clock", "holds"),
    [("07:59:59.999", False), ("08:00", True), ("12:00", True), ("17:59:59.999", True), ("18:00", False)],
)
def test_a_floor_holds_from_its_start_until_before_its_end(clock: str, holds: bool) -> None:
    assert scheduled_minimum([floor("08:00", "18:00")], at("wed", clock)) == (3 if holds else 0)


def test_no_floor_is_none() -> None:
    assert scheduled_minimum([], at("mon", "12:00")) == 0


def test_the_highest_of_those_that_hold_counts() -> None:
    floors = [
        floor("08:00", "18:00", 2),
        floor("12:00", "13:00", 5),
        floor("12:00", "14:00", 4),
        floor("20:00", "21:00", 9),
    ]
    hours = ("07:00", "11:00", "12:30", "13:30", "15:00")
    assert [scheduled_minimum(floors, at("mon", hour)) for hour in hours] == [0, 2, 5, 4, 2]


@pytest.mark.parametrize("day", DAYS)
def test_days(day: str) -> None:
    assert scheduled_minimum([floor("08:00", "18:00")], at(day, "12:00")) == 3
    holds = scheduled_minimum([floor("08:00", "18:00", days=WORKDAYS)], at(day, "12:00"))
    assert holds == (3 if day in WORKDAYS else 0)


@pytest.mark.parametrize(
    ("day", "clock", "holds"),
    [
        ("fri", "21:59", False),
        ("fri", "22:00", True),
        ("fri", "23:59:59", True),
        ("sat", "00:00", True),
        ("sat", "05:59:59", True),
        ("sat", "06:00", False),
        ("sat", "22:00", False),  # begins on Fridays only
        ("fri", "03:00", False),  # would have begun on Thursday
    ],
)
def test_past_midnight_the_day_it_began_on_counts(day: str, clock: str, holds: bool) -> None:
    assert scheduled_minimum([floor("22:00", "06:00", days=("fri",))], at(day, clock)) == (3 if holds else 0)


def test_past_midnight_from_sunday_to_monday() -> None:
    night = floor("22:00", "06:00", days=("sun",))
    assert scheduled_minimum([night], at("mon", "05:00")) == 3
    assert scheduled_minimum([night], at("sun", "05:00")) == 0


def test_until_midnight() -> None:
    evening = floor("22:00", "00:00", days=("fri",))
    assert scheduled_minimum([evening], at("fri", "23:59")) == 3
    assert scheduled_minimum([evening], at("sat", "00:00")) == 0


def test_hours_are_those_of_the_time_zone() -> None:
    berlin = floor("08:00", "18:00", timezone="Europe/Berlin")
    assert scheduled_minimum([berlin], at("mon", "06:59")) == 0
    assert scheduled_minimum([berlin], at("mon", "07:00")) == 3
    assert scheduled_minimum([berlin], at("mon", "08:00", "Europe/Berlin")) == 3
    assert scheduled_minimum([berlin], at("mon", "17:30")) == 0


def test_days_are_those_of_the_time_zone() -> None:
    tokyo = floor("00:00", "08:00", days=("tue",), timezone="Asia/Tokyo")
    assert scheduled_minimum([tokyo], at("mon", "15:00")) == 3  # 00:00 on Tuesday there
    assert scheduled_minimum([tokyo], at("tue", "15:00")) == 0


@pytest.mark.parametrize(("date", "utc_hour"), [("2026-01-05", 7), ("2026-07-06", 6)], ids=["winter", "summer"])
def test_hours_follow_summer_time(date: str, utc_hour: int) -> None:
    berlin = floor("08:00", "18:00", timezone="Europe/Berlin")
    begins = datetime.fromisoformat(f"{date}T00:00+00:00") + timedelta(hours=utc_hour)
    assert scheduled_minimum([berlin], begins) == 3
    assert scheduled_minimum([berlin], begins - timedelta(seconds=1)) == 0


@given(
    st.lists(st.times(), min_size=2, max_size=2, unique=True),
    st.sets(st.sampled_from(DAYS), min_size=1),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"]),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
)
def test_a_floor_and_its_complement_cover_every_moment_once(
    times: list[time], days: set[str], zone: str, moment: datetime
) -> None:
    now = moment.replace(tzinfo=UTC)
    start, end = map(str, times)
    day, night = floor(start, end, timezone=zone), floor(end, start, timezone=zone)
    assert (scheduled_minimum([day], now) == 0) == (scheduled_minimum([night], now) == 3)
    some = floor(start, end, timezone=zone, days=tuple(days))
    assert scheduled_minimum([some], now) <= scheduled_minimum([day], now)
