"""What replicas report of one stage, and the load of that stage read from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

BACKLOG = "backlog_pictures"
"""Pictures of this stage that wait or are in work; never those waiting for another stage."""
OFFERED = "offered_pictures"
"""Pictures that came for this stage since the replica started, those that were refused among them."""
RATE = "pictures_per_s"
"""What this replica does in a second when it has enough to do."""
KNEE = "knee_pictures"
"""Smallest batch whose time per picture is near the best."""

Series: TypeAlias = Sequence[tuple[float, float]]
"""Seconds (of any one clock) and values, oldest first."""
Reports: TypeAlias = Mapping[str, Mapping[str, Series]]
"""Signal -> replica -> its values."""

WINDOWS_S = (1.0, 2.0, 5.0)
ENOUGH_ARRIVALS = 50
"""A rate is read from the shortest window that holds this many arrivals (a random stream is known to 14 % then)."""


@dataclass(frozen=True, slots=True)
class StageLoad:
    """One stage, over all of its replicas.

    Attributes:
        backlog_pictures: waiting or in work.
        arrivals_per_s: pictures offered per second, refused ones among them: what is refused is demand all the same.
        pictures_per_s: what one replica can do, mean of those that report.
        knee_pictures: smallest efficient batch.
        reporting: replicas that these figures come from.
    """

    backlog_pictures: float
    arrivals_per_s: float
    pictures_per_s: float
    knee_pictures: float
    reporting: int


def stage_load(reports: Reports, now_s: float, stale_after_s: float) -> StageLoad | None:
    """The load that `reports` tell of, or None where no replica has said enough lately.

    Args:
        reports: the signals of this module, of running replicas.
        now_s: on the clock of the reports.
        stale_after_s: a replica whose last report is older tells nothing.
    """
    rates = reports.get(RATE, {})
    fresh = [replica for replica, series in rates.items() if series and series[-1][0] >= now_s - stale_after_s]
    speeds = [rates[replica][-1][1] for replica in fresh if rates[replica][-1][1] > 0]
    if not speeds:
        return None
    knees = _latest(reports.get(KNEE, {}), fresh)
    return StageLoad(
        backlog_pictures=sum(_latest(reports.get(BACKLOG, {}), fresh)),
        arrivals_per_s=_arrivals_per_s(
            [series for replica in fresh if (series := reports.get(OFFERED, {}).get(replica))]
        ),
        pictures_per_s=sum(speeds) / len(speeds),
        knee_pictures=max(knees, default=1.0),
        reporting=len(speeds),
    )


def _latest(of_replicas: Mapping[str, Series], replicas: Sequence[str]) -> list[float]:
    return [series[-1][1] for replica in replicas if (series := of_replicas.get(replica))]


def _arrivals_per_s(counters: Sequence[Series]) -> float:
    """Of all replicas, over the shortest window that is long enough for the rate it finds."""
    if not counters:
        return 0.0
    longest_s = max(series[-1][0] - series[0][0] for series in counters)
    windows_s = [window_s for window_s in WINDOWS_S if window_s < longest_s] + [longest_s]
    for window_s in windows_s:
        arrivals = sum(_increase(series, window_s) for series in counters)
        if arrivals >= ENOUGH_ARRIVALS:
            break
    return arrivals / window_s if window_s > 0 else 0.0


def _increase(series: Series, window_s: float) -> float:
    """How much a counter grew in its last `window_s`, between its reports on the line."""
    end_s, end = series[-1]
    start_s = end_s - window_s
    later_s, later = end_s, end
    for at_s, value in reversed(series):
        if at_s <= start_s:
            share = (later_s - start_s) / (later_s - at_s) if later_s > at_s else 0.0
            return end - (later - share * (later - value))
        later_s, later = at_s, value
    return end - later
