"""The load generator: what it counts, and that its latencies hide no stall."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator

import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from scripts.bench.http_answer import AnswerParser, Malformed
from scripts.bench.load import (
    LoadFailed,
    LoadResult,
    Target,
    closed_loop,
    decode_histogram,
    fixed_count,
    multipart_body,
    open_loop,
)
from scripts.bench.tally import Tally
from scripts.bench.traffic import arrivals, request_stream
from scripts.local_service import free_port
from tests.load_server import LoadServer, Write, answer, serving

CHUNKED = (
    b"HTTP/1.1 500 No\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"5;name=value\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nTrailer: 1\r\n\r\n"
)


def target(server: LoadServer, *bodies: bytes) -> Target:
    return Target("test", server.url, bodies or (b"picture",))


def count(server: LoadServer, requests: int, connections: int = 4) -> LoadResult:
    return fixed_count(target(server), requests=requests, connections=connections, progress=False)


@pytest.mark.parametrize(
    ("data", "status", "close", "body"),
    [
        (answer(200, b"x" * 500), 200, False, b""),
        (answer(429, b"x" * 500), 429, False, b"x" * 300),
        (answer(204, b""), 204, False, b""),
        (answer(200, b"{}", "connection: Close"), 200, True, b""),
        (b"HTTP/1.0 200 OK\r\ncontent-length:2\r\n\r\n{}", 200, True, b""),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n{}", 200, False, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(500, b"no"), 500, False, b"no"),
        (CHUNKED, 500, False, b"helloabcdefghijklmnopqrstuvwxyz"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 10_000])
def test_answers_are_read_in_any_pieces(data: bytes, status: int, close: bool, body: bytes, piece: int) -> None:
    parser = AnswerParser()
    for _ in range(2):
        parser.start()
        complete = [parser.feed(data[at : at + piece]) for at in range(0, len(data), piece)]
        assert complete == [False] * (len(complete) - 1) + [True]
        assert (parser.status, parser.close, parser.body) == (status, close, body)


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    parser = AnswerParser()
    assert not parser.ends_with_connection()
    assert not parser.feed(b"HTTP/1.1 500 No\r\n\r\nbro")
    assert not parser.feed(b"ken")
    assert (parser.ends_with_connection(), parser.close, parser.body) == (True, True, b"broken")


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0\r\n\r\n", answer() + b"more", CHUNKED + b"more", CHUNKED.replace(b"1a", b"zz"), b"HTTP/1.1 " * 8000],
)
def test_what_is_no_answer_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        AnswerParser().feed(data)


def test_a_window_counts_by_end_or_by_due_time() -> None:
    times = [(0.5, 0.9), (0.9, 1.1), (1.5, 1.6), (1.9, 2.1), (2.1, 2.2)]
    closed, opened = Tally(1, 2, by_due=False), Tally(1, 2, by_due=True)
    for tally, (due_s, ended_s), status in itertools.product((closed, opened), times, (200, 429, 500)):
        tally.answered(status, due_s, ended_s, b"text")
    for tally, latencies_us in ((closed, [200_000, 100_000]), (opened, [100_000, 200_000])):
        assert list(tally.latencies_us) == pytest.approx(latencies_us, abs=1)
        assert (tally.done, tally.ended_in_window, tally.shed, dict(tally.errors)) == (15, 2, 2, {"500": 2})
        assert tally.samples[500] == ["500: text"] * 3


def test_arrivals_are_seeded_and_have_the_rate() -> None:
    first, again, other = (list(itertools.islice(arrivals(50, 100, seed), 5000)) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first)
    assert (first[-1] - 100) / 5000 == pytest.approx(1 / 50, rel=0.05)


def test_every_body_is_sent_once_in_each_round() -> None:
    bodies = tuple(b"body %d" % number for number in range(8))
    wanted = Target("t", "http://h:1/p?q=2", bodies, "image/png", headers=(("X-Class", "batch"),))
    rounds = [list(itertools.islice(request_stream(wanted, seed), 16)) for seed in (3, 3, 4)]
    assert rounds[0] == rounds[1] != rounds[2]
    assert rounds[0][:8] != rounds[0][8:]
    assert {one.rpartition(b"\r\n\r\n")[2] for one in rounds[0][:8]} == set(bodies)
    assert rounds[0][0].startswith(
        b"POST /p?q=2 HTTP/1.1\r\nHost: h:1\r\nContent-Type: image/png\r\nX-Class: batch\r\n"
    )


def test_a_fixed_count_sends_exactly_that_many() -> None:
    told: list[int] = []
    with serving() as server:
        wanted = target(server, b"a", b"b" * 200_000)
        result = fixed_count(wanted, requests=50, connections=4, progress=True, on_progress=told.append)
    assert (result.requests, result.ended_in_window, result.shed, result.errors) == (50, 50, 0, {})
    assert (len(server.bodies), server.connections, result.connections) == (50, 4, 4)
    assert server.bodies.count(b"a") == server.bodies.count(b"b" * 200_000) == 25
    assert told[-1] == 50
    assert result.client_cpu_s > 0


def test_a_closed_loop_counts_what_ends_in_its_window() -> None:
    began = time.monotonic()
    marks: list[str] = []
    with serving() as server:
        result = closed_loop(
            target(server),
            connections=3,
            seconds=0.5,
            warmup_s=0.3,
            progress=False,
            on_begin=lambda: marks.append("begin"),
            on_end=lambda: marks.append("end"),
        )
    assert time.monotonic() - began >= 0.8
    assert 0 < result.requests == result.ended_in_window < len(server.heads)  # the warm-up is not counted
    assert (result.mode, result.connections, server.connections, marks) == ("closed", 3, 3, ["begin", "end"])
    assert result.requests_per_s() == pytest.approx(result.requests / 0.5)


async def uneven(server: LoadServer, write: Write) -> bool:
    """Shed, failed, chunked in pieces, hung up, and fine, in turn."""
    kind = len(server.heads) % 6
    if kind == 0:
        write(answer(429, b"overloaded"))
    elif kind == 1:
        write(answer(500, b"broken"))
    elif kind == 2:
        for at in range(0, len(CHUNKED), 20):
            write(CHUNKED[at : at + 20])
            await asyncio.sleep(0.001)
    elif kind == 3:
        return False
    elif kind == 4:
        write(answer(200, b"{}", "Connection: close"))
        return False
    else:
        write(answer())
    return True


def test_outcomes_are_told_apart() -> None:
    with serving(uneven) as server:
        result = count(server, 60, connections=1)
    assert (result.requests, result.shed, result.errors) == (20, 10, {"500": 20, "reset": 10})
    assert server.connections == 21  # the first, and one after each hang-up and each `close`
    assert set(result.samples) == {"429: overloaded", "500: broken", "500: helloabcdefghijklmnopqrstuvwxyz"}


def test_no_server_is_an_error_of_connecting() -> None:
    nowhere = Target("t", f"http://127.0.0.1:{free_port()}/", (b"",))
    result = fixed_count(nowhere, requests=5, connections=2, progress=False)
    assert (result.requests, result.errors) == (0, {"connect": 5})
    assert result.as_dict()["p99_ms"] is None


def test_nonsense_is_malformed() -> None:
    async def nonsense(_: LoadServer, write: Write) -> bool:
        write(b"hello\r\n\r\n")
        return True

    with serving(nonsense) as server:
        assert count(server, 4).errors == {"malformed": 4}


async def silent(_: LoadServer, __: Write) -> bool:
    await asyncio.sleep(30)
    return False


def test_silence_times_out() -> None:
    with serving(silent) as server:
        closed = fixed_count(target(server), requests=4, connections=2, progress=False, timeout_s=0.2)
        opened = open_loop(
            target(server), rate_per_s=50, seconds=0.5, warmup_s=0, max_connections=3, progress=False, timeout_s=0.2
        )
    assert closed.errors == {"timeout": 4}
    assert (opened.requests, opened.shed) == (0, 0)
    assert opened.errors == {"timeout": sum(one < 0.5 for one in itertools.islice(arrivals(50, 0, 0), 100))}


def test_an_open_loop_feels_a_stall_in_every_request_that_was_due() -> None:
    """A server that stops for 300 ms once: a client that waits would note one slow request."""
    stall_until: list[float] = []

    async def stalling(server: LoadServer, write: Write) -> bool:
        if len(server.heads) == 100:
            stall_until.append(time.monotonic() + 0.3)
        if stall_until:
            await asyncio.sleep(max(0.0, stall_until[0] - time.monotonic()))
        write(answer())
        return True

    with serving(stalling) as server:
        wanted = target(server)
        result = open_loop(wanted, rate_per_s=200, seconds=1.5, warmup_s=0, max_connections=8, progress=False)
    assert result.errors == {}
    assert result.requests == len(server.heads)
    slow = sum(
        result.histogram.get_count_at_index(index)
        for index in range(result.histogram.counts_len)
        if result.histogram.get_value_from_index(index) > 100_000
    )
    assert slow >= 20  # of about 40 that were due in the first 200 ms, and 8 connections
    assert result.percentile_ms(50) < result.percentile_ms(99)
    assert result.percentile_ms(99) > 100
    assert result.connections == 8


def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def slow(_: LoadServer, write: Write) -> bool:
        await asyncio.sleep(0.3)
        write(answer())
        return True

    with serving(slow) as server:
        result = open_loop(target(server), rate_per_s=100, seconds=0.5, warmup_s=0, progress=False)
    assert result.requests == sum(one < 0.5 for one in itertools.islice(arrivals(100, 0, 0), 200))
    assert result.ended_in_window < result.requests  # the rest was waited for, and is no throughput
    assert result.connections > 20
    assert result.percentile_ms(1) >= 299


def test_a_result_is_json_and_its_histogram_can_be_merged() -> None:
    with serving() as server:
        result = count(server, 40)
    told = json.loads(json.dumps(result.as_dict()))
    assert told["p50_ms"] <= told["p90_ms"] <= told["p99_ms"] <= told["p99.9_ms"] <= told["max_ms"]
    merged = decode_histogram(told["histogram_us"])
    merged.add(decode_histogram(told["histogram_us"]))
    assert merged.get_total_count() == 80
    assert merged.get_value_at_percentile(90) / 1e3 == told["p90_ms"]


def test_a_load_process_that_fails_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LoadFailed):
        fixed_count(Target("t", "http://127.0.0.1:99999/", (b"",)), requests=1, connections=1, progress=False)
    assert "Port out of range" in capfd.readouterr().err


def test_a_target_has_a_body() -> None:
    with pytest.raises(ValueError, match="no body"):
        Target("t", "http://127.0.0.1/", ())


async def test_a_multipart_body_is_what_starlette_reads() -> None:
    pictures = [b"\xff\xd8 one", b"two \r\n--image-serve-load\r\n", b""]
    body, content_type = multipart_body(pictures, field="file")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    form = await MultiPartParser(Headers({"content-type": content_type}), stream()).parse()
    files = form.getlist("file")
    assert [await one.read() for one in files if not isinstance(one, str)] == pictures
    assert [one.filename for one in files if not isinstance(one, str)] == ["0.jpg", "1.jpg", "2.jpg"]
    await form.close()
