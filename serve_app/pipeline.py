"""The way of a picture inside one replica: admission, decode, gather, classify, top-k. Knows neither Ray nor HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from serve_app.admission import Admission, ServiceRate, Ticket
from serve_app.batching import Classifier, Clock, Gatherer
from serve_app.errors import BadParameter, DeadlineExceeded, PayloadTooLarge, ServeError
from serve_app.manifest import Manifest
from serve_app.metrics import Metrics
from serve_app.postprocess import top_k
from serve_app.preprocess import make_preprocess
from serve_app.settings import Settings
from serve_app.types import Picture, Prediction, Timing

Decode = Callable[[bytes], Picture]


@dataclass(frozen=True, slots=True)
class Classified:
    """The answer for one picture."""

    predictions: tuple[Prediction, ...]
    timing: Timing


Outcome = Classified | ServeError
"""Of one picture among several: its answer, or why there is none."""


class DecodePool:
    """Decodes in threads, `threads` pictures at a time, first come first served.

    A decode that has begun cannot be stopped, so its place is freed when its thread is done, not when its caller
    has gone away.
    """

    def __init__(self, decode: Decode, threads: int, clock: Clock = time.monotonic) -> None:
        self._decode = decode
        self._clock = clock
        self._places = asyncio.Semaphore(threads)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(self, body: bytes, deadline_s: float) -> tuple[Picture, float, float]:
        """Decodes one picture file.

        Returns:
            The picture, milliseconds waited for a thread, milliseconds of decoding.

        Raises:
            DeadlineExceeded: the deadline passed before a thread was free.
            RequestError: the file is refused.
        """
        since_s = self._clock()
        await self._places.acquire()
        started_s = self._clock()
        if started_s >= deadline_s:
            self._places.release()
            raise DeadlineExceeded("the time of this request was up before it could be decoded")
        work: Future[tuple[Picture, float]] = self._executor.submit(self._timed, body)
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._places.release))
        picture, decode_ms = await asyncio.wrap_future(work)
        return picture, (started_s - since_s) * 1e3, decode_ms

    def _timed(self, body: bytes) -> tuple[Picture, float]:
        started_s = self._clock()
        picture = self._decode(body)
        return picture, (self._clock() - started_s) * 1e3

    def close(self) -> None:
        self._executor.shutdown(wait=False)


class Pipeline:
    """Serves one model in one replica.

    Args:
        manifest: of the engine that `classifier` runs.
        settings: validated settings.
        classifier: in this process, or behind a handle.
        decode_threads: pictures decoded at once.
        engine_pictures_per_s: measured best rate of the engine, the first estimate of how fast waits pass.
        metrics: where counts go.
        decode: bytes to a picture; by default what `settings.preprocess` says.
        clock: monotonic seconds; deadlines are on this clock.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: Settings,
        classifier: Classifier,
        *,
        decode_threads: int,
        engine_pictures_per_s: float,
        metrics: Metrics,
        decode: Decode | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        spec = manifest.input
        self.manifest = manifest
        self.settings = settings
        self.clock = clock
        self.admission = Admission(settings.limits, ServiceRate(engine_pictures_per_s, clock=clock))
        self._metrics = metrics
        decode = decode or make_preprocess(settings.preprocess.mode, spec, settings.limits.max_pixels)
        self._pool = DecodePool(decode, decode_threads, clock)
        self._gatherer = Gatherer(
            classifier,
            (spec.height, spec.width, 3),
            max_chunk=settings.batching.max_batch_size,
            max_in_flight=settings.batching.max_in_flight,
            clock=clock,
        )

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
            return [await self._outcome(bodies[0], k, deadline_s)]
        return list(await asyncio.gather(*(self._outcome(body, k, deadline_s) for body in bodies)))

    async def _outcome(self, body: bytes, k: int, deadline_s: float) -> Outcome:
        try:
            async with asyncio.timeout(deadline_s - self.clock()):
                answer = await self._classify_one(body, k, deadline_s)
        except TimeoutError:
            return self._counted(DeadlineExceeded("the time of this request was up before its answer was ready"))
        except ServeError as error:
            return self._counted(error)
        self._metrics.answered(answer.timing)
        return answer

    async def _classify_one(self, body: bytes, k: int, deadline_s: float) -> Classified:
        picture, decode_wait_ms, decode_ms = await self._pool.decode(body, deadline_s)
        scored = await self._gatherer.submit(picture, deadline_s)
        predictions = top_k(scored.logits, self.manifest.labels, k)
        return Classified(predictions, Timing(decode_wait_ms + scored.queue_ms, decode_ms, scored.inference_ms))

    def _counted(self, error: ServeError) -> ServeError:
        self._metrics.refused(error.code)
        return error

    async def close(self) -> None:
        """Answers what was taken, then stops the threads."""
        await self._gatherer.close()
        self._pool.close()
