from __future__ import annotations

import asyncio

import pytest
from ray.serve._private.common import ReplicaState

from serve_app.cluster import Cached, _counted
from serve_app.tally import Replicas
from tests.fakes import FakeClock


class Question:
    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> int:
        self.asked += 1
        await self.gate.wait()
        if self.error:
            raise self.error
        return self.asked


async def test_an_answer_holds_for_a_while() -> None:
    clock, question = FakeClock(), Question()
    cached = Cached(question, 1.0, clock)
    assert [await cached(), await cached()] == [1, 1]
    clock.advance(0.9)
    assert await cached() == 1
    clock.advance(0.1)
    assert await cached() == 2


async def test_those_who_ask_meanwhile_share_the_answer_and_one_who_leaves_takes_it_from_nobody() -> None:
    clock, question = FakeClock(), Question()
    cached = Cached(question, 1.0, clock)
    question.gate.clear()
    first, second = asyncio.create_task(cached()), asyncio.create_task(cached())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    question.gate.set()
    assert await second == 1
    assert question.asked == 1


async def test_a_failure_is_not_kept() -> None:
    question = Question()
    cached = Cached(question, 1.0, FakeClock())
    question.error = OSError("away")
    with pytest.raises(OSError, match="away"):
        await cached()
    question.error = None
    assert await cached() == 2


def test_replicas_on_their_way_are_desired_and_those_that_go_are_not() -> None:
    states = {ReplicaState.RUNNING: 2, ReplicaState.STARTING: 1, ReplicaState.UPDATING: 1, ReplicaState.STOPPING: 3}
    assert _counted(states) == Replicas(desired=4, running=2)
