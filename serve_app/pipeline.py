"""The way of a picture inside one replica: admission, the stages, top-k. Knows neither Ray nor HTTP."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.admission import Admission, ServiceRate, Ticket
from serve_app.errors import (
    BadParameter,
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
    PayloadTooLarge,
    ServeError,
)
from serve_app.manifest import Manifest
from serve_app.metrics import Metrics
from serve_app.postprocess import labelled
from serve_app.settings import Settings
from serve_app.stages import Stages
from serve_app.types import Prediction, Priority, Timing

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Classified:
    """The answer for one picture."""

    predictions: tuple[Prediction, ...]
    timing: Timing


Outcome = Classified | ServeError
"""Of one picture among several: its answer, or why there is none."""


class Pipeline:
    """Serves one model in one replica.

    Args:
        manifest: of the engine that `stages` run.
        settings: validated settings.
        stages: decoding and classifying, in either placement; on the same clock.
        engine_pictures_per_s: measured best rate of the engine, the first estimate of how fast waits pass.
        picture_bytes: see `admission.Admission`.
        metrics: where counts go.
        clock: monotonic seconds; deadlines are on this clock.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: Settings,
        stages: Stages,
        *,
        engine_pictures_per_s: float,
        metrics: Metrics,
        picture_bytes: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.manifest = manifest
        self.settings = settings
        self.clock = clock
        self.stages = stages
        self.admission = Admission(
            settings.limits,
            ServiceRate(engine_pictures_per_s, clock=clock),
            picture_bytes=picture_bytes,
            on_refused=self._refused,
            clock=clock,
        )
        self._metrics = metrics

    def deadline_s(self, timeout_ms: int | None) -> float:
        """When a request that arrives now is late, on this pipeline's clock.

        Args:
            timeout_ms: what the client asks for; None is the default of the settings.

        Raises:
            BadParameter: not within 1..limits.max_timeout_ms.
        """
        limits = self.settings.limits
        timeout_ms = limits.default_timeout_ms if timeout_ms is None else timeout_ms
        if not 1 <= timeout_ms <= limits.max_timeout_ms:
            raise BadParameter(f"the timeout must be between 1 and {limits.max_timeout_ms} ms")
        return self.clock() + timeout_ms / 1e3

    async def classify(self, bodies: Sequence[bytes], k: int, deadline_s: float, ticket: Ticket) -> list[Outcome]:
        """Classifies the pictures of one request side by side.

        Args:
            bodies: one picture file each.
            k: predictions per picture, 1..classes.
            deadline_s: from `deadline_s`.
            ticket: of this request; the pictures are counted into it.

        Returns:
            One outcome per body, in order: a picture that is refused does not touch the others.

        Raises:
            BadParameter, PayloadTooLarge, Overloaded: the request as a whole is refused.
        """
        if not 1 <= k <= self.manifest.num_classes:
            raise BadParameter(f"top_k must be between 1 and {self.manifest.num_classes}, the classes of this model")
        if len(bodies) > self.settings.limits.max_pictures_per_request:
            most = self.settings.limits.max_pictures_per_request
            raise PayloadTooLarge(f"{len(bodies)} pictures in one request, at most {most} are allowed; send fewer")
        ticket.add_pictures(len(bodies), deadline_s - self.clock())
        if len(bodies) == 1:
            return [await self._outcome(bodies[0], k, deadline_s, ticket.priority)]
        return list(await asyncio.gather(*(self._outcome(body, k, deadline_s, ticket.priority) for body in bodies)))

    def _refused(self, pictures: int) -> None:
        self.stages.refused(pictures)
        for _ in range(pictures):
            self._metrics.refused(Overloaded.code)

    async def _outcome(self, body: bytes, k: int, deadline_s: float, priority: Priority) -> Outcome:
        try:
            async with asyncio.timeout(deadline_s - self.clock()):
                answer = await self._classify_one(body, k, deadline_s, priority)
        except TimeoutError:
            return self._counted(DeadlineExceeded("the time of this request was up before its answer was ready"))
        except ServeError as error:
            return self._counted(error)
        self._metrics.answered(answer.timing)
        return answer

    async def _classify_one(self, body: bytes, k: int, deadline_s: float, priority: Priority) -> Classified:
        scored = await self.stages.score(body, k, deadline_s, priority)
        if not math.isfinite(scored.ranking.scores[0]):  # float16 ends at 65,504, and some picture may go beyond
            raise InferenceFailed("the engine has no number for this picture in its precision; an fp32 engine may have")
        predictions = labelled(scored.ranking, self.manifest.labels, k)
        return Classified(predictions, Timing(scored.queue_ms, scored.decode_ms, scored.inference_ms))

    def _counted(self, error: ServeError) -> ServeError:
        self._metrics.refused(error.code)
        return error

    async def close(self) -> None:
        """Answers what was taken, then stops the threads."""
        await self.stages.close()
