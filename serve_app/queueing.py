"""The one order in which pictures wait: two priority classes with ageing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from serve_app.types import Priority

T = TypeVar("T")


class AgeingQueue(Generic[T]):
    """First come, first served, where a `batch` item stands as if it had come `ageing_s` later.

    So interactive items overtake batch items, but none that has waited `ageing_s` longer than they have: batch work
    is slowed, never starved. Safe to use from several threads.

    Args:
        ageing_s: how far ahead an interactive item may push in.
        clock: monotonic seconds.
    """

    def __init__(self, ageing_s: float, clock: Callable[[], float]) -> None:
        self._handicap_s = {"interactive": 0.0, "batch": ageing_s}
        self._clock = clock
        self._lines: dict[Priority, deque[tuple[float, T]]] = {"interactive": deque(), "batch": deque()}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def put(self, item: T, priority: Priority) -> None:
        """Adds an item at its place."""
        self._lines[priority].append((self._clock() + self._handicap_s[priority], item))

    def pop(self) -> T:
        """Takes the item whose turn it is.

        Raises:
            IndexError: there is none.
        """
        interactive, batch = self._lines["interactive"], self._lines["batch"]
        with self._lock:
            if batch and (not interactive or batch[0][0] < interactive[0][0]):
                return batch.popleft()[1]
            return interactive.popleft()[1]
