"""The client for code on an event loop: many requests side by side."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, TypeAlias

import httpx

from serve_app.client import exchange as core
from serve_app.client.answers import Answer, LiveView, Model, Reply, parse_answer, parse_live, parse_models
from serve_app.client.errors import ClientError, Refused, Unreachable
from serve_app.client.exchange import Broken, Call, PictureFile, Policy, Send, Wait
from serve_app.types import Priority

WhileRefused: TypeAlias = Callable[[Refused], AbstractContextManager[Any]]
AT_ONCE = 8
NO_LIMIT = httpx.Limits(max_connections=None, max_keepalive_connections=64)
"""How many requests are under way is decided by who calls; a pool that holds some back would eat their time."""


class AsyncClient:
    """As `Client`, with coroutines; one may serve any number of tasks of one event loop.

    Args:
        address, timeout_s, retries, http, clock, sleep: as of `Client`.
        policy: instead of `retries`, where refusals and broken connections are to be told apart.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = core.DEFAULT_TIMEOUT_S,
        retries: int = core.DEFAULT_RETRIES,
        policy: Policy | None = None,
        http: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.address = core.base_address(address)
        self._timeout_s = timeout_s
        self._policy = policy or Policy(retries, retries)
        self._http = http or httpx.AsyncClient(limits=NO_LIMIT)
        self._owned = http is None
        self._clock = clock
        self._sleep = sleep

    async def classify(
        self,
        picture: PictureFile,
        *,
        top_k: int | None = None,
        model: str | None = None,
        priority: Priority = "interactive",
        timeout_s: float | None = None,
        while_refused: WhileRefused = nullcontext,
    ) -> Answer:
        """Classifies one picture; its file is read in a thread.

        Args:
            top_k, model, priority, timeout_s: as of `Client.classify`.
            while_refused: makes a context from each 429, which is held while it is waited out.

        Raises:
            ClientError: one of its subclasses, see `serve_app.client.errors`.
            TypeError: `picture` is neither bytes, a path nor a binary file.
        """
        body = picture if isinstance(picture, bytes) else await asyncio.to_thread(core.read_picture, picture)
        call = core.predict_call([body], top_k, model, priority)
        return parse_answer(await self._run(call, timeout_s, while_refused=while_refused))

    async def classify_many(
        self,
        pictures: Iterable[PictureFile],
        *,
        top_k: int | None = None,
        model: str | None = None,
        priority: Priority = "interactive",
        timeout_s: float | None = None,
        at_once: int = AT_ONCE,
    ) -> AsyncIterator[Answer | ClientError]:
        """Yields one answer per picture, in order; the error of a picture that failed stands in its place.

        Pictures are read as they are needed; `at_once` of them are under way.

        Args:
            timeout_s: for each picture.

        Raises:
            Unreachable: nobody answers; what was yielded before stands.
        """

        async def ask(picture: PictureFile) -> Answer | ClientError:
            try:
                return await self.classify(picture, top_k=top_k, model=model, priority=priority, timeout_s=timeout_s)
            except ClientError as error:
                return error

        under_way: deque[asyncio.Task[Answer | ClientError]] = deque()
        try:
            for picture in pictures:
                under_way.append(asyncio.create_task(ask(picture)))
                if len(under_way) == at_once:
                    yield _unless_unreachable(await under_way.popleft())
            while under_way:
                yield _unless_unreachable(await under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def models(self) -> tuple[Model, ...]:
        """What is served, the default model first."""
        return parse_models(await self._run(Call("GET", "/models")))

    async def ready(self) -> bool:
        """Whether every engine is loaded and warmed; False also where nobody answers yet. Does not retry."""
        try:
            return core.is_ready(await self._run(Call("GET", "/readyz"), policy=Policy(0, 0)))
        except Unreachable:
            return False

    async def live(self) -> LiveView:
        """Rates and backlog of the last seconds."""
        return parse_live(await self._run(Call("GET", "/live")))

    async def close(self) -> None:
        """Closes its connections."""
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(
        self,
        call: Call,
        timeout_s: float | None = None,
        *,
        policy: Policy | None = None,
        while_refused: WhileRefused = nullcontext,
    ) -> Reply:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        steps = core.exchange(call, timeout_s, policy or self._policy, self._clock)
        result: Reply | Broken | None = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Wait):
                with while_refused(step.refusal) if step.refusal else nullcontext():
                    await self._sleep(step.seconds)
                result = None
            else:
                result = await self._send(step)

    async def _send(self, step: Send) -> Reply | Broken:
        answering = False
        call = step.call
        try:
            async with (
                asyncio.timeout(step.timeout_s),
                self._http.stream(
                    call.method,
                    self.address + call.path,
                    params=call.params,
                    headers=call.headers,
                    content=call.content(),
                    files=call.files(),
                    timeout=httpx.Timeout(None, connect=core.CONNECT_S),
                ) as response,
            ):
                answering = True
                return Reply(response.status_code, response.headers, await response.aread())
        except TimeoutError:
            return Broken(core.time_up(step.timeout_s))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            make = core.half_an_answer if answering else core.unreachable
            return Broken(make(self.address, error))


def _unless_unreachable(result: Answer | ClientError) -> Answer | ClientError:
    if isinstance(result, Unreachable):
        raise result
    return result
