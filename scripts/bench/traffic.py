"""What is sent, when and where to: request bytes, Poisson arrivals, one address."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from scripts.bench.load import Target


def arrivals(rate_per_s: float, start_s: float, seed: int) -> Iterator[float]:
    """Times of Poisson arrivals, without end."""
    gap_s = random.Random(seed).expovariate
    while True:
        start_s += gap_s(rate_per_s)
        yield start_s


def request_stream(target: Target, seed: int) -> Iterator[bytes]:
    """Requests ready to be sent, without end: all bodies in a new order each time round."""
    parts = urlsplit(target.url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Type: {target.content_type}"]
    lines += [f"{name}: {value}" for name, value in target.headers]
    head = "\r\n".join(lines)
    requests = [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for body in target.bodies]
    order = random.Random(seed)
    while True:
        order.shuffle(requests)
        yield from requests


def reachable(url: str) -> tuple[str, int]:
    """(address, port) of `url` that accepts connections, looked up once; localhost is often two addresses."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found if len(found) > 1 else []:
        with suppress(OSError), socket.create_connection((address, port), timeout=2):
            return address, port
    return found[0], port
