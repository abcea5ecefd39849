"""How Ray's failures between the stages reach a client. The deployments themselves run in tests/service."""

from __future__ import annotations

import numpy as np
import pytest
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.deployments import (
    MAX_AUTO_MERGE_WAIT_S,
    Classifier,
    Preprocessor,
    RemoteClassifier,
    _chunk_sizes,
    merge_wait_s,
)
from serve_app.errors import InferenceFailed, NotReady, Overloaded, ServeError
from serve_app.latency import LatencyTable
from serve_app.lint.traps import DEFAULT_MAX_ONGOING
from serve_app.types import ChunkScores
from tests.fakes import SHAPE, scores_of

CHUNK = np.zeros((2, *SHAPE), np.uint8)


class FakeMethod:
    def __init__(self, outcome: Exception | None) -> None:
        self._outcome = outcome

    async def remote(self, pictures: np.ndarray) -> ChunkScores:
        if self._outcome:
            raise self._outcome
        return ChunkScores(scores_of(pictures), 1.0, len(pictures))


class FakeHandle:
    def __init__(self, outcome: Exception | None = None) -> None:
        self.classify = FakeMethod(outcome)


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), Overloaded),
        (DeploymentUnavailableError("Classifier"), NotReady),
        (RayActorError(), InferenceFailed),
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


def test_a_batch_is_counted_in_pictures() -> None:
    assert _chunk_sizes([CHUNK, CHUNK[:1]]) == 3


def test_the_merge_wait_follows_the_measured_latency() -> None:
    assert merge_wait_s("auto", LatencyTable.of({1: 2.0})) == pytest.approx(0.002)
    assert merge_wait_s("auto", LatencyTable.of({1: 40.0})) == MAX_AUTO_MERGE_WAIT_S
    assert merge_wait_s(0.02, LatencyTable.of({1: 2.0})) == 0.02
