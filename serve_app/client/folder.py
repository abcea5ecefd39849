"""Classifies many files side by side, as fast as the service takes them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.client.answers import Answer
from serve_app.client.asynchronous import AsyncClient
from serve_app.client.errors import ClientError, Refused, TimeUp, Unreachable
from serve_app.client.pace import Pace
from serve_app.types import Priority

Told = Callable[[str, Answer | ClientError], None]


@dataclass(slots=True)
class Totals:
    """What a run came to.

    Attributes:
        answered: pictures.
        failed: pictures by error code.
        refusals: 429s that were waited out.
        waiting_s: during which at least one picture was waiting for a refusal to pass.
        most_at_once: pictures on their way or inside the service.
    """

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    refusals: int = 0
    waiting_s: float = 0.0
    most_at_once: int = 0
    _waiting_until_s: float = 0.0

    def add(self, result: Answer | ClientError) -> None:
        if isinstance(result, ClientError):
            self.failed[result.code] += 1
        else:
            self.answered += 1

    def refused(self, now_s: float, retry_after_s: float) -> None:
        until_s = max(self._waiting_until_s, now_s + retry_after_s)
        self.waiting_s += until_s - max(self._waiting_until_s, now_s)
        self._waiting_until_s = until_s
        self.refusals += 1


class FolderRun:
    """One run over many pictures.

    Args:
        client: asks the service, and follows its refusals.
        pace: how many at once.
        told: of each result, as they come, on the event loop.
        totals: are counted up.
        top_k, model, priority: of every picture.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: AsyncClient,
        pace: Pace,
        told: Told,
        totals: Totals,
        *,
        top_k: int | None = None,
        model: str | None = None,
        priority: Priority = "batch",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.totals = totals
        self.pace = pace
        self._client = client
        self._told = told
        self._top_k = top_k
        self._model = model
        self._priority = priority
        self._clock = clock
        self._under_way = 0
        self._asleep = 0
        self._left = asyncio.Event()
        self._stopped_by: Exception | None = None

    async def run(self, paths: Sequence[str]) -> None:
        """Classifies `paths`; a picture that fails does not stop the others.

        Raises:
            Unreachable: the service went away.
            OSError: a result could not be written. In both cases pictures under way were waited for.
        """
        async with asyncio.TaskGroup() as group:
            for path in paths:
                await self._room()
                if self._stopped_by is not None:
                    break
                self._under_way += 1
                self.totals.most_at_once = max(self.totals.most_at_once, self._under_way - self._asleep)
                group.create_task(self._one(path))
        if self._stopped_by is not None:
            raise self._stopped_by

    async def _room(self) -> None:
        """Waits until one more picture may be sent. One that sleeps is not in the service: were it counted there, half
        of a small window would sleep whole seconds for a queue that is gone in a tenth of one."""
        while self._stopped_by is None and (
            self._under_way - self._asleep >= self.pace.window or self._under_way >= self.pace.most
        ):
            self._left.clear()
            await self._left.wait()

    async def _one(self, path: str) -> None:
        try:
            result = await self._ask(path)
            if not isinstance(self._stopped_by, OSError):  # a record behind half of another would spoil both
                self._told(path, result)
                self.totals.add(result)
        except (Unreachable, OSError) as error:
            self._stopped_by = error
        finally:
            self._under_way -= 1
            self._left.set()

    async def _ask(self, path: str) -> Answer | ClientError:
        number = self.pace.sent()

        @contextmanager
        def asleep(refusal: Refused) -> Iterator[None]:
            nonlocal number
            self.totals.refused(self._clock(), refusal.retry_after_s)
            self.pace.refused(number)
            self._asleep += 1
            self._left.set()
            try:
                yield
            finally:
                self._asleep -= 1
                number = self.pace.sent()

        try:
            answer = await self._client.classify(
                Path(path), top_k=self._top_k, model=self._model, priority=self._priority, while_refused=asleep
            )
        except Unreachable:
            raise
        except ClientError as error:
            if isinstance(error, Refused | TimeUp):
                self.pace.refused(number)
            else:
                self.pace.answered()
            return error
        self.pace.answered()
        return answer
