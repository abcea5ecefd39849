"""A small HTTP server in a thread, whose answers a test decides; for the load generator's tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Write = Callable[[bytes], None]
Handler = Callable[["LoadServer", Write], Awaitable[bool]]
"""Answers one request; false hangs up afterwards."""


def answer(status: int = 200, body: bytes = b"{}", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def fine(server: LoadServer, write: Write) -> bool:
    write(answer())
    return True


@dataclass
class LoadServer:
    """What arrived so far."""

    handler: Handler
    url: str = ""
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.bodies.append(await reader.readexactly(length))
                self.heads.append(head)
                if not await self.handler(self, writer.write):
                    break
        writer.close()
        with suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()


@contextmanager
def serving(handler: Handler = fine) -> Iterator[LoadServer]:
    """A server on a free port of 127.0.0.1, gone afterwards."""
    server, ready, end = LoadServer(handler), threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1024)
        server.url = "http://127.0.0.1:{1}/predict?top_k=1".format(*listener.sockets[0].getsockname())
        loops.append(asyncio.get_running_loop())
        ready.set()
        await end.wait()
        listener.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loops[0].call_soon_threadsafe(end.set)
        thread.join(10)
