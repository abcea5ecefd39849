"""Requests of a stream side by side, answers in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Answer]], most: int
) -> AsyncIterator[Answer]:
    """The answers to `requests`, each as soon as it and those before it are there.

    Args:
        answer: must not raise.
        most: at once; the client is held up then, by gRPC.

    Raises:
        what `requests` raises, after the answers to those before.
    """
    room = asyncio.Semaphore(most)
    begun: asyncio.Queue[asyncio.Future[Answer] | None] = asyncio.Queue()

    async def begin() -> None:
        try:
            async for request in requests:
                await room.acquire()
                begun.put_nowait(asyncio.ensure_future(answer(request)))
        finally:
            begun.put_nowait(None)

    reader = asyncio.create_task(begin())
    current: asyncio.Future[Answer] | None = None
    try:
        while (current := await begun.get()) is not None:
            yield await current
            room.release()
        await reader
    finally:  # the client may have gone away
        reader.cancel()
        for one in (current, *_rest(begun)):
            if one is not None:
                one.cancel()


def _rest(queue: asyncio.Queue[Answer]) -> list[Answer]:
    rest = []
    with suppress(asyncio.QueueEmpty):
        while True:
            rest.append(queue.get_nowait())
    return rest
