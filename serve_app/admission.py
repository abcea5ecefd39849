"""What one replica takes on: pictures and bytes are counted in before work is spent on them, and out at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from serve_app.errors import Overloaded
from serve_app.settings import LimitSettings

Clock = Callable[[], float]


class ServiceRate:
    """Pictures finished per second, as an exponentially weighted mean over about `window_s` of busy time.

    Idle time says nothing of what the replica can do, so only gaps between finishes while work was waiting count.
    Never below a tenth of the initial rate: after a stall a lower figure would refuse all but lone requests, and
    those never correct it.

    Args:
        initial_per_s: the engine's measured best rate, used until enough pictures were finished.
        window_s: time constant of the mean.
        clock: monotonic seconds.
    """

    def __init__(self, initial_per_s: float, *, window_s: float = 5.0, clock: Clock = time.monotonic) -> None:
        self._per_s = initial_per_s
        self._floor_per_s = initial_per_s / 10
        self._window_s = window_s
        self._clock = clock
        self._busy_since_s: float | None = None
        self._finished = 0

    @property
    def per_s(self) -> float:
        return self._per_s

    def finished(self, pictures: int, *, still_queued: int) -> None:
        """Counts finished pictures; the mean is moved every tenth of the window."""
        now_s = self._clock()
        self._finished += pictures
        if self._busy_since_s is not None:
            elapsed_s = now_s - self._busy_since_s
            if elapsed_s >= self._window_s / 10:
                weight = min(1.0, elapsed_s / self._window_s)
                self._per_s += weight * (self._finished / elapsed_s - self._per_s)
                self._per_s = max(self._per_s, self._floor_per_s)
                self._restart(now_s, still_queued)
                return
        if self._busy_since_s is None or not still_queued:
            self._restart(now_s, still_queued)

    def _restart(self, now_s: float, still_queued: int) -> None:
        self._busy_since_s = now_s if still_queued else None
        self._finished = 0


class Ticket:
    """What one request holds. A context manager: leaving it gives everything back, however the request ended."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._pictures = 0
        self._bytes = 0

    def add_bytes(self, count: int) -> None:
        """Counts body bytes in as they arrive.

        Raises:
            Overloaded: this replica holds as many bytes as it may.
        """
        self._admission.take_bytes(count)
        self._bytes += count

    def add_pictures(self, count: int, timeout_s: float) -> None:
        """Counts pictures in.

        Raises:
            Overloaded: too many are queued, or they would be answered after `timeout_s`.
        """
        self._admission.take_pictures(count, timeout_s)
        self._pictures += count

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.give_back(self._pictures, self._bytes, answered=error is None)


class Admission:
    """Bounds of one replica.

    Args:
        limits: `max_queued_pictures` and `max_queued_bytes` are used.
        rate: measured pictures per second, for the estimate of waits.
    """

    def __init__(self, limits: LimitSettings, rate: ServiceRate) -> None:
        self._limits = limits
        self._rate = rate
        self.queued_pictures = 0
        self.queued_bytes = 0

    def ticket(self) -> Ticket:
        return Ticket(self)

    def estimated_wait_s(self, more_pictures: int = 0) -> float:
        """Seconds until everything queued, and `more_pictures`, would be answered."""
        return (self.queued_pictures + more_pictures) / self._rate.per_s

    def take_bytes(self, count: int) -> None:
        if self.queued_bytes + count > self._limits.max_queued_bytes:
            raise Overloaded("too many bytes of pictures are waiting; try again later", self.estimated_wait_s())
        self.queued_bytes += count

    def take_pictures(self, count: int, timeout_s: float) -> None:
        wait_s = self.estimated_wait_s(count)
        if self.queued_pictures + count > self._limits.max_queued_pictures:
            raise Overloaded("too many pictures are waiting; try again later", self.estimated_wait_s())
        if self.queued_pictures and wait_s > timeout_s:
            message = f"an answer would take about {wait_s:.1f} s, longer than this request's time; try again later"
            raise Overloaded(message, wait_s - timeout_s)
        self.queued_pictures += count

    def give_back(self, pictures: int, body_bytes: int, *, answered: bool) -> None:
        self.queued_pictures -= pictures
        self.queued_bytes -= body_bytes
        if answered and pictures:
            self._rate.finished(pictures, still_queued=self.queued_pictures)
