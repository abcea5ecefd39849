"""A small HTTP server in a thread, whose answers a test decides; for the load generator's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.listening import listening

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
    server = LoadServer(handler)
    with listening(server.serve) as address:
        server.url = f"{address}/predict?top_k=1"
        yield server
