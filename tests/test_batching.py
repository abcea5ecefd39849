from __future__ import annotations

import asyncio
import contextvars

import numpy as np
import pytest

from serve_app.batching import Gatherer
from serve_app.errors import DeadlineExceeded, InferenceFailed, NotReady, Overloaded
from tests.fakes import SHAPE, FakeClassifier, FakeClock, picture

NEVER_S = float("inf")


def gatherer(classifier: FakeClassifier, clock: FakeClock | None = None, **options: int) -> Gatherer:
    options = {"max_chunk": 8, "max_in_flight": 1} | options
    return Gatherer(classifier, SHAPE, **options, clock=clock or FakeClock())


async def settle() -> None:
    """Lets every ready task run until all of them wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_lone_picture_leaves_at_once_and_gets_its_own_row() -> None:
    classifier = FakeClassifier()
    scored = await gatherer(classifier).submit(picture(3), 1, NEVER_S)
    assert scored.ranking.class_ids[0] == 3
    assert scored.inference_ms == 1.5
    assert classifier.chunks == [1]


async def test_what_arrives_while_a_chunk_is_out_leaves_together() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    sender = gatherer(classifier)
    answers = [asyncio.create_task(sender.submit(picture(value), 1, NEVER_S)) for value in range(12)]
    await settle()
    assert classifier.chunks == [1]
    classifier.gate.set()
    rows = [scored.ranking.class_ids[0] for scored in await asyncio.gather(*answers)]
    assert rows == [value % 5 for value in range(12)]
    assert classifier.chunks == [1, 8, 3]


async def test_no_more_chunks_are_out_than_allowed() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    sender = gatherer(classifier, max_in_flight=2)
    answers = [asyncio.create_task(sender.submit(picture(value), 1, NEVER_S)) for value in range(5)]
    await settle()
    assert (sender.in_flight, sender.waiting, classifier.chunks) == (2, 3, [1, 1])
    classifier.gate.set()
    await asyncio.gather(*answers)
    assert (sender.in_flight, sender.waiting) == (0, 0)


async def test_a_buffer_is_not_rewritten_while_its_chunk_is_out() -> None:
    seen: list[np.ndarray] = []

    class Keeping(FakeClassifier):
        async def classify(self, chunk):
            before = chunk.pictures.copy()
            scores = await super().classify(chunk)
            seen.append(before == chunk.pictures)
            return scores

    classifier = Keeping()
    classifier.gate.clear()
    sender = gatherer(classifier, max_in_flight=2)
    answers = [asyncio.create_task(sender.submit(picture(value), 1, NEVER_S)) for value in range(40)]
    await settle()
    classifier.gate.set()
    await asyncio.gather(*answers)
    assert all(same.all() for same in seen)


async def test_a_late_picture_does_not_run() -> None:
    classifier, clock = FakeClassifier(), FakeClock()
    classifier.gate.clear()
    sender = gatherer(classifier, clock)
    first = asyncio.create_task(sender.submit(picture(1), 1, NEVER_S))
    late = asyncio.create_task(sender.submit(picture(2), 1, clock() + 5))
    in_time = asyncio.create_task(sender.submit(picture(3), 1, clock() + 20))
    await settle()
    clock.advance(10)
    classifier.gate.set()
    with pytest.raises(DeadlineExceeded):
        await late
    assert (await first).ranking.class_ids[0] == 1
    scored = await in_time
    assert scored.ranking.class_ids[0] == 3
    assert scored.queue_ms == 10_000
    assert classifier.chunks == [1, 1]


@pytest.mark.parametrize(
    ("error", "seen"),
    [(Overloaded("full", 3.0), Overloaded), (NotReady("gone"), NotReady), (ValueError("bug"), InferenceFailed)],
)
async def test_a_failed_chunk_fails_its_pictures_only(error: Exception, seen: type[Exception]) -> None:
    classifier = FakeClassifier([error])
    sender = gatherer(classifier)
    with pytest.raises(seen):
        await sender.submit(picture(1), 1, NEVER_S)
    assert (await sender.submit(picture(2), 1, NEVER_S)).ranking.class_ids[0] == 2


async def test_a_cancelled_picture_is_skipped_before_it_leaves() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    sender = gatherer(classifier)
    first = asyncio.create_task(sender.submit(picture(1), 1, NEVER_S))
    gone = asyncio.create_task(sender.submit(picture(2), 1, NEVER_S))
    last = asyncio.create_task(sender.submit(picture(3), 1, NEVER_S))
    await settle()
    gone.cancel()
    await settle()
    classifier.gate.set()
    assert (await first).ranking.class_ids[0] == 1
    assert (await last).ranking.class_ids[0] == 3
    assert classifier.chunks == [1, 1]


async def test_a_chunk_does_not_run_in_the_context_of_one_of_its_requests() -> None:
    """Serve keeps the request there, and cancels calls made in it when that one client hangs up."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen: list[str] = []

    class Looking(FakeClassifier):
        async def classify(self, chunk):
            seen.append(request.get())
            return await super().classify(chunk)

    request.set("mine")
    await gatherer(Looking()).submit(picture(1), 1, NEVER_S)
    assert seen == ["none"]


async def test_close_answers_what_was_taken_and_takes_no_more() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    sender = gatherer(classifier)
    answers = [asyncio.create_task(sender.submit(picture(value), 1, NEVER_S)) for value in range(3)]
    await settle()
    closing = asyncio.create_task(sender.close())
    await settle()
    with pytest.raises(NotReady):
        await sender.submit(picture(4), 1, NEVER_S)
    classifier.gate.set()
    await asyncio.gather(closing, *answers)
    assert [task.result().ranking.class_ids[0] for task in answers] == [0, 1, 2]


async def test_a_picture_that_was_late_at_the_classifier_is_told_so_and_the_others_are_answered() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    sender = gatherer(classifier)
    first = asyncio.create_task(sender.submit(picture(1), 1, NEVER_S))
    pair = [asyncio.create_task(sender.submit(picture(value), 1, NEVER_S)) for value in (2, 3)]
    await settle()
    classifier.gate.set()
    await first
    classifier.late = np.array([True, False])
    with pytest.raises(DeadlineExceeded):
        await pair[0]
    assert (await pair[1]).ranking.class_ids[0] == 3


async def test_a_chunk_tells_the_time_left_and_the_demand_behind_it() -> None:
    classifier, clock = FakeClassifier(), FakeClock()
    classifier.gate.clear()
    sender = gatherer(classifier, clock, max_chunk=2, max_in_flight=2)
    for _ in range(9):
        sender.offered(1)
    answers = [asyncio.create_task(sender.submit(picture(1), 1, clock() + 7)) for _ in range(9)]
    await settle()
    classifier.gate.set()
    await asyncio.gather(*answers)
    assert [float(chunk.remaining_s[0]) for chunk in classifier.told] == [7.0] * len(classifier.told)
    assert [chunk.offered_pictures for chunk in classifier.told[:2]] == [9, 0]
    # Two chunks at a time, each of which stands for half of what waits behind them: 7 pictures, then 3, then none.
    assert [chunk.behind_pictures for chunk in classifier.told] == [3.5, 3.5, 1.5, 1.5, 0, 0]


async def test_chunks_shrink_and_grow_as_the_classifier_says_but_never_above_the_buffers() -> None:
    classifier = FakeClassifier()
    sender = gatherer(classifier, max_chunk=4)
    for bound, wanted in ((2, [1, 2, 2, 2, 1]), (64, [1, 4, 3])):
        classifier.max_batch_size = bound
        await sender.submit(picture(0), 1, NEVER_S)
        classifier.chunks.clear()
        classifier.gate.clear()
        answers = [asyncio.create_task(sender.submit(picture(value), 1, NEVER_S)) for value in range(8)]
        await settle()
        classifier.gate.set()
        await asyncio.gather(*answers)
        assert classifier.chunks == wanted
    sender.bound(3)
    assert sender.max_chunk == 3


async def test_interactive_pictures_leave_before_batch_ones() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    sender = Gatherer(classifier, SHAPE, max_chunk=2, max_in_flight=1, ageing_s=5, clock=FakeClock())
    answers = [asyncio.create_task(sender.submit(picture(0), 1, NEVER_S))]
    await settle()
    for value, priority in ((1, "batch"), (2, "batch"), (3, "interactive"), (4, "interactive")):
        answers.append(asyncio.create_task(sender.submit(picture(value), 1, NEVER_S, priority)))
    await settle()
    classifier.gate.set()
    await asyncio.gather(*answers)
    assert classifier.sent == [[0], [3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("replicas", "senders", "most"), [(["a"], 1, 2), (["a", "b", "c"], 1, 6), (["a", "b", "c"], 4, 2), (["a"], 8, 1)]
)
async def test_as_many_chunks_are_out_as_the_classifiers_can_take_from_each_sender(
    replicas: list[str], senders: int, most: int
) -> None:
    classifier = FakeClassifier()
    classifier.replicas, classifier.senders = replicas, senders
    sender = gatherer(classifier, max_in_flight=2, max_chunk=1)
    for value in range(6):
        await sender.submit(picture(value), 1, NEVER_S)
    classifier.gate.clear()
    answers = [asyncio.create_task(sender.submit(picture(value), 1, NEVER_S)) for value in range(20)]
    await settle()
    assert sender.in_flight == most
    classifier.gate.set()
    rows = [scored.ranking.class_ids[0] for scored in await asyncio.gather(*answers)]
    assert rows == [value % 5 for value in range(20)]


async def test_a_classifier_that_is_not_heard_of_any_more_is_not_counted() -> None:
    classifier, clock = FakeClassifier(), FakeClock()
    classifier.replicas = ["a", "b"]
    sender = gatherer(classifier, clock, max_in_flight=1)
    for _ in range(2):
        await sender.submit(picture(1), 1, NEVER_S)
    assert sender.most_in_flight == 2
    classifier.replicas = ["b"]
    clock.advance(11)
    await sender.submit(picture(1), 1, NEVER_S)
    assert sender.most_in_flight == 1
