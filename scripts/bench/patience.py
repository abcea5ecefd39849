"""Clients that do as they are told: a request that is refused with 429 is sent again after its Retry-After, no sooner.

What they measure is whether that time was right: from the first refusal until the request that was answered was sent,
divided by the first Retry-After.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SEND_ATTEMPTS = 50


@dataclass(slots=True)
class Patience:
    """What a crowd of patient clients saw.

    Attributes:
        answered: requests that were answered, at whichever attempt.
        refusals: answers 429.
        errors: anything else, as text.
        promised_s, waited_s: of each request that was refused at first and answered in the end.
    """

    answered: int = 0
    refusals: int = 0
    errors: list[str] = field(default_factory=list)
    promised_s: list[float] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Waited over promised; 1 is a promise that was kept to the second."""
        return [waited / promised for waited, promised in zip(self.waited_s, self.promised_s, strict=True)]

    def within(self, factor: float) -> float:
        """Share (0..1) of the promises that were right within `factor`; NaN where there were none."""
        ratios = self.ratios()
        return sum(1 / factor <= ratio <= factor for ratio in ratios) / len(ratios) if ratios else float("nan")

    def median_ratio(self) -> float:
        """NaN where nothing was promised."""
        return statistics.median(self.ratios()) if self.waited_s else float("nan")


def patient_crowd(url: str, body: bytes, *, clients: int, seconds: float) -> Patience:
    """`clients` of them, each of which begins its next request when the last was answered."""
    return asyncio.run(_crowd(url, body, clients, seconds))


async def _crowd(url: str, body: bytes, clients: int, seconds: float) -> Patience:
    seen = Patience()
    until_s = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(_client(_Connection(url, body), until_s, seen, number / clients))
    return seen


async def _client(connection: _Connection, until_s: float, seen: Patience, late_s: float) -> None:
    await asyncio.sleep(late_s)  # a crowd gathers; nobody's clock ticks with his neighbour's
    while time.monotonic() < until_s:
        await _request(connection, seen)
    connection.close()


async def _request(connection: _Connection, seen: Patience) -> None:
    refused_s = promised_s = 0.0
    for attempt in range(SEND_ATTEMPTS):
        sent_s = time.monotonic()
        status, retry_after_s, text = await connection.ask(attempt)
        if status != 429:
            break
        seen.refusals += 1
        if not refused_s:
            refused_s, promised_s = time.monotonic(), retry_after_s
        await asyncio.sleep(retry_after_s)
    if status != 200:
        seen.errors.append(f"{status}: {text[:100]}")
        return
    seen.answered += 1
    if refused_s:
        seen.promised_s.append(promised_s)
        seen.waited_s.append(sent_s - refused_s)


class _Connection:
    """One keep-alive connection. It knows no more of HTTP than it needs: a client library would take a tenth of the
    cores that it shares with the service."""

    def __init__(self, url: str, body: bytes) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), parts.port or 80
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        self._head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/jpeg\r\n"
        self._head += f"Content-Length: {len(body)}\r\n"
        self._body = body
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, attempt: int) -> tuple[int, float, str]:
        """Status, Retry-After in seconds (0 without), and the answer's text."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        again = f"x-retry-attempt: {attempt}\r\n" if attempt else ""
        writer.write(f"{self._head}{again}\r\n".encode() + self._body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        text = (await reader.readexactly(int(fields["content-length"]))).decode()
        if fields.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), float(fields.get("retry-after", 0)), text

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
