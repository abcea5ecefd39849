from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.queueing import AgeingQueue
from serve_app.types import Priority
from tests.fakes import FakeClock


def test_interactive_items_overtake_batch_ones_until_those_have_aged() -> None:
    clock = FakeClock()
    queue: AgeingQueue[str] = AgeingQueue(2.0, clock)
    queue.put("batch 0 s", "batch")
    clock.advance(1.9)
    queue.put("interactive 1.9 s", "interactive")
    queue.put("batch 1.9 s", "batch")
    clock.advance(0.2)
    queue.put("interactive 2.1 s", "interactive")
    assert [queue.pop() for _ in range(len(queue))] == [
        "interactive 1.9 s",
        "batch 0 s",
        "interactive 2.1 s",
        "batch 1.9 s",
    ]


def test_an_empty_queue_says_so() -> None:
    with pytest.raises(IndexError):
        AgeingQueue[int](1.0, FakeClock()).pop()


@given(st.lists(st.tuples(st.sampled_from(["interactive", "batch"]), st.floats(0, 3)), max_size=40))
def test_within_a_class_order_is_kept_and_nobody_is_passed_by_more_than_the_ageing(
    arrivals: list[tuple[Priority, float]],
) -> None:
    clock = FakeClock()
    queue: AgeingQueue[tuple[float, Priority, int]] = AgeingQueue(2.0, clock)
    for number, (priority, later_s) in enumerate(arrivals):
        clock.advance(later_s)
        queue.put((clock(), priority, number), priority)
    left = [queue.pop() for _ in range(len(queue))]
    assert sorted(number for _, _, number in left) == list(range(len(arrivals)))
    for place, (came_s, priority, number) in enumerate(left):
        for came_before_s, other, earlier in left[place + 1 :]:
            if priority == other:
                assert number < earlier
            if earlier < number:  # it was overtaken
                assert (priority, other) == ("interactive", "batch")
                assert came_s - came_before_s <= 2.0 + 1e-6


def test_several_threads_take_each_item_once() -> None:
    queue: AgeingQueue[int] = AgeingQueue(1.0, FakeClock())
    for number in range(4000):
        queue.put(number, "batch" if number % 3 == 0 else "interactive")
    taken: list[int] = []

    def take() -> None:
        for _ in range(1000):
            taken.append(queue.pop())

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(4000))
