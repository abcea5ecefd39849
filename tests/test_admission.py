from __future__ import annotations

import pytest

from serve_app.admission import MAX_PROMISE_S, Admission, ServiceRate
from serve_app.errors import Overloaded
from serve_app.settings import LimitSettings
from tests.fakes import FakeClock


def admission(
    rate_per_s: float = 10.0, clock: FakeClock | None = None, refused: list[int] | None = None, **limits: int
) -> Admission:
    clock = clock or FakeClock()
    note = refused.append if refused is not None else lambda pictures: None
    limits = {"max_queued_pictures": 1000} | limits
    return Admission(
        LimitSettings(**limits), ServiceRate(rate_per_s, clock=clock), picture_bytes=7, on_refused=note, clock=clock
    )


def test_everything_is_given_back_when_a_request_ends() -> None:
    gate = admission()
    with gate.ticket() as ticket:
        ticket.add_bytes(100)
        ticket.add_pictures(3, 30)
        assert (gate.queued_pictures, gate.queued_bytes) == (3, 100 + 3 * 7)
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


def test_decoded_pictures_count_against_the_same_bytes() -> None:
    refused: list[int] = []
    gate = admission(max_queued_bytes=150, refused=refused)
    with gate.ticket() as ticket:
        ticket.add_bytes(100)
        with pytest.raises(Overloaded, match="bytes"):
            ticket.add_pictures(8, 30)
        ticket.add_pictures(7, 30)
        assert (gate.queued_pictures, gate.queued_bytes, refused) == (7, 149, [8])
    assert (gate.queued_pictures, gate.queued_bytes) == (0, 0)


def test_what_waits_too_long_already_is_refused_whatever_time_the_request_has() -> None:
    gate = admission(rate_per_s=10, max_wait_ms=2000)
    gate.take_pictures(20, 30, "interactive")
    gate.take_pictures(1, 30, "interactive", retry=True)  # 2 s are waiting, which is not more than 2
    with pytest.raises(Overloaded, match=r"2\.1 s of pictures are waiting, at most 2 s may"):
        gate.take_pictures(1, 30, "interactive", retry=True)


def test_those_who_come_back_are_let_in_before_newcomers() -> None:
    gate = admission(rate_per_s=10, max_wait_ms=2000)
    gate.take_pictures(15, 30, "interactive")
    with pytest.raises(Overloaded, match=r"1\.5 s of pictures are waiting, at most 1\.4 s may"):
        gate.check_wait("interactive")
    gate.check_wait("interactive", retry=True)
    with gate.ticket(retry=True) as ticket:
        ticket.add_pictures(1, 30)
    with pytest.raises(Overloaded), gate.ticket() as newcomer:
        newcomer.add_pictures(1, 30)


def test_batch_requests_are_refused_at_half_the_wait_and_do_not_stand_before_interactive_ones() -> None:
    gate = admission(rate_per_s=10, max_wait_ms=2000)
    with gate.ticket("batch") as batch, gate.ticket() as interactive:
        batch.add_pictures(8, 30)
        with pytest.raises(Overloaded):
            gate.take_pictures(1, 30, "batch")
        assert gate.estimated_wait_s("interactive") == 0
        interactive.add_pictures(20, 30)
        assert gate.estimated_wait_s("batch") == pytest.approx(2.8)


def test_refused_requests_are_told_to_come_back_one_after_the_other() -> None:
    clock = FakeClock()
    gate = admission(rate_per_s=10, clock=clock, max_wait_ms=2000)
    gate.take_pictures(25, 30, "interactive")

    def told() -> float:
        with pytest.raises(Overloaded) as refused:
            gate.take_pictures(5, 30, "interactive")
        return refused.value.retry_after_s

    # There is room for newcomers in 1.1 s; five pictures take 0.5 s, and a little more is promised for them.
    assert [told() for _ in range(3)] == pytest.approx([1.1, 1.1 + 5 / 9, 1.1 + 10 / 9])
    clock.advance(1.0)  # the places of nobody else were given away meanwhile
    assert told() == pytest.approx(0.1 + 15 / 9)
    clock.advance(60)
    assert told() == pytest.approx(1.1)
    assert max(told() for _ in range(100)) <= MAX_PROMISE_S


def test_promises_are_forgotten_when_there_is_room() -> None:
    gate = admission(rate_per_s=10, max_wait_ms=2000)
    with gate.ticket() as full:
        full.add_pictures(25, 30)
        for _ in range(20):
            with pytest.raises(Overloaded):
                gate.take_pictures(5, 30, "interactive")
    gate.take_pictures(25, 30, "interactive")
    with pytest.raises(Overloaded) as refused:
        gate.take_pictures(5, 30, "interactive")
    assert refused.value.retry_after_s == pytest.approx(1.1)


def test_what_is_refused_is_told_since_it_is_demand() -> None:
    refused: list[int] = []
    gate = admission(refused=refused, max_queued_bytes=10, max_queued_pictures=1)
    with pytest.raises(Overloaded):
        gate.take_bytes(11)
    with pytest.raises(Overloaded):
        gate.take_pictures(3, 30, "interactive")
    assert refused == [1, 3]


def test_retry_after_is_the_time_until_there_is_room() -> None:
    gate = admission(rate_per_s=10, max_queued_pictures=64)
    with gate.ticket() as ticket:
        ticket.add_pictures(60, 30)
        with pytest.raises(Overloaded) as refused:
            gate.take_pictures(24, 30, "interactive")
    assert refused.value.headers() == {"retry-after": "2"}


def test_a_request_that_cannot_be_answered_in_its_time_is_refused_at_once() -> None:
    gate = admission(rate_per_s=10, max_wait_ms=10_000)
    gate.take_pictures(50, 30, "interactive")
    with pytest.raises(Overloaded, match=r"5\.1 s") as refused:
        gate.take_pictures(1, 2.0, "interactive")
    assert refused.value.retry_after_s == pytest.approx(3.1)
    gate.take_pictures(1, 6.0, "interactive")


def test_a_lone_request_is_tried_however_short_its_time() -> None:
    admission(rate_per_s=0.001).take_pictures(64, 0.05, "interactive")


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
