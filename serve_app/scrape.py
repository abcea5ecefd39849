"""One page of Prometheus text out of those of many nodes, of what concerns this service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import httpx

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIXES = ("ray_image_serve_", "ray_serve_")
TIMEOUT_S = 3.0


async def scrape(addresses: Sequence[str]) -> bytes:
    """What the exporters at `addresses` say, as one page; those that do not answer are left out.

    Raises:
        httpx.HTTPError: none of them answers.
    """
    # Certificates are not read for addresses that have none: that takes longer than all the rest.
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, verify=False) as http:
        answers = await asyncio.gather(*(http.get(address) for address in addresses), return_exceptions=True)
    pages = [one.text for one in answers if isinstance(one, httpx.Response) and one.is_success]
    if not pages:
        raise httpx.ConnectError(f"none of {len(addresses)} exporters answers")
    return await asyncio.to_thread(merged, pages)


def merged(pages: Iterable[str]) -> bytes:
    """Families of one name become one, under the first page's description; others than `PREFIXES` are left out.

    Line by line: to parse a node's megabyte into samples and print them again takes a quarter of a second of the
    interpreter that answers pictures.
    """
    families: dict[str, tuple[dict[str, str], list[str]]] = {}
    for page in pages:
        name = ""
        for line in page.split("\n"):
            if line.startswith("# "):
                _, kind, name, *_ = line.split(" ", 3)
                if name.startswith(PREFIXES):
                    families.setdefault(name, ({}, []))[0].setdefault(kind, line)
            elif line and name.startswith(PREFIXES):
                families[name][1].append(line)
    lines = [line for about, samples in families.values() for line in (*about.values(), *samples)]
    return "\n".join([*lines, ""]).encode()
