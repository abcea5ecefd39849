"""A server of asyncio in a thread, for as long as a test needs it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def listening(serve: Serve) -> Iterator[str]:
    """`http://127.0.0.1:PORT` of a free port on which `serve` has each connection; gone afterwards."""
    ready, end = threading.Event(), asyncio.Event()
    found: list[tuple[asyncio.AbstractEventLoop, str]] = []

    async def main() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
        host, port = listener.sockets[0].getsockname()
        found.append((asyncio.get_running_loop(), f"http://{host}:{port}"))
        ready.set()
        await end.wait()
        listener.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(10)
    [(loop, address)] = found
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
