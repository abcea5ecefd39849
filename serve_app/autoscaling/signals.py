"""What replicas report of one stage, and the load of that stage read from it."""

from __future__ import annotations

import math
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
"""Shorter looks at the arrivals than all that is known of them."""
SURPRISE = 4.0
"""Standard deviations by which a shorter look must exceed the long one to count. Arrivals come in lumps, a chunk or a
request of several pictures at a time, so three would be exceeded by chance."""


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


def together(signals: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What several models in one replica report as one stage: they share its CPUs, so its rate is that of the mix."""
    if len(signals) == 1:
        return dict(signals[0])
    shares = [one[OFFERED] + 1 for one in signals]  # before anything was offered, all are thought to be alike
    per_picture_s = [share / one[RATE] for share, one in zip(shares, signals, strict=True)]
    return {
        BACKLOG: sum(one[BACKLOG] for one in signals),
        OFFERED: sum(one[OFFERED] for one in signals),
        RATE: sum(shares) / sum(per_picture_s),
        KNEE: max(one[KNEE] for one in signals),
    }


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
    """Of all replicas: over all that is known, or lately, where that is more than chance explains.

    A random stream of n arrivals is known to sqrt(n). Without this, a rate of 100/s read over a second would ask for
    a replica in ten more than are needed now and then, and each would stay for a while.
    """
    if not counters:
        return 0.0
    longest_s = max(series[-1][0] - series[0][0] for series in counters)
    if longest_s <= 0:
        return 0.0
    known = sum(_increase(series, longest_s) for series in counters)
    if longest_s < WINDOWS_S[1]:  # the first look of all: what it shows for certain, more or less
        return max(0.0, known - math.sqrt(known)) / longest_s
    steady_per_s = known / longest_s
    for window_s in WINDOWS_S:
        arrivals = sum(_increase(series, window_s) for series in counters)
        surprise = arrivals - steady_per_s * window_s
        if window_s < longest_s and surprise > SURPRISE * math.sqrt(max(arrivals, 1.0)):
            return arrivals / window_s
    return steady_per_s


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
