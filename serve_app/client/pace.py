"""How many requests to have under way: as TCP finds its window (RFC 5681), with 429 for a lost packet."""

from __future__ import annotations

START = 2
MOST = 64
"""More requests than this at once do not make a service faster; they only queue in it."""


class Pace:
    """A window that follows refusals: it doubles in each round of answers until the first one, is halved by a refusal,
    and grows by one per round from then on.

    Args:
        start: requests at first.
        least: never below.
        most: never above; equal to `least` for a window that does not move.
    """

    def __init__(self, start: int = START, *, least: int = 1, most: int = MOST) -> None:
        self._window = float(min(most, max(least, start)))
        self._least = least
        self._most = most
        self._probing = True
        self._sent = 0
        self._halved_at = 0

    @property
    def window(self) -> int:
        """Requests that may be on their way or inside the service."""
        return int(self._window)

    @property
    def most(self) -> int:
        """Requests that may be there in all, with those that wait for a refusal to pass."""
        return self._most

    def sent(self) -> int:
        """Counts a request; its number is to be handed to `refused`."""
        self._sent += 1
        return self._sent

    def answered(self) -> None:
        """Counts an answer of any kind that is not a refusal."""
        self._window = min(float(self._most), self._window + (1.0 if self._probing else 1.0 / self._window))

    def refused(self, number: int) -> None:
        """Halves the window, unless request `number` was sent before it was halved the last time: the refusals of one
        round say the same thing, once."""
        self._probing = False
        if number > self._halved_at:
            self._window = max(float(self._least), self._window / 2)
            self._halved_at = self._sent
