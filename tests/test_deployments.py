"""How Ray's failures between the stages reach a client. The deployments themselves run in tests/service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app import remote as remotes
from serve_app.deployments import Classifier, Preprocessor
from serve_app.deployments.replica import passed
from serve_app.errors import GpuFailed, InferenceFailed, NotReady, Overloaded, ServeError
from serve_app.lint.traps import DEFAULT_MAX_ONGOING
from serve_app.remote import RemoteClassifier
from serve_app.types import Chunk, ChunkScores
from tests.fakes import SHAPE, FakeClock, scores_of

CHUNK = Chunk(np.zeros((2, *SHAPE), np.uint8), np.full(2, 9.0, np.float32), offered_pictures=2)


class Silence(Exception):
    """No answer, not even an error."""


class FakeResponse:
    """As Ray's: awaited for the answer, or cancelled."""

    def __init__(self, chunk: Chunk, outcome: Exception | None) -> None:
        self._chunk, self._outcome = chunk, outcome
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, ChunkScores]:
        return self._answer().__await__()

    async def _answer(self) -> ChunkScores:
        if isinstance(self._outcome, Silence):
            await asyncio.Event().wait()
        if self._outcome:
            raise self._outcome
        return ChunkScores(scores_of(self._chunk.pictures), 1.0, len(self._chunk.pictures))

    def cancel(self) -> None:
        self.cancelled = True


class FakeMethod:
    def __init__(self, outcomes: tuple[Exception, ...]) -> None:
        self._outcomes = list(outcomes)
        self.sent: list[Chunk] = []
        self.responses: list[FakeResponse] = []

    def remote(self, chunk: Chunk) -> FakeResponse:
        self.sent.append(chunk)
        self.responses.append(FakeResponse(chunk, self._outcomes.pop(0) if self._outcomes else None))
        return self.responses[-1]


class FakeHandle:
    """Raises each of `outcomes` once, then answers."""

    def __init__(self, *outcomes: Exception) -> None:
        self.classify = FakeMethod(outcomes)


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), Overloaded),
        (DeploymentUnavailableError("Classifier"), NotReady),
        (RayError("serialisation"), InferenceFailed),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_a_failure_of_ray_becomes_an_announced_answer(raised: Exception, seen: type[ServeError]) -> None:
    with pytest.raises(seen) as error:
        await RemoteClassifier(FakeHandle(raised)).classify(CHUNK)
    assert "try again" in str(error.value)


async def test_scores_come_back_as_sent() -> None:
    assert (await RemoteClassifier(FakeHandle()).classify(CHUNK)).batch_size == 2


def test_the_lint_knows_what_holds_where_a_configuration_is_silent() -> None:
    for deployment in (Preprocessor, Classifier):
        assert DEFAULT_MAX_ONGOING[deployment.name] == deployment.max_ongoing_requests


@pytest.mark.parametrize("gone", [ActorDiedError(), ActorUnavailableError("gone", None), NodeDiedError("node")])
async def test_a_chunk_whose_replica_dies_is_sent_again(gone: Exception) -> None:
    handle = FakeHandle(gone)
    assert (await RemoteClassifier(handle).classify(CHUNK)).batch_size == 2
    first, second = handle.classify.sent
    assert second.pictures is first.pictures
    assert (first.offered_pictures, second.offered_pictures) == (2, 0)  # it is the same demand


async def test_a_chunk_whose_gpu_fails_is_sent_again() -> None:
    handle = FakeHandle(GpuFailed("the engine did not take the batch", ["CUDA error 700"]))
    assert (await RemoteClassifier(handle).classify(CHUNK)).batch_size == 2
    assert [chunk.offered_pictures for chunk in handle.classify.sent] == [2, 0]


async def _raises(error: Exception) -> None:
    raise error


def _failed(cause: Exception | None) -> InferenceFailed:
    error = InferenceFailed("the engine failed")
    error.__cause__ = cause
    return error


class Ended(BaseException):
    """The process would be gone."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_now(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", exit_now)


@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("error", [GpuFailed("no memory"), _failed(GpuFailed("stale"))], ids=str)
async def test_a_failed_gpu_ends_its_process(error: Exception) -> None:
    with pytest.raises(Ended):
        await passed(_raises(error))


@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("error", [_failed(None), _failed(RuntimeError("an engine on a CPU"))], ids=repr)
async def test_other_failed_checks_are_for_serve_to_count(error: Exception) -> None:
    with pytest.raises(InferenceFailed):
        await passed(_raises(error))


@pytest.mark.parametrize("gone", [ActorDiedError(), GpuFailed("stale")], ids=lambda error: type(error).__name__)
async def test_a_chunk_is_not_sent_for_ever(gone: Exception) -> None:
    handle = FakeHandle(*(gone for _ in range(10)))
    with pytest.raises(InferenceFailed, match="try again"):
        await RemoteClassifier(handle).classify(CHUNK)
    assert len(handle.classify.sent) == 1 + remotes.RESENDS


async def test_a_replica_that_falls_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes, "MIN_PATIENCE_S", 0.01)
    handle = FakeHandle(Silence())
    remote = RemoteClassifier(handle)
    remote._mean_s = 0.0
    assert (await remote.classify(CHUNK)).batch_size == 2
    assert [response.cancelled for response in handle.classify.responses] == [True, False]


async def test_patience_follows_what_answers_take() -> None:
    clock = FakeClock()
    remote = RemoteClassifier(FakeHandle(), clock)
    assert remote.patience_s == remotes.FIRST_PATIENCE_S
    for _ in range(300):
        await remote.classify(CHUNK)
    assert remote.patience_s == remotes.MIN_PATIENCE_S
    remote._mean_s = 0.7
    assert remote.patience_s == pytest.approx(7)
