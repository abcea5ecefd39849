"""How Ray's failures between the stages reach a client. The deployments themselves run in tests/service."""

from __future__ import annotations

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.deployments import (
    Classifier,
    Preprocessor,
    RemoteClassifier,
)
from serve_app.errors import InferenceFailed, NotReady, Overloaded, ServeError
from serve_app.lint.traps import DEFAULT_MAX_ONGOING
from serve_app.types import Chunk, ChunkScores
from tests.fakes import SHAPE, scores_of

CHUNK = Chunk(np.zeros((2, *SHAPE), np.uint8), np.full(2, 9.0, np.float32), offered_pictures=2)


class FakeMethod:
    def __init__(self, outcomes: tuple[Exception, ...]) -> None:
        self._outcomes = list(outcomes)
        self.sent: list[Chunk] = []

    async def remote(self, chunk: Chunk) -> ChunkScores:
        self.sent.append(chunk)
        if self._outcomes:
            raise self._outcomes.pop(0)
        return ChunkScores(scores_of(chunk.pictures), 1.0, len(chunk.pictures))


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
async def test_a_chunk_whose_replica_dies_is_sent_once_more(gone: Exception) -> None:
    handle = FakeHandle(gone)
    assert (await RemoteClassifier(handle).classify(CHUNK)).batch_size == 2
    first, second = handle.classify.sent
    assert second.pictures is first.pictures
    assert (first.offered_pictures, second.offered_pictures) == (2, 0)  # it is the same demand


async def test_a_chunk_is_not_sent_for_ever() -> None:
    handle = FakeHandle(ActorDiedError(), ActorDiedError())
    with pytest.raises(InferenceFailed, match="try again"):
        await RemoteClassifier(handle).classify(CHUNK)
    assert len(handle.classify.sent) == 2
