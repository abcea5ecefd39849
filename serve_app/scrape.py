"""One page of Prometheus text out of those of many nodes, of what concerns this service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIXES = ("ray_image_serve_", "ray_serve_")
TIMEOUT_S = 3.0


async def scrape(addresses: Sequence[str]) -> bytes:
    """What the exporters at `addresses` say, as one page; those that do not answer are left out.

    Raises:
        httpx.HTTPError: none of them answers.
    """
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
        answers = await asyncio.gather(*(http.get(address) for address in addresses), return_exceptions=True)
    pages = [one.text for one in answers if isinstance(one, httpx.Response) and one.is_success]
    if not pages:
        raise httpx.ConnectError(f"none of {len(addresses)} exporters answers")
    return await asyncio.to_thread(merged, pages)


def merged(pages: Iterable[str]) -> bytes:
    """Families of one name become one; others than `PREFIXES` are left out."""
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            if not family.name.startswith(PREFIXES):
                continue
            first = families.setdefault(family.name, family)
            if first is not family:
                first.samples.extend(family.samples)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(list(families.values())))
    return generate_latest(registry)


class _Collected:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
