"""What one replica takes on: pictures and bytes are counted in before work is spent on them, and out at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from serve_app.errors import Overloaded
from serve_app.settings import LimitSettings
from serve_app.types import Priority

Clock = Callable[[], float]

BATCH_SHARE = 0.5
"""Batch requests are refused at this share of the wait at which interactive ones are."""
NEWCOMER_SHARE = 0.7
"""Of the bound at which retries are refused. What a refused client is promised would be taken by newcomers otherwise,
first of all by those that were just answered and ask again."""
PROMISED_SHARE = 0.9
"""Of the rate is promised to those who come back; they do not come as evenly as they were told to."""
MAX_PROMISE_S = 10.0
"""Longest Retry-After, unless the queue itself is longer."""


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


class Promises:
    """When to tell refused requests to come back: one after the other, a little slower than pictures are finished.

    Told the same second, all of them would come back together and be refused again. Nobody is told to wait longer than
    `MAX_PROMISE_S`, since nobody knows how many will come back; and all is forgotten once there is room.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_s = clock()

    def next_s(self, pictures: int, room_in_s: float, per_s: float) -> float:
        """Seconds until `pictures` more can be taken, behind everybody who was told to come back.

        Args:
            pictures: of the request that is refused.
            room_in_s: when the queue will be short enough for one more request.
            per_s: pictures finished per second.
        """
        now_s = self._clock()
        due_s = max(self._last_s, now_s + room_in_s)
        self._last_s = min(due_s + pictures / (per_s * PROMISED_SHARE), now_s + MAX_PROMISE_S)
        return due_s - now_s

    def forget(self) -> None:
        self._last_s = self._clock()


class ByteBudget:
    """Bytes that one replica holds, for all of its models."""

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most

    def take(self, count: int) -> bool:
        """Whether there was room."""
        if self.held + count > self._most:
            return False
        self.held += count
        return True

    def give_back(self, count: int) -> None:
        self.held -= count


class Ticket:
    """What one request holds. A context manager: leaving it gives everything back, however the request ended."""

    def __init__(self, admission: Admission, priority: Priority, *, retry: bool) -> None:
        self._admission = admission
        self.priority: Priority = priority
        self._retry = retry
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
        """Counts pictures in, and the bytes that they will be decoded to.

        Raises:
            Overloaded: too many are queued, too much memory is, or the wait would be too long.
        """
        self._bytes += self._admission.take_pictures(count, timeout_s, self.priority, retry=self._retry)
        self._pictures += count

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.give_back(self._pictures, self._bytes, self.priority, answered=error is None)


class Admission:
    """Bounds of one model in one replica.

    Args:
        limits: `max_queued_pictures`, `max_queued_bytes` and `max_wait_ms` are used.
        budget: bytes that several models share; one of its own where there is none.
        rate: measured pictures per second, for the estimate of waits.
        picture_bytes: what a decoded picture holds while it waits, 0 where it is decoded into a buffer that is there.
        on_refused: told pictures that were refused: they are demand, though nothing else sees them.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        limits: LimitSettings,
        rate: ServiceRate,
        *,
        budget: ByteBudget | None = None,
        picture_bytes: int = 0,
        on_refused: Callable[[int], None] = lambda pictures: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._limits = limits
        self._budget = budget or ByteBudget(limits.max_queued_bytes)
        self._rate = rate
        self._picture_bytes = picture_bytes
        self._on_refused = on_refused
        self._promises = Promises(clock)
        self._queued: dict[Priority, int] = {"interactive": 0, "batch": 0}

    @property
    def queued_bytes(self) -> int:
        """Of all models that share the budget."""
        return self._budget.held

    @property
    def queued_pictures(self) -> int:
        """Of both priorities, waiting or in work."""
        return sum(self._queued.values())

    def engine_changed(self, rate: ServiceRate) -> None:
        """Waits pass at another rate from now on."""
        self._rate = rate

    def ticket(self, priority: Priority = "interactive", *, retry: bool = False) -> Ticket:
        """For one request; `retry` of one that was refused before, which is let in before newcomers."""
        return Ticket(self, priority, retry=retry)

    def estimated_wait_s(self, priority: Priority = "interactive", more_pictures: int = 0) -> float:
        """Seconds until everything that goes before a new request, and `more_pictures`, would be answered."""
        before = self._queued["interactive"] if priority == "interactive" else self.queued_pictures
        return (before + more_pictures) / self._rate.per_s

    def check_wait(self, priority: Priority, pictures: int = 1, *, retry: bool = False) -> None:
        """Refuses what would wait too long: before its body is read, and once its pictures are counted.

        Raises:
            Overloaded: what is before it takes longer than `max_wait_ms`, or its share for such requests.
        """
        ahead_s, bound_s = self.estimated_wait_s(priority), self._bound_s(priority, retry=retry)
        if ahead_s > bound_s:
            message = f"{ahead_s:.1f} s of pictures are waiting, at most {bound_s:g} s may; try again later"
            raise self._refusal(message, pictures, ahead_s - bound_s)

    def take_bytes(self, count: int) -> None:
        """See `Ticket.add_bytes`."""
        self._take_bytes(count, pictures=1)

    def take_pictures(self, count: int, timeout_s: float, priority: Priority, *, retry: bool = False) -> int:
        """See `Ticket.add_pictures`; returns the bytes counted in."""
        over = self.queued_pictures + count - self._limits.max_queued_pictures
        if over > 0:
            raise self._refusal("too many pictures are waiting; try again later", count, over / self._rate.per_s)
        self.check_wait(priority, count, retry=retry)
        ahead_s, done_s = self.estimated_wait_s(priority), self.estimated_wait_s(priority, count)
        if ahead_s > 0 and done_s > timeout_s:
            message = f"an answer would take about {done_s:.1f} s, longer than this request's time; try again later"
            raise self._refusal(message, count, done_s - timeout_s)
        decoded_bytes = count * self._picture_bytes
        self._take_bytes(decoded_bytes, count)
        if ahead_s < self._bound_s(priority, retry=False) / 2:
            self._promises.forget()
        self._queued[priority] += count
        return decoded_bytes

    def give_back(self, pictures: int, held_bytes: int, priority: Priority, *, answered: bool) -> None:
        self._queued[priority] -= pictures
        self._budget.give_back(held_bytes)
        if answered and pictures:
            self._rate.finished(pictures, still_queued=self.queued_pictures)

    def _bound_s(self, priority: Priority, *, retry: bool) -> float:
        share = (BATCH_SHARE if priority == "batch" else 1.0) * (1.0 if retry else NEWCOMER_SHARE)
        return self._limits.max_wait_ms / 1e3 * share

    def _take_bytes(self, count: int, pictures: int) -> None:
        if not self._budget.take(count):
            raise self._refusal("too many bytes of pictures are waiting; try again later", pictures, 0.0)

    def _refusal(self, message: str, pictures: int, room_in_s: float) -> Overloaded:
        self._on_refused(pictures)
        return Overloaded(message, self._promises.next_s(pictures, room_in_s, self._rate.per_s))
