"""A service over real HTTP in a thread, whose answers a test decides; for the clients' tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.listening import listening

HANG_UP = b""
"""Instead of an answer: the connection is closed."""


class Half(bytes):
    """The beginning of an answer, after which the connection is closed."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Request], Awaitable[bytes]]


def http(status: int, document: Any, **headers: str) -> bytes:
    """A raw HTTP answer; bytes as they are, anything else as JSON."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def result(class_id: int = 1, k: int = 3) -> dict[str, Any]:
    """The part of an answer that belongs to one picture."""
    predictions = [{"class_id": class_id + n, "label": f"label, {class_id + n}", "score": 0.5 / 2**n} for n in range(k)]
    return {"predictions": predictions, "timing_ms": {"queue": 0.5, "preprocess": 2.0, "inference": 8.0}}


ABOUT = {"model": "fake", "version": 2, "trained": True}


def answered(class_id: int = 1, k: int = 3) -> bytes:
    return http(200, ABOUT | result(class_id, k))


def failed(status: int, code: str, **headers: str) -> bytes:
    return http(status, {"error": {"code": code, "message": f"this is {code}; do something"}}, **headers)


def refused(retry_after: str = "2") -> bytes:
    return failed(429, "overloaded", retry_after=retry_after)


MODELS = http(
    200,
    {
        "models": [
            {"name": "fake", "version": 2, "trained": True, "num_classes": 5, "default": True, "backend": "openvino"},
            {"name": "flowers", "version": 1, "trained": False, "num_classes": 2, "default": False},
        ]
    },
)


async def fine(request: Request) -> bytes:
    """A picture's class is its first byte; one that begins with B is broken."""
    if request.path == "/models":
        return MODELS
    if request.body[:1] == b"B":
        return failed(422, "broken_picture")
    return answered(request.body[0], int(request.query.get("top_k", ["3"])[0]))


@dataclass
class Server:
    """Answers `script` in order to `POST /predict`, then by `handler`; keeps what was asked."""

    handler: Handler = fine
    script: list[bytes] = field(default_factory=list)
    address: str = ""
    asked: list[Request] = field(default_factory=list)

    @property
    def predictions(self) -> list[Request]:
        return [one for one in self.asked if one.path == "/predict"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while raw := await self._answer(await _read(reader)):
                writer.write(raw)
                if isinstance(raw, Half):
                    break
        writer.close()
        with suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()

    async def _answer(self, request: Request) -> bytes:
        self.asked.append(request)
        if self.script and request.path == "/predict":
            return self.script.pop(0)
        return await self.handler(request)


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split()
    pairs = [line.partition(":") for line in head[1:] if line]
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return Request(method, parts.path, parse_qs(parts.query), headers, body)


@contextmanager
def serving(handler: Handler = fine, *script: bytes) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1, gone afterwards."""
    server = Server(handler, list(script))
    with listening(server.serve) as server.address:
        yield server
