"""Who was seen of late: how senders and classifiers know how many of each other there are.

Ray tells a replica neither how many replicas its own deployment has just now nor how many another has.
"""

from __future__ import annotations

from collections.abc import Callable


class RecentlySeen:
    """Names that were seen within `window_s` of the last time any was.

    Args:
        window_s: how long a name counts after it was seen.
        clock: monotonic seconds.
    """

    def __init__(self, window_s: float, clock: Callable[[], float]) -> None:
        self._window_s = window_s
        self._clock = clock
        self._seen_s: dict[str, float] = {}

    def saw(self, name: str) -> int:
        """Notes a name; returns how many there are."""
        now_s = self._clock()
        self._seen_s.pop(name, None)
        self._seen_s[name] = now_s  # at the end: names stand in the order in which they were last seen
        while self._seen_s[oldest := next(iter(self._seen_s))] < now_s - self._window_s:
            del self._seen_s[oldest]
        return len(self._seen_s)
