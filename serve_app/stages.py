"""Decoding and classifying as one service to the pipeline: what both placements look like from above."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.errors import ServeError
from serve_app.settings import BatchingSettings
from serve_app.types import Input, Priority, Ranking


@dataclass(frozen=True, slots=True)
class Scored:
    """One picture's likeliest classes and its milliseconds: waiting, decoding, in the engine; `version` of the engine
    where it may be another than these stages were made with."""

    ranking: Ranking
    queue_ms: float
    decode_ms: float
    inference_ms: float
    version: int | None = None


class Stages(Protocol):
    """From a picture to its classes. Lives on one event loop; a caller may be cancelled at any time."""

    async def score(self, body: Input, k: int, deadline_s: float, priority: Priority = "interactive") -> Scored:
        """Decodes one picture and classifies it.

        Args:
            body: the file, or the tensor.
            k: classes wanted; the ranking may have more.
            deadline_s: on the pipeline's clock; a picture that is late when a stage would begin is dropped there.
            priority: see `queueing`.

        Raises:
            DeadlineExceeded: it was late.
            ServeError: the file is refused, or the engine failed.
        """
        ...

    def refused(self, pictures: int) -> None:
        """Pictures that admission refused: demand that no stage sees otherwise."""
        ...

    def signals(self) -> dict[str, float]:
        """What the stage in front reports for autoscaling; names and meaning are those of `autoscaling.signals`."""
        ...

    def tune(self, batching: BatchingSettings) -> None:
        """Batches from now on follow these settings."""
        ...

    async def close(self) -> None:
        """Takes no more pictures, and returns when all that were taken are answered."""
        ...


def refuse(futures: Iterable[asyncio.Future[Any]], error: ServeError) -> None:
    """Ends what still waits with `error`; what its caller cancelled is done already."""
    for future in futures:
        if not future.done():
            future.set_exception(error)
