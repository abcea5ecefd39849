"""Which outcomes of a load run count: plain arithmetic on times, in seconds of one clock."""

from __future__ import annotations

from array import array
from collections import Counter

SAMPLES_PER_STATUS = 3


class Tally:
    """Outcomes that belong to the window [begin_s, end_s): by when they were due (open loop) or ended (closed)."""

    def __init__(self, begin_s: float, end_s: float, by_due: bool) -> None:
        self.begin_s, self.end_s, self._by_due = begin_s, end_s, by_due
        self.latencies_us = array("Q")
        self.done = self.shed = self.ended_in_window = 0
        self.errors: Counter[str] = Counter()
        self.samples: dict[int, list[str]] = {}
        self.last_end_s = begin_s

    def answered(self, status: int, due_s: float, ended_s: float, body: bytes = b"") -> None:
        """An answer arrived."""
        self.done += 1
        ended_inside = self.begin_s <= ended_s < self.end_s
        self.last_end_s = ended_s
        if status == 200:
            self.ended_in_window += ended_inside
            if self.begin_s <= due_s < self.end_s if self._by_due else ended_inside:
                self.latencies_us.append(int((ended_s - due_s) * 1e6))
            return
        self._sample(status, body)
        if not self._counts(due_s, ended_s):
            return
        if status in (429, 503):
            self.shed += 1
        else:
            self.errors[str(status)] += 1

    def failed(self, kind: str, due_s: float, ended_s: float) -> None:
        """No answer: `kind` is one of connect, reset, timeout, malformed."""
        self.done += 1
        self.last_end_s = ended_s
        if self._counts(due_s, ended_s):
            self.errors[kind] += 1

    def _counts(self, due_s: float, ended_s: float) -> bool:
        return self.begin_s <= (due_s if self._by_due else ended_s) < self.end_s

    def _sample(self, status: int, body: bytes) -> None:
        kept = self.samples.setdefault(status, [])
        if len(kept) < SAMPLES_PER_STATUS and not 200 <= status < 300:
            kept.append(f"{status}: {body.decode(errors='replace')}")
