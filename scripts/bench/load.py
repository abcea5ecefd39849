"""Load generator: closed loop (N clients that wait), open loop (Poisson arrivals), and a fixed number of requests.

It shares the cores with what it measures, so it is lean (load_worker.py) and runs in a process of its own, whose CPU
time is part of the result. An answer counts as a request only where its status is 200.
"""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from hdrh.histogram import HdrHistogram
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
LONGEST_US = 600_000_000
"""Longest latency a histogram can hold; what takes longer is entered as this."""
TIMEOUT_S = 30.0
Mode = Literal["closed", "open"]
Hook = Callable[[], object]


class LoadFailed(Exception):
    """The load process ended without a result."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they carry.

    Attributes:
        bodies: each request takes one; every pass over all of them is shuffled anew.
        pictures_per_request: pictures in each body.
        headers: added to Host, Content-Type and Content-Length.
    """

    name: str
    url: str
    bodies: tuple[bytes, ...]
    content_type: str = "image/jpeg"
    pictures_per_request: int = 1
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.bodies:
            raise ValueError(f"target {self.name} has no body to send")


@dataclass(frozen=True, slots=True)
class Job:
    """What the load process does; one of `seconds` and `requests` ends it.

    Attributes:
        connections: exactly as many in a closed loop, at most as many in an open one.
        timeout_s: a request that waited longer than this is given up.
    """

    target: Target
    mode: Mode
    connections: int
    seed: int
    timeout_s: float
    warmup_s: float = 0.0
    rate_per_s: float | None = None
    seconds: float | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Sent by the load process twice a second."""

    elapsed_s: float
    done: int


@dataclass(slots=True)
class Counts:
    """What the load process found; latencies of the answers with status 200 are whole microseconds."""

    latencies_us: array[int]
    seconds: float
    ended_in_window: int
    shed: int
    errors: dict[str, int]
    samples: list[str]
    connections: int
    client_cpu_s: float
    max_lag_s: float


@dataclass(slots=True)
class LoadResult:
    """One measurement.

    Attributes:
        connections: clients of a closed loop; the most that were open at once in an open one.
        rate_per_s: requests offered per second; None in a closed loop.
        seconds: length of the measured window.
        requests: answered 200. Closed loop: ended inside the window. Open loop: were due inside it, ended whenever.
        ended_in_window: answered 200 inside the window, whenever they were due; throughput is counted from these.
        shed: answered 429 or 503.
        errors: how many by status ("500"), or by "connect", "reset", "timeout", "malformed".
        histogram: microseconds of `requests`. Open loop: from the intended time, not from that of the actual sending.
        client_cpu_s: CPU time of the load process inside the window.
        samples: beginnings of the first answers that were not 2xx.
        max_lag_ms: open loop: how late the generator itself was, at most; part of the latencies.
    """

    name: str
    mode: Mode
    connections: int
    rate_per_s: float | None
    seconds: float
    requests: int
    pictures: int
    shed: int
    errors: dict[str, int]
    histogram: HdrHistogram
    client_cpu_s: float
    ended_in_window: int
    pictures_per_request: int = 1
    samples: list[str] = field(default_factory=list)
    max_lag_ms: float = 0.0

    def requests_per_s(self) -> float:
        """Requests answered 200 per second of the window."""
        return self.ended_in_window / self.seconds if self.seconds else 0.0

    def pictures_per_s(self) -> float:
        """Pictures answered 200 per second of the window."""
        return self.requests_per_s() * self.pictures_per_request

    def failed(self) -> int:
        """Requests of the window that were not answered 200."""
        return self.shed + sum(self.errors.values())

    def percentile_ms(self, p: float) -> float:
        """Latency in ms that `p` percent stay below; NaN where nothing was answered."""
        return float(self.histogram.get_value_at_percentile(p)) / 1e3 if self.requests else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; the histogram in HdrHistogram's own encoding, see `decode_histogram`."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "histogram"}
        marks = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99.9_ms": 99.9, "max_ms": 100.0}
        return plain | {
            "requests_per_s": self.requests_per_s(),
            "pictures_per_s": self.pictures_per_s(),
            **{name: self.percentile_ms(p) if self.requests else None for name, p in marks.items()},
            "histogram_us": self.histogram.encode().decode(),
        }


def decode_histogram(encoded: str) -> HdrHistogram:
    """The histogram (microseconds) of `LoadResult.as_dict()["histogram_us"]`; such can be added to one another."""
    return HdrHistogram.decode(encoded)


def multipart_body(pictures: Sequence[bytes], field: str = "image") -> tuple[bytes, str]:
    """(body, content type) of a form with all pictures under one name."""
    boundary = "image-serve-load"
    while any(boundary.encode() in picture for picture in pictures):
        boundary += "-"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{{}}.jpg"\r\n'
    parts = [
        (head.format(number) + "Content-Type: image/jpeg\r\n\r\n").encode() + picture + b"\r\n"
        for number, picture in enumerate(pictures)
    ]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def closed_loop(
    target: Target,
    *,
    connections: int,
    seconds: float,
    warmup_s: float = 2.0,
    seed: int = 0,
    progress: bool = True,
    timeout_s: float = TIMEOUT_S,
    on_begin: Hook | None = None,
    on_end: Hook | None = None,
) -> LoadResult:
    """`connections` clients that send the next request as soon as the last was answered, whatever the answer was.

    Only what ends inside the window counts. `on_begin` and `on_end` are called in this process as the window begins
    and ends, for meters.
    """
    job = Job(target, "closed", connections, seed, timeout_s, warmup_s, seconds=seconds)
    return _run(job, f"{target.name}, {connections} clients", progress, on_begin=on_begin, on_end=on_end)


def open_loop(
    target: Target,
    *,
    rate_per_s: float,
    seconds: float,
    warmup_s: float = 2.0,
    seed: int = 0,
    max_connections: int = 512,
    progress: bool = True,
    timeout_s: float = TIMEOUT_S,
    on_begin: Hook | None = None,
    on_end: Hook | None = None,
) -> LoadResult:
    """Poisson arrivals that never wait for earlier answers; latency counts from the intended time of each.

    Answers that are outstanding when the window ends are waited for, `timeout_s` at most. Hooks as in `closed_loop`.
    """
    job = Job(target, "open", max_connections, seed, timeout_s, warmup_s, rate_per_s, seconds)
    return _run(job, f"{target.name}, {rate_per_s:g}/s", progress, on_begin=on_begin, on_end=on_end)


def fixed_count(
    target: Target,
    *,
    requests: int,
    connections: int,
    seed: int = 0,
    progress: bool = True,
    timeout_s: float = TIMEOUT_S,
    on_progress: Callable[[int], None] | None = None,
) -> LoadResult:
    """Closed loop of `requests` requests, whatever their answers; `on_progress` gets the number done, once a second."""
    job = Job(target, "closed", min(connections, requests), seed, timeout_s, requests=requests)
    return _run(job, f"{target.name}, {connections} clients", progress, on_progress=on_progress)


def _run(
    job: Job,
    title: str,
    progress: bool,
    on_progress: Callable[[int], None] | None = None,
    on_begin: Hook | None = None,
    on_end: Hook | None = None,
) -> LoadResult:
    hooks = {"begin": on_begin, "end": on_end}
    told_s = time.monotonic()
    with _worker(job) as messages, _bar(job, title, progress) as bar:
        while True:
            try:
                message = pickle.load(messages)
            except EOFError:
                raise LoadFailed("the load process ended early; its error is above") from None
            if isinstance(message, Counts):
                bar.update((bar.total or bar.n) - bar.n)
                break
            if isinstance(message, Progress):
                _show(bar, job, message)
                if on_progress and time.monotonic() - told_s > 0.75:  # every second message
                    told_s = time.monotonic()
                    on_progress(message.done)
            elif hook := hooks[message]:
                hook()
    if on_progress and job.requests is not None:
        on_progress(job.requests)
    return _result(job, message)


@contextmanager
def _worker(job: Job) -> Iterator[IO[bytes]]:
    command = [sys.executable, "-m", "scripts.bench.load_worker"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        with process.stdin as stdin:
            pickle.dump(job, stdin)
        yield process.stdout
        process.wait(10)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _bar(job: Job, title: str, progress: bool) -> tqdm[Any]:
    if job.requests is not None:
        return tqdm(total=job.requests, desc=title, unit="request", disable=not progress)
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    total_s = job.warmup_s + (job.seconds or 0.0)
    return tqdm(
        total=total_s, desc=title, bar_format=shape, disable=not progress, postfix={"requests/s": "?", "done": 0}
    )


def _show(bar: tqdm[Any], job: Job, message: Progress) -> None:
    if job.requests is not None:
        bar.update(message.done - bar.n)
        return
    step_s = message.elapsed_s - bar.n
    if step_s <= 0 or message.elapsed_s > (bar.total or 0):  # waiting for the last answers
        return
    before = getattr(bar, "done_before", 0)
    bar.set_postfix({"requests/s": f"{(message.done - before) / step_s:.0f}"}, refresh=False)
    bar.done_before = message.done  # type: ignore[attr-defined]
    bar.update(step_s)


def _result(job: Job, counts: Counts) -> LoadResult:
    histogram = HdrHistogram(1, LONGEST_US, 3)
    for latency_us, times in Counter(counts.latencies_us).items():
        histogram.record_value(min(max(latency_us, 1), LONGEST_US), times)
    requests = len(counts.latencies_us)
    return LoadResult(
        name=job.target.name,
        mode=job.mode,
        connections=counts.connections,
        rate_per_s=job.rate_per_s,
        seconds=counts.seconds,
        requests=requests,
        pictures=requests * job.target.pictures_per_request,
        shed=counts.shed,
        errors=counts.errors,
        histogram=histogram,
        client_cpu_s=counts.client_cpu_s,
        ended_in_window=counts.ended_in_window,
        pictures_per_request=job.target.pictures_per_request,
        samples=counts.samples,
        max_lag_ms=counts.max_lag_s * 1e3,
    )
