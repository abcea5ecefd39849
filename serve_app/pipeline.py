"""The way of a picture inside one replica: admission, the stages, top-k. Knows neither Ray nor HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app import request_log, tracing
from serve_app.admission import Admission, ByteBudget, ServiceRate, Ticket
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
from serve_app.types import Input, Prediction, Priority, Ranking, Timing

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Classified:
    """The answer for one picture: its likeliest classes, at least as many as were wanted, and whose classes they are.

    Attributes:
        manifest: of the engine that answered; another version may have taken its place since.
    """

    ranking: Ranking
    manifest: Manifest
    timing: Timing

    def predictions(self, k: int) -> tuple[Prediction, ...]:
        """The first k, with their labels."""
        return labelled(self.ranking, self.manifest.labels, k)


Outcome = Classified | ServeError
"""Of one picture among several: its answer, or why there is none."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What a pipeline serves with.

    Attributes:
        manifest: of the engine that `stages` run.
        stages: decoding and classifying, in either placement; on the pipeline's clock.
        engine_pictures_per_s: measured best rate of the engine, the first estimate of how fast waits pass.
    """

    manifest: Manifest
    stages: Stages
    engine_pictures_per_s: float


class Pipeline:
    """Serves one model in one replica.

    Args:
        name: the model's, for clients.
        settings: validated settings, of this model.
        serving: at first; see `replace`.
        manifest_of: reads the manifest of a version that classifiers elsewhere may have changed to.
        budget, picture_bytes: see `admission.Admission`.
        metrics: where counts go.
        clock: monotonic seconds; deadlines are on this clock.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        serving: Serving,
        *,
        metrics: Metrics,
        manifest_of: Callable[[int], Manifest] | None = None,
        budget: ByteBudget | None = None,
        picture_bytes: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.name = name
        self.settings = settings
        self.clock = clock
        self._serving = serving
        self._manifest_of = manifest_of
        self._manifests: dict[int, Manifest] = {}
        self.admission = Admission(
            settings.limits,
            ServiceRate(serving.engine_pictures_per_s, clock=clock),
            budget=budget,
            picture_bytes=picture_bytes,
            on_refused=self._refused,
            clock=clock,
        )
        self._metrics = metrics

    @property
    def manifest(self) -> Manifest:
        """Of the version that new requests meet."""
        return self._serving.manifest

    @property
    def stages(self) -> Stages:
        return self._serving.stages

    async def replace(self, serving: Serving) -> None:
        """Serves new requests with `serving`; returns when those before are answered and their stages closed."""
        before, self._serving = self._serving, serving
        self.admission.engine_changed(ServiceRate(serving.engine_pictures_per_s, clock=self.clock))
        await before.stages.close()

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

    async def classify(self, inputs: Sequence[Input], k: int, deadline_s: float, ticket: Ticket) -> list[Outcome]:
        """Classifies the pictures of one request side by side.

        Args:
            inputs: one picture each.
            k: predictions per picture, 1..classes.
            deadline_s: from `deadline_s`.
            ticket: of this request; the pictures are counted into it.

        Returns:
            One outcome per picture, in order: a picture that is refused does not touch the others.

        Raises:
            BadParameter, PayloadTooLarge, Overloaded: the request as a whole is refused.
        """
        if entry := request_log.current():
            entry.asked(self.name, inputs, ticket.priority)
        if not 1 <= k <= self.manifest.num_classes:
            raise BadParameter(f"top_k must be between 1 and {self.manifest.num_classes}, the classes of this model")
        if len(inputs) > self.settings.limits.max_pictures_per_request:
            most = self.settings.limits.max_pictures_per_request
            raise PayloadTooLarge(f"{len(inputs)} pictures in one request, at most {most} are allowed; send fewer")
        ticket.add_pictures(len(inputs), deadline_s - self.clock())
        if len(inputs) == 1:
            return [await self._outcome(inputs[0], k, deadline_s, ticket.priority)]
        return list(await asyncio.gather(*(self._outcome(one, k, deadline_s, ticket.priority) for one in inputs)))

    def _refused(self, pictures: int) -> None:
        self.stages.refused(pictures)
        for _ in range(pictures):
            self._metrics.refused(Overloaded.code)

    async def _outcome(self, picture: Input, k: int, deadline_s: float, priority: Priority) -> Outcome:
        if not tracing.on():
            return await self._timely(picture, k, deadline_s, priority)
        with tracing.picture(self.name, self.manifest.version, picture, priority) as span:
            outcome = await self._timely(picture, k, deadline_s, priority)
            if span is not None and isinstance(outcome, ServeError):
                span.failed(outcome)
            elif span is not None and isinstance(outcome, Classified):
                span.answered(outcome.timing, outcome.manifest.version)
        return outcome

    async def _timely(self, picture: Input, k: int, deadline_s: float, priority: Priority) -> Outcome:
        try:
            async with asyncio.timeout(deadline_s - self.clock()):
                answer = await self._classify_one(picture, k, deadline_s, priority)
        except TimeoutError:
            return self._counted(DeadlineExceeded("the time of this request was up before its answer was ready"))
        except ServeError as error:
            return self._counted(error)
        self._metrics.answered(answer.timing)
        if entry := request_log.current():
            entry.answered(answer.timing, answer.manifest.version)
        return answer

    async def _classify_one(self, picture: Input, k: int, deadline_s: float, priority: Priority) -> Classified:
        serving = self._serving
        scored = await serving.stages.score(picture, k, deadline_s, priority)
        if not math.isfinite(scored.ranking.scores[0]):  # float16 ends at 65,504, and some picture may go beyond
            raise InferenceFailed("the engine has no number for this picture in its precision; an fp32 engine may have")
        manifest = serving.manifest
        if scored.version is not None and scored.version != manifest.version:
            manifest = self._other_version(scored.version)
        return Classified(scored.ranking, manifest, Timing(scored.queue_ms, scored.decode_ms, scored.inference_ms))

    def _other_version(self, version: int) -> Manifest:
        """Classifiers change one by one, so two versions may answer for a while."""
        if version not in self._manifests:
            assert self._manifest_of is not None  # stages that name versions come with it
            self._manifests[version] = self._manifest_of(version)
        manifest = self._manifests[version]
        self._manifests[self.manifest.version] = self.manifest
        self._serving = dataclasses.replace(self._serving, manifest=manifest)
        return manifest

    def _counted(self, error: ServeError) -> ServeError:
        self._metrics.refused(error.code)
        if entry := request_log.current():
            entry.picture_failed(error)
        return error

    async def close(self) -> None:
        """Answers what was taken, then stops the threads."""
        await self.stages.close()
