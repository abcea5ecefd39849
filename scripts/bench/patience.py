"""Clients that do as they are told: a request that is refused with 429 is sent again after its Retry-After, no sooner.

What they measure is whether that time was right: from the first refusal until the request that was answered was sent,
divided by the first Retry-After.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import httpx

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
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=60) as http, asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(_client(http, url, body, until_s, seen, number / clients))
    return seen


async def _client(
    http: httpx.AsyncClient, url: str, body: bytes, until_s: float, seen: Patience, late_s: float
) -> None:
    await asyncio.sleep(late_s)  # a crowd gathers; nobody's clock ticks with his neighbour's
    while time.monotonic() < until_s:
        await _request(http, url, body, seen)


async def _request(http: httpx.AsyncClient, url: str, body: bytes, seen: Patience) -> None:
    refused_s = promised_s = 0.0
    for attempt in range(SEND_ATTEMPTS):
        sent_s = time.monotonic()
        headers = {"content-type": "image/jpeg"} | ({"x-retry-attempt": str(attempt)} if attempt else {})
        answer = await http.post(url, content=body, headers=headers)
        if answer.status_code != 429:
            break
        seen.refusals += 1
        told_s = float(answer.headers["retry-after"])
        if not refused_s:
            refused_s, promised_s = time.monotonic(), told_s
        await asyncio.sleep(told_s)
    if answer.status_code != 200:
        seen.errors.append(f"{answer.status_code}: {answer.text[:100]}")
        return
    seen.answered += 1
    if refused_s:
        seen.promised_s.append(promised_s)
        seen.waited_s.append(sent_s - refused_s)
