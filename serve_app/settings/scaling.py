"""What the autoscaling policies aim for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import time
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from serve_app.settings.base import Positive, Seconds, Section, parse

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)


class ScheduledFloor(Section):
    """Hours in which a stage has at least so many replicas."""

    start: time
    """Time of day from which it holds; the replicas are asked for earlier, by the time they take to start."""
    end: time
    """Time of day from which it no longer holds; before `start` means on the next day."""
    min_replicas: Positive
    """At least so many, if max_replicas allows."""
    days: Annotated[tuple[Day, ...], Field(min_length=1)] = DAYS
    """On which it begins."""
    timezone: str = "UTC"
    """Of `start` and `end`, such as Europe/Berlin."""

    @field_validator("start", "end", mode="before")
    @classmethod
    def _no_number(cls, value: object) -> object:
        if isinstance(value, int | float):
            raise ValueError('a number, which is how YAML reads 18:00; write it in quotes, as "18:00"')
        return value

    @field_validator("start", "end")
    @classmethod
    def _no_zone(cls, value: time) -> time:
        if value.tzinfo is not None:
            raise ValueError("has a time zone of its own; give it as timezone")
        return value

    @model_validator(mode="after")
    def _holds_at_times(self) -> ScheduledFloor:
        if self.start == self.end:
            raise ValueError("start is end, so it never holds; end it later, or raise min_replicas of the deployment")
        return self

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone {name!r}; write one such as Europe/Berlin") from None
        return name

    def weekdays(self) -> set[int]:
        """Monday is 0."""
        return {DAYS.index(day) for day in self.days}


class ScalingGoal(Section):
    """What the autoscaling policies aim for: their `policy_kwargs`, per stage."""

    utilization: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of a replica's measured rate that arrivals may fill; the rest is for bursts."""
    drain_s: Annotated[float, Field(gt=0)] = 5.0
    """A backlog is to be gone so long after the replicas asked for are up."""
    max_wait_s: Annotated[float, Field(gt=0)] = 5.0
    """Replicas refuse what would wait longer (limits.max_wait_ms), so no backlog is expected to grow beyond it."""
    start_up_s: Seconds = 8.0
    """From asking for a replica until it serves: the first estimate, measured from then on."""
    keep_s: Seconds = 60.0
    """Replicas go when none of them was needed for so long."""
    keep_last_s: Seconds = 300.0
    """The last replica goes (where min_replicas is 0) when nothing came for so long."""
    slack: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Replicas go only if arrivals could grow by this share without their being asked for again."""
    stale_after_s: Annotated[float, Field(gt=0)] = 10.0
    """Reports older than this tell nothing."""
    log_every_s: Seconds = 60.0
    """A decision that does not change is logged again after so long."""
    floors: tuple[ScheduledFloor, ...] = ()
    """Scheduled minima."""


def parse_goal(kwargs: Mapping[str, Any]) -> ScalingGoal:
    """Validates the `policy_kwargs` of an autoscaling policy.

    Raises:
        ConfigError: one line per problem, each with its key's path; an unknown key names the nearest valid one.
    """
    return parse(ScalingGoal, kwargs, "policy_kwargs")
