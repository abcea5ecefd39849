"""Classifier replicas behind a handle of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.errors import GpuFailed, InferenceFailed, NotReady, Overloaded
from serve_app.latency import LatencyTable
from serve_app.types import Chunk, ChunkScores

logger = logging.getLogger("serve_app")
PATIENCE, MIN_PATIENCE_S, FIRST_PATIENCE_S = 10.0, 1.0, 30.0
"""Ten times the mean answer is not slow any more, it is silence: a machine without power closes no connection, and gRPC
gives up on it after a minute. At first an answer may have to wait for a replica to start."""
RESENDS = 3
"""A router that does not know yet that a replica is gone may choose it again."""
_GONE = (ActorDiedError, ActorUnavailableError, NodeDiedError, WorkerCrashedError)


class RemoteClassifier:
    """Classifier replicas behind a handle; satisfies `batching.Classifier`.

    Args:
        handle: of the deployment.
        clock: monotonic seconds.
    """

    def __init__(self, handle: DeploymentHandle, clock: Callable[[], float] = time.monotonic) -> None:
        self._handle = handle
        self._clock = clock
        self._mean_s = FIRST_PATIENCE_S / PATIENCE

    @property
    def patience_s(self) -> float:
        """How long an answer may take before its replica is taken for dead."""
        return max(MIN_PATIENCE_S, PATIENCE * self._mean_s)

    async def classify(self, chunk: Chunk) -> ChunkScores:
        """See `batching.Classifier`. Ray's errors become ours, so that a client sees 429 and 503, not 500.

        A chunk whose replica, node or GPU dies, or falls silent, is sent again, to another if the router is so kind:
        classifying twice does no harm.
        """
        try:
            for _ in range(RESENDS):
                try:
                    async with asyncio.timeout(self.patience_s):
                        return await self._send(chunk)
                except (*_GONE, GpuFailed, TimeoutError) as error:
                    logger.warning("a classifier went away (%s); sending its chunk again", type(error).__name__)
                    chunk = replace(chunk, offered_pictures=0)
            return await self._send(chunk)
        except BackPressureError as error:
            raise Overloaded("the classifiers are full; try again later", error.retry_after_s or 1.0) from None
        except RayServeException as error:
            raise NotReady(f"no classifier is available ({type(error).__name__}); try again in a second") from error
        except (RayError, GpuFailed) as error:
            logger.exception("a chunk of %d pictures failed at the classifier", len(chunk.pictures))
            raise InferenceFailed("the classifier failed; try again, the operator's log says why") from error

    async def _send(self, chunk: Chunk) -> ChunkScores:
        sent_s = self._clock()
        response = self._handle.classify.remote(chunk)
        try:
            scores: ChunkScores = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        self._mean_s += 0.05 * (self._clock() - sent_s - self._mean_s)
        return scores

    async def latency(self) -> LatencyTable:
        """Of the replica that answers first; waits for one to be warm."""
        return await self._handle.latency.remote()  # type: ignore[no-any-return]

    async def warm(self, timeout_s: float) -> bool:
        """Whether a replica is there and its engine warm."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.latency()
        except (TimeoutError, RayServeException, RayError):
            return False
        return True
