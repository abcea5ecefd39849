from __future__ import annotations

import pytest

from serve_app.admission import Admission, ServiceRate
from serve_app.errors import Overloaded
from serve_app.settings import LimitSettings
from tests.fakes import FakeClock


def admission(rate_per_s: float = 10.0, clock: FakeClock | None = None, **limits: int) -> Admission:
    return Admission(LimitSettings(**limits), ServiceRate(rate_per_s, clock=clock or FakeClock()))


def test_everything_is_given_back_when_a_request_ends() -> None:
    gate = admission()
    with gate.ticket() as ticket:
        ticket.add_bytes(100)
        ticket.add_pictures(3, 30)
        assert (gate.queued_pictures, gate.queued_bytes) == (3, 100)
    assert (gate.queued_pictures, gate.queued_bytes) == (0, 0)


def test_everything_is_given_back_when_a_request_fails() -> None:
    gate = admission(max_queued_pictures=64)
    with pytest.raises(Overloaded), gate.ticket() as ticket:  # noqa: PT012  # what came before the refusal matters
        ticket.add_bytes(100)
        ticket.add_pictures(65, 30)
    assert (gate.queued_pictures, gate.queued_bytes) == (0, 0)


def test_bytes_are_bounded_over_all_requests() -> None:
    gate = admission(max_queued_bytes=150)
    with gate.ticket() as first, gate.ticket() as second:
        first.add_bytes(100)
        with pytest.raises(Overloaded, match="bytes"):
            second.add_bytes(51)
        second.add_bytes(50)


def test_retry_after_is_the_time_the_backlog_takes() -> None:
    gate = admission(rate_per_s=10, max_queued_pictures=64)
    with gate.ticket() as ticket:
        ticket.add_pictures(60, 30)
        with pytest.raises(Overloaded) as refused:
            gate.take_pictures(5, 30)
    assert refused.value.headers() == {"retry-after": "6"}


def test_a_request_that_cannot_be_answered_in_its_time_is_refused_at_once() -> None:
    gate = admission(rate_per_s=10)
    gate.take_pictures(50, 30)
    with pytest.raises(Overloaded, match=r"5\.1 s") as refused:
        gate.take_pictures(1, 2.0)
    assert refused.value.retry_after_s == pytest.approx(3.1)
    gate.take_pictures(1, 6.0)


def test_a_lone_request_is_tried_however_short_its_time() -> None:
    admission(rate_per_s=0.001).take_pictures(1, 0.05)


def test_the_rate_follows_what_is_finished_under_load() -> None:
    clock = FakeClock()
    rate = ServiceRate(100.0, window_s=5, clock=clock)
    rate.finished(1, still_queued=10)
    for _ in range(300):
        clock.advance(0.1)
        rate.finished(2, still_queued=10)
    assert rate.per_s == pytest.approx(20, rel=0.05)


def test_idle_time_does_not_lower_the_rate() -> None:
    clock = FakeClock()
    rate = ServiceRate(100.0, clock=clock)
    for _ in range(50):
        clock.advance(60)
        rate.finished(1, still_queued=0)
    assert rate.per_s == 100.0


def test_a_stall_does_not_lower_the_rate_to_nothing() -> None:
    clock = FakeClock()
    rate = ServiceRate(100.0, clock=clock)
    rate.finished(1, still_queued=5)
    clock.advance(3600)
    rate.finished(1, still_queued=5)
    assert rate.per_s == 10.0
