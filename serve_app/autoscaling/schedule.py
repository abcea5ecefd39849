"""Replicas that certain hours of certain days have at least."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from serve_app.settings import ScheduledFloor


def scheduled_minimum(floors: Sequence[ScheduledFloor], now: datetime) -> int:
    """The highest of the floors that hold at `now`, an aware time; 0 where none does."""
    return max((floor.min_replicas for floor in floors if _holds(floor, now)), default=0)


def _holds(floor: ScheduledFloor, now: datetime) -> bool:
    local = now.astimezone(ZoneInfo(floor.timezone))
    clock = local.time()
    if floor.start <= floor.end:
        return floor.start <= clock < floor.end and local.weekday() in floor.weekdays()
    # Past midnight: the day that counts is the one it began on.
    if clock >= floor.start:
        return local.weekday() in floor.weekdays()
    return clock < floor.end and (local - timedelta(days=1)).weekday() in floor.weekdays()
