"""Both clients against a server whose answers are scripted: one table of cases, run through each."""

from __future__ import annotations

import asyncio
import io
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from serve_app.client import (
    Answer,
    AsyncClient,
    BadAnswer,
    Client,
    ClientError,
    Prediction,
    Refused,
    Rejected,
    ServiceFailed,
    TimeUp,
    Timing,
    Unreachable,
    Unreadable,
)
from tests.client_server import HANG_UP, MODELS, Half, Request, Server, answered, failed, http, refused, result, serving
from tests.fakes import FakeClock

PICTURE = b"\x01picture"


class Ordinary:
    """`AsyncClient` as a `Client`, so that one test drives both."""

    def __init__(self, make: Callable[[], AsyncClient]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            async with self._make() as client:
                return await getattr(client, name)(*args, **options)

        return lambda *args, **options: asyncio.run(call(*args, **options))

    def classify_many(self, *args: Any, **options: Any) -> Iterator[Answer | ClientError]:
        async def call() -> list[Answer | ClientError]:
            async with self._make() as client:
                return [one async for one in client.classify_many(*args, **options)]

        return iter(asyncio.run(call()))


class Time(FakeClock):
    """Sleeping takes no time but the clock's."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture
def time() -> Time:
    return Time()


Make = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest, server: Server, time: Time) -> Iterator[Make]:
    """Makes a client of the server, or of another address."""
    made: list[Client] = []

    def make(address: str | None = None, **options: Any) -> Any:
        at = address or server.address
        if request.param == "async":
            return Ordinary(lambda: AsyncClient(at, clock=time, sleep=time.asleep, **options))
        made.append(Client(at, clock=time, sleep=time.sleep, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_an_answer(make: Make, server: Server) -> None:
    answer = make().classify(PICTURE)
    assert answer == Answer(
        model="fake",
        version=2,
        trained=True,
        predictions=(Prediction(1, "label, 1", 0.5), Prediction(2, "label, 2", 0.25), Prediction(3, "label, 3", 0.125)),
        timing=Timing(0.5, 2.0, 8.0),
    )
    [asked] = server.asked
    assert (asked.method, asked.path, asked.query, asked.body) == ("POST", "/predict", {}, PICTURE)
    assert asked.headers["x-priority"] == "interactive"
    assert asked.headers["x-request-timeout-ms"] == "30000"
    assert "x-retry-attempt" not in asked.headers


def test_parameters_are_sent(make: Make, server: Server) -> None:
    make().classify(PICTURE, top_k=5, model="a b&c", priority="batch", timeout_s=1.5)
    [asked] = server.asked
    assert asked.query == {"top_k": ["5"], "model": ["a b&c"]}
    assert (asked.headers["x-priority"], asked.headers["x-request-timeout-ms"]) == ("batch", "1500")


def test_no_attempt_asks_for_more_time_than_services_give(make: Make, server: Server) -> None:
    make(timeout_s=3600).classify(PICTURE)
    assert server.asked[0].headers["x-request-timeout-ms"] == "120000"


def test_a_picture_is_bytes_or_a_path_or_a_binary_file(make: Make, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    path.write_bytes(PICTURE)
    with path.open("rb") as file:
        for picture in (PICTURE, bytearray(PICTURE), path, file, io.BytesIO(PICTURE)):
            make().classify(picture)
    assert [one.body for one in server.asked] == [PICTURE] * 5
    with pytest.raises(TypeError, match=r"pathlib\.Path"):
        make().classify(str(path))
    with path.open(errors="replace") as text, pytest.raises(TypeError, match="rb"):
        make().classify(text)
    with pytest.raises(Unreadable, match="No such file"):
        make().classify(tmp_path / "none.jpg")


@pytest.mark.parametrize("suffix", ["", "/"])
def test_an_address_may_lack_its_scheme_or_end_in_a_slash(make: Make, server: Server, suffix: str) -> None:
    assert make(server.address.removeprefix("http://") + suffix).classify(PICTURE).model == "fake"
    assert server.asked[0].path == "/predict"


def test_a_refusal_is_waited_out_and_the_next_attempt_says_so(make: Make, server: Server, time: Time) -> None:
    server.script = [refused("2"), refused("3")]
    assert make().classify(PICTURE).model == "fake"
    assert time.slept == [2, 3]
    assert [one.headers.get("x-retry-attempt") for one in server.asked] == [None, "1", "2"]
    assert [one.headers["x-request-timeout-ms"] for one in server.asked] == ["30000", "28000", "25000"]


def test_refused_once_too_often(make: Make, server: Server, time: Time) -> None:
    server.script = [refused("1"), refused("2"), refused("7")]
    with pytest.raises(Refused) as caught:
        make(retries=2).classify(PICTURE)
    assert (caught.value.code, caught.value.status, caught.value.retry_after_s) == ("overloaded", 429, 7.0)
    assert str(caught.value) == "this is overloaded; do something"
    assert time.slept == [1, 2]


def test_a_refusal_longer_than_the_time_left_is_told_at_once(make: Make, server: Server, time: Time) -> None:
    server.script = [refused("2"), refused("2")]
    with pytest.raises(Refused):
        make().classify(PICTURE, timeout_s=3.5)
    assert time.slept == [2]
    assert server.asked[1].headers["x-request-timeout-ms"] == "1500"


@pytest.mark.parametrize("announced", ["Wed, 21 Oct 2026 07:28:00 GMT", "soon"])
def test_a_refusal_that_does_not_say_when(make: Make, server: Server, time: Time, announced: str) -> None:
    server.script = [refused(announced)]
    make().classify(PICTURE)
    assert time.slept == [1]


@pytest.mark.parametrize("broken", [HANG_UP, failed(503, "not_ready"), http(502, b"<html>bad gateway")])
def test_what_broke_before_an_answer_is_tried_again(make: Make, server: Server, time: Time, broken: bytes) -> None:
    server.script = [broken, broken]
    assert make().classify(PICTURE).model == "fake"
    assert time.slept == [0.1, 0.2]
    assert all("x-retry-attempt" not in one.headers for one in server.asked)


def test_not_ready_says_when(make: Make, server: Server, time: Time) -> None:
    server.script = [failed(503, "not_ready", retry_after="1")]
    make().classify(PICTURE)
    assert time.slept == [1]


def test_nobody_there(make: Make, time: Time) -> None:
    with pytest.raises(Unreachable, match=r"no answer from http://127\.0\.0\.1:9 .*check the address") as caught:
        make("http://127.0.0.1:9").classify(PICTURE)
    assert caught.value.status is None
    assert time.slept == [0.1, 0.2, 0.4, 0.8]


@pytest.mark.parametrize("address", ["", "http://", "ftp://x", "http://127.0.0.1:99999", "localhost:port"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_addresses_that_are_none(kind: type[Client | AsyncClient], address: str) -> None:
    with pytest.raises(ValueError, match="looks like http://localhost:8000"):
        kind(address)


def test_half_an_answer_is_not_asked_for_again(make: Make, server: Server) -> None:
    server.script = [Half(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")]
    with pytest.raises(ServiceFailed, match="broke off"):
        make().classify(PICTURE)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", Rejected),
        (404, "unknown_model", Rejected),
        (413, "too_large", Rejected),
        (415, "unsupported_format", Rejected),
        (422, "broken_picture", Rejected),
        (500, "inference_failed", ServiceFailed),
        (504, "deadline_exceeded", TimeUp),
    ],
)
def test_errors_are_told_and_not_tried_again(
    make: Make, server: Server, time: Time, status: int, code: str, kind: type[ClientError]
) -> None:
    server.script = [failed(status, code)]
    with pytest.raises(kind) as caught:
        make().classify(PICTURE)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.message == str(caught.value) == f"this is {code}; do something"
    assert (len(server.asked), time.slept) == (1, [])


@pytest.mark.parametrize(
    "raw", [http(200, b"<html>"), http(200, []), http(200, {}), http(200, {"predictions": 1}), http(404, b"nginx")]
)
def test_somebody_else_answers(make: Make, server: Server, raw: bytes) -> None:
    server.script = [raw]
    with pytest.raises(BadAnswer, match="not an answer of Image Serve"):
        make().classify(PICTURE)


def test_time_up_while_the_service_is_silent(server: Server) -> None:
    """On the real clock: the one place where it decides."""

    async def silent(request: Request) -> bytes:
        await asyncio.sleep(60)
        return HANG_UP

    server.handler = silent
    since_s = monotonic()
    with closing(Client(server.address)) as client, pytest.raises(TimeUp, match=r"within 0\.05 s"):
        client.classify(PICTURE, timeout_s=0.05)
    with pytest.raises(TimeUp, match=r"within 0\.05 s"):
        asyncio.run(AsyncClient(server.address).classify(PICTURE, timeout_s=0.05))
    assert monotonic() - since_s < 10  # whoever does not keep to it waits for a minute
    assert len(server.asked) == 2


def test_time_that_is_up_before_anything_is_sent(make: Make, server: Server) -> None:
    with pytest.raises(TimeUp):
        make().classify(PICTURE, timeout_s=0)
    assert server.asked == []


def test_errors_survive_pickling() -> None:
    for error in (Rejected("code", "message", 422), Refused("code", "message", 429, 2.5)):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert vars(again) == vars(error)


async def _many(request: Request) -> bytes:
    """Answers a multipart request picture by picture, at most three, one alone as an object."""
    if "multipart" not in request.headers.get("content-type", ""):
        return failed(422, "broken_picture") if request.body[:1] == b"B" else answered(request.body[0])
    parts = [part.partition(b"\r\n\r\n")[2] for part in request.body.split(b"--")[1:-1] if b"\r\n\r\n" in part]
    if len(parts) > 3:
        return failed(413, "too_large")
    broken = {"error": {"code": "broken_picture", "message": "it is broken"}}
    results = [broken if part[:1] == b"B" else result(part[0]) for part in parts]
    return http(200, {"model": "fake", "version": 2, "trained": True, "results": results})


def classes(results: Iterator[Answer | ClientError]) -> list[int | str]:
    return [one.code if isinstance(one, ClientError) else one.predictions[0].class_id for one in results]


def test_many_in_order_with_errors_in_place(make: Make, server: Server, tmp_path: Path) -> None:
    server.handler = _many
    pictures = [b"\x01", b"\x02", tmp_path / "none.jpg", b"\x03", b"Broken", b"\x05", b"\x06", b"\x07", b"\x08"]
    assert classes(make().classify_many(pictures)) == [1, 2, "unreadable", 3, "broken_picture", 5, 6, 7, 8]


def test_several_go_in_one_request_and_halves_where_that_is_too_large(server: Server) -> None:
    server.handler = _many
    with closing(Client(server.address)) as client:
        assert classes(client.classify_many([b"\x01", b"B", b"\x03", b"\x04", b"\x05"], per_request=4)) == [
            1, "broken_picture", 3, 4, 5,
        ]  # fmt: skip
    kinds = ["multipart" in one.headers.get("content-type", "") for one in server.asked]
    assert kinds == [True, True, True, False]  # four are too many, two and two, and one
    assert server.asked[-1].body == b"\x05"


def test_requests_of_many_are_bounded_in_bytes(server: Server) -> None:
    server.handler = _many
    large = b"\x01" + b"x" * (5 * 2**20)
    with closing(Client(server.address)) as client:
        assert classes(client.classify_many([large, large, b"\x02"])) == [1, 1, 2]
    assert [len(one.body) > 5 * 2**20 for one in server.asked] == [True, True]


def test_what_answered_before_the_service_went_away_stands(make: Make, server: Server) -> None:
    with closing(Client(server.address, retries=0)) as client:
        results = client.classify_many([b"\x01", b"\x02", b"\x03"], per_request=1)
        assert classes([next(results)]) == [1]  # type: ignore[arg-type]
        server.script = [HANG_UP]
        with pytest.raises(Unreachable):
            next(results)


async def test_many_are_asked_side_by_side_and_no_more(server: Server) -> None:
    under_way, most = 0, 0

    async def counting(request: Request) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return answered(request.body[0])

    server.handler = counting
    pictures = [bytes([number]) for number in range(20)]
    async with AsyncClient(server.address) as client:
        got = [one async for one in client.classify_many(pictures, at_once=3)]
    assert classes(iter(got)) == list(range(20))
    assert most == 3


async def test_leaving_early_leaves_nothing_behind(server: Server) -> None:
    async def first_only(request: Request) -> bytes:
        if request.body != b"\x01":
            await asyncio.sleep(60)
        return answered()

    server.handler = first_only
    async with asyncio.timeout(30), AsyncClient(server.address) as client:
        results: AsyncIterator[Any] = client.classify_many([b"\x01", *[b"\x02"] * 9], at_once=4)
        assert (await anext(results)).model == "fake"
        await results.aclose()  # type: ignore[attr-defined]
    assert len(asyncio.all_tasks()) == 1


def test_models_ready_and_live(make: Make, server: Server) -> None:
    live = {
        "unix_s": 1764020000.1,
        "window_s": 10,
        "replicas_reporting": 3,
        "models": {
            "fake": {
                "pictures_per_s": 12.5, "shed_per_s": 1, "rejected_per_s": 0, "failed_per_s": 0,
                "latency_ms": {"p50": 31.0, "p99": 80.0}, "stages_ms": None,
                "batch_pictures": {"mean": 3.1, "sizes": {"1": 4}},
            }
        },
        "stages": [
            {"deployment": "Preprocessor", "backlog_pictures": 3.0, "replicas": {"desired": 2, "running": 1}},
            {"deployment": "Classifier", "backlog_pictures": None, "replicas": None},
        ],
    }  # fmt: skip
    pages = {"/models": MODELS, "/readyz": http(200, {"ready": True}), "/live": http(200, live)}

    async def page(request: Request) -> bytes:
        return pages[request.path]

    server.handler = page
    first, second = make().models()
    assert (first.name, first.version, first.trained, first.num_classes, first.default) == ("fake", 2, True, 5, True)
    assert first.details["backend"] == "openvino"
    assert (second.name, second.default) == ("flowers", False)
    assert make().ready() is True
    view = make().live()
    assert (view.replicas_reporting, view.models["fake"].pictures_per_s) == (3, 12.5)
    assert view.models["fake"].latency_ms == {"p50": 31.0, "p99": 80.0}
    assert (view.models["fake"].batch_pictures, view.models["fake"].stages_ms) == (3.1, None)
    assert [(one.deployment, one.backlog_pictures, one.running_replicas) for one in view.stages] == [
        ("Preprocessor", 3.0, 1), ("Classifier", None, None),
    ]  # fmt: skip


def test_ready_is_no_where_nobody_answers(make: Make, server: Server, time: Time) -> None:
    async def starting(request: Request) -> bytes:
        return failed(503, "not_ready", retry_after="1")

    server.handler = starting
    assert make().ready() is False
    assert make("http://127.0.0.1:9").ready() is False
    assert time.slept == []


def test_a_client_of_your_own_is_used_and_left_open(server: Server) -> None:
    with httpx.Client(headers={"authorization": "Bearer x"}) as own:
        with Client(server.address, http=own) as client:
            client.classify(PICTURE)
        assert not own.is_closed
    assert server.asked[0].headers["authorization"] == "Bearer x"
