from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from serve_app.errors import (
    BadParameter,
    BrokenPicture,
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
    PayloadTooLarge,
)
from serve_app.metrics import NoMetrics
from serve_app.pipeline import Classified, Pipeline, Serving
from serve_app.settings import parse_settings
from serve_app.types import Chunk, ChunkScores, Picture, Timing
from tests.fakes import FakeClassifier, manifest, picture, split


def decode(body: bytes) -> Picture:
    """Not a picture format: the first byte is the class; `!` is broken."""
    if body == b"!":
        raise BrokenPicture("broken")
    return picture(body[0])


class CountingMetrics(NoMetrics):
    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def answered(self, timing: Timing) -> None:
        self.outcomes.append("ok")

    def refused(self, code: str) -> None:
        self.outcomes.append(code)


def pipeline(classifier: FakeClassifier, metrics: NoMetrics | None = None, **limits: int) -> Pipeline:
    return Pipeline(
        "fake",
        parse_settings({"batching": {"max_batch_size": 4}, "limits": limits}),
        Serving(manifest(), split(classifier, decode), engine_pictures_per_s=100.0),
        metrics=metrics or NoMetrics(),
    )


async def ask(line: Pipeline, *bodies: bytes, k: int = 1, timeout_ms: int | None = None) -> list[object]:
    with line.admission.ticket() as ticket:
        return list(await line.classify(bodies, k, line.deadline_s(timeout_ms), ticket))


def classes(outcomes: list[object]) -> list[int]:
    return [outcome.predictions(1)[0].class_id for outcome in outcomes if isinstance(outcome, Classified)]


class NumberlessClassifier(FakeClassifier):
    """Has no numbers for pictures of one value, as float16 where it overflows."""

    async def classify(self, chunk: Chunk) -> ChunkScores:
        scores = await super().classify(chunk)
        scores.logits[[picture.flat[0] == 3 for picture in chunk.pictures]] = np.nan
        return scores


async def test_a_picture_without_numbers_fails_alone() -> None:
    outcomes = await ask(pipeline(NumberlessClassifier()), *(bytes([value]) for value in range(5)))
    failed = outcomes.pop(3)
    assert isinstance(failed, InferenceFailed)
    assert "an fp32 engine may have" in str(failed)
    assert classes(outcomes) == [0, 1, 2, 4]


async def test_pictures_are_answered_in_order() -> None:
    outcomes = await ask(pipeline(FakeClassifier()), *(bytes([value]) for value in range(10)))
    assert classes(outcomes) == [value % 5 for value in range(10)]


async def test_one_bad_picture_does_not_touch_the_others() -> None:
    metrics = CountingMetrics()
    outcomes = await ask(pipeline(FakeClassifier(), metrics), b"\x01", b"!", b"\x02")
    assert isinstance(outcomes[1], BrokenPicture)
    assert classes(outcomes) == [1, 2]
    assert sorted(metrics.outcomes) == ["broken_picture", "ok", "ok"]


async def test_predictions_are_labelled_and_timed() -> None:
    [outcome] = await ask(pipeline(FakeClassifier()), b"\x03", k=5)
    assert isinstance(outcome, Classified)
    assert [one.label for one in outcome.predictions(5)] == ["label 3", "label 0", "label 1", "label 2", "label 4"]
    assert sum(one.score for one in outcome.predictions(5)) == pytest.approx(1)
    assert outcome.timing.inference == 1.5
    assert outcome.timing.queue >= 0
    assert outcome.timing.preprocess > 0


@pytest.mark.parametrize("k", [0, 6, -1])
async def test_top_k_must_be_within_the_classes(k: int) -> None:
    with pytest.raises(BadParameter, match="between 1 and 5"):
        await ask(pipeline(FakeClassifier()), b"\x01", k=k)


@pytest.mark.parametrize("timeout_ms", [0, -5, 120_001])
def test_timeouts_are_bounded(timeout_ms: int) -> None:
    with pytest.raises(BadParameter, match="120000"):
        asyncio.run(_deadline(timeout_ms))


async def _deadline(timeout_ms: int) -> None:
    pipeline(FakeClassifier()).deadline_s(timeout_ms)


async def test_too_many_pictures_in_one_request_are_refused_whole() -> None:
    with pytest.raises(PayloadTooLarge, match="at most 2"):
        await ask(pipeline(FakeClassifier(), max_pictures_per_request=2), b"\x01", b"\x02", b"\x03")


async def test_a_full_replica_refuses_and_recovers() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    line = pipeline(classifier, max_queued_pictures=2, max_pictures_per_request=2)
    taken = asyncio.create_task(ask(line, b"\x01", b"\x02"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await ask(line, b"\x03")
    classifier.gate.set()
    assert classes(await taken) == [1, 2]
    assert classes(await ask(line, b"\x03")) == [3]


async def test_a_request_whose_time_is_up_is_told_so() -> None:
    classifier = FakeClassifier()
    classifier.gate.clear()
    line = pipeline(classifier)
    [outcome] = await ask(line, b"\x01", timeout_ms=20)
    assert isinstance(outcome, DeadlineExceeded)
    assert line.admission.queued_pictures == 0


async def cancelled_after(steps: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Runs `work` in a task and cancels it at its step number `steps`; False when it was done before."""
    task = asyncio.ensure_future(work())
    for _ in range(steps):
        await asyncio.sleep(0)
        if task.done():
            break
    was_running = not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return was_running


@pytest.mark.parametrize(
    "bodies", [[b"\x01"], [b"\x01", b"!", b"\x02", b"\x03", b"\x04", b"\x02"]], ids=["one", "many"]
)
@pytest.mark.parametrize("gate_open", [True, False], ids=["flowing", "engine busy"])
async def test_a_client_that_is_gone_at_any_await_leaves_the_pipeline_healthy(
    bodies: list[bytes], gate_open: bool
) -> None:
    """The event loop is stepped one turn at a time, so that every await of the path is cancelled at once."""
    classifier = FakeClassifier()
    line = pipeline(classifier)
    cancelled_at = []
    for steps in range(60):
        if not gate_open:
            classifier.gate.clear()
        neighbour = asyncio.create_task(ask(line, b"\x03"))
        if await cancelled_after(steps, lambda: ask(line, *bodies)):
            cancelled_at.append(steps)
        classifier.gate.set()
        assert classes(await asyncio.wait_for(neighbour, 10)) == [3]
        assert classes(await asyncio.wait_for(ask(line, b"\x04"), 10)) == [4]
        assert (line.admission.queued_pictures, line.admission.queued_bytes) == (0, 0)
    # Proof that cancellation really struck from the first step on.
    assert cancelled_at[:3] == [0, 1, 2]
    await line.close()
