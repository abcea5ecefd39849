from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from logging.handlers import MemoryHandler
from typing import Any

import httpx
import pytest
from PIL import Image
from ray._common.formatters import JSONFormatter
from ray.serve._private.logging_utils import ServeComponentFilter, ServeFormatter, ServeLogAttributeRemovalFilter

from serve_app import request_log
from serve_app.deployments.replica import log_beside_serve
from serve_app.errors import InferenceFailed, Overloaded
from serve_app.ingress import create_app
from serve_app.oip.messages import MESSAGES
from serve_app.request_log import RequestEntry, RequestLog, Wanted
from serve_app.types import Timing
from tests.fakes import FakeClassifier, FakeClock, FakeService
from tests.grpc_helpers import GrpcReplica, serving

ABOUT = {"application": "image-serve", "deployment": "Preprocessor", "replica": "abcd"}


def png(size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(file, "PNG")
    return file.getvalue()


class Lines:
    """What the log has, as Serve writes it in JSON; `text` in lines for people."""

    def __init__(self) -> None:
        self.text, self.json = io.StringIO(), io.StringIO()
        json_handler, text_handler = logging.StreamHandler(self.json), logging.StreamHandler(self.text)
        json_handler.setFormatter(JSONFormatter())
        text_handler.setFormatter(ServeFormatter("Preprocessor", "abcd"))
        self.handlers = [json_handler, text_handler]

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.json.getvalue().splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines, logger = Lines(), logging.getLogger("serve_app")
    before = (logger.level, logger.propagate)
    for handler in lines.handlers:
        handler.addFilter(ServeLogAttributeRemovalFilter())  # of the handler in front of Serve's file
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield lines
    for handler in lines.handlers:
        logger.removeHandler(handler)
    logger.setLevel(before[0])
    logger.propagate = before[1]


class Setup:
    def __init__(self, wanted: Wanted = "all", **limits: int) -> None:
        self.classifier = FakeClassifier()
        self.service = FakeService(self.classifier, **limits)
        self.service.request_log = RequestLog(wanted, ABOUT)
        transport = httpx.ASGITransport(create_app(self.service))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    setup = Setup()
    async with setup.client:
        yield setup


async def test_a_line_says_what_came_and_what_became_of_it(setup: Setup, lines: Lines) -> None:
    body = png()
    headers = {"x-request-id": "mine", "x-priority": "batch", "x-retry-attempt": "1"}
    answer = await setup.client.post("/predict", content=body, headers=headers)
    assert answer.status_code == 200
    setup.service.request_log.flush()
    [line] = lines.read()
    timing = answer.json()["timing_ms"]
    assert (
        line.items()
        >= {
            **ABOUT,
            "levelname": "INFO",
            "event": "request",
            "request_id": "mine",
            "route": "POST /predict",
            "model": "fake",
            "version": 1,
            "status": 200,
            "priority": "batch",
            "retry": True,
            "request_bytes": len(body),
            "pictures": 1,
            "failed": 0,
            "formats": {"png": 1},
            "largest_bytes": len(body),
            "queue_ms": timing["queue"],
            "preprocess_ms": timing["preprocess"],
            "inference_ms": timing["inference"],
        }.items()
    )
    assert line["total_ms"] >= timing["preprocess"]
    assert not {"skip_context_filter", "error", "trace_id"} & line.keys()


async def test_a_line_has_neither_the_picture_nor_what_is_on_it(setup: Setup, lines: Lines) -> None:
    answer = await setup.client.post("/predict", content=png())
    setup.service.request_log.flush()
    [line] = lines.read()
    for prediction in answer.json()["predictions"]:
        assert prediction["label"] not in json.dumps(line)
    known = {"asctime", "levelname", "message", "filename", "lineno", "process", "event", *ABOUT}
    assert line.keys() - known == {
        *("request_id", "route", "model", "version", "status", "priority", "retry", "request_bytes", "pictures"),
        *("failed", "formats", "largest_bytes", "queue_ms", "preprocess_ms", "inference_ms", "total_ms"),
    } | ({"timestamp_ns"} & line.keys())


async def test_pictures_of_one_request_are_summed_up(setup: Setup, lines: Lines) -> None:
    small, large = png(), png(32)
    files = [("image", small), ("image", b"nonsense"), ("image", large)]
    answer = await setup.client.post("/predict", files=files)
    setup.service.request_log.flush()
    [line] = lines.read()
    assert (line["pictures"], line["failed"], line["formats"]) == (3, 1, {"png": 2, "other": 1})
    assert (line["status"], line["error"], line["levelname"]) == (200, "unsupported_format", "INFO")
    assert line["largest_bytes"] == max(len(small), len(large))
    assert line["request_bytes"] > len(small) + len(large)
    times = [one["timing_ms"]["preprocess"] for one in answer.json()["results"] if "timing_ms" in one]
    assert line["preprocess_ms"] == max(times)


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("/predict?model=nope", b"x", {"status": 404, "error": "unknown_model"}),
        ("/predict?top_k=0", b"x", {"status": 422, "error": "bad_parameter", "model": "fake"}),
        ("/predict", b"", {"status": 400, "error": "invalid_request", "model": "fake"}),
        ("/predict", b"nonsense", {"status": 415, "error": "unsupported_format", "pictures": 1, "failed": 1}),
        ("/predict", bytes(6000), {"status": 413, "error": "too_large", "request_bytes": 6000}),
        ("/v2/models/fake/infer", b"{}", {"status": 400, "route": "POST /v2/models/NAME/infer", "model": "fake"}),
        ("/v2/models/nope/infer", b"{}", {"status": 404, "error": "unknown_model"}),
        ("/predictions/fake", b"", {"status": 400, "model": "fake"}),
        ("/predictions/fake", b"nonsense", {"status": 415, "route": "POST /predictions/NAME", "model": "fake"}),
    ],
)
async def test_a_refusal_has_a_line_too(
    setup: Setup, lines: Lines, path: str, content: bytes, expected: dict[str, Any]
) -> None:
    answer = await setup.client.post(path, content=content)
    assert answer.status_code == expected["status"]
    setup.service.request_log.flush()
    [line] = lines.read()
    assert line.items() >= expected.items()
    assert line["levelname"] == "INFO"
    assert "inference_ms" not in line


@pytest.mark.parametrize(
    "path", ["/v2/models/fake/infer", "/v2/models/fake/versions/1/infer", "/predictions/fake", "/predictions/fake/1"]
)
async def test_other_ways_to_classify_have_lines(setup: Setup, lines: Lines, path: str) -> None:
    body = png()
    headers = {"inference-header-content-length": "0"} if path.startswith("/v2") else {}
    answer = await setup.client.post(path, content=body, headers=headers)
    assert answer.status_code == 200
    setup.service.request_log.flush()
    [line] = lines.read()
    assert (line["status"], line["model"], line["pictures"], line["formats"]) == (200, "fake", 1, {"png": 1})


async def test_what_classifies_nothing_has_none(setup: Setup, lines: Lines) -> None:
    for path in ("/", "/models", "/healthz", "/readyz", "/live", "/ping", "/v2/health/ready", "/v2/models/fake", "/no"):
        await setup.client.get(path)
    setup.service.request_log.flush()
    assert lines.read() == []


async def test_a_retry_that_is_refused_says_that_it_was_one(lines: Lines) -> None:
    setup = Setup(max_queued_pictures=1, max_pictures_per_request=1)
    setup.classifier.gate.clear()
    first = asyncio.create_task(setup.client.post("/predict", content=png()))
    async with asyncio.timeout(10):
        while not setup.classifier.chunks:
            await asyncio.sleep(0.001)
    second = await setup.client.post("/predict", content=png(), headers={"x-retry-attempt": "2"})
    setup.classifier.gate.set()
    await first
    assert second.status_code == 429
    setup.service.request_log.flush()
    refused, answered = lines.read()
    assert (refused["status"], refused["error"], refused["retry"]) == (429, "overloaded", True)
    assert (answered["status"], answered["retry"]) == (200, False)


@pytest.mark.parametrize("wanted", ["all", "errors"])
async def test_what_the_service_failed_is_an_error_with_what_finds_it(lines: Lines, wanted: Wanted) -> None:
    setup = Setup(wanted)
    setup.classifier.errors = [InferenceFailed("no")]
    await setup.client.post("/predict", content=png(), headers={"x-request-id": "mine"})
    setup.service.request_log.flush()
    [line] = lines.read()
    expected = {"levelname": "ERROR", "request_id": "mine", "status": 500, "error": "inference_failed", "model": "fake"}
    assert line.items() >= expected.items()


async def test_a_picture_that_the_service_failed_is_an_error_though_others_were_answered(lines: Lines) -> None:
    setup = Setup("errors", max_pictures_per_request=2)
    pipeline = setup.service.models["fake"]
    bodies = [png(), png()]
    entry = RequestEntry("mine", "POST /predict")
    setup.classifier.errors = [InferenceFailed("no")]  # of the first chunk, in which one of them leaves alone
    with setup.service.request_log.request(entry), pipeline.admission.ticket("interactive") as ticket:
        await pipeline.classify(bodies, 1, pipeline.deadline_s(None), ticket)
        entry.status = 200
    setup.service.request_log.flush()
    [line] = lines.read()
    assert (line["levelname"], line["status"], line["error"]) == ("ERROR", 200, "inference_failed")
    assert 1 <= line["failed"] <= 2


async def test_only_failures_of_the_service_are_wanted(lines: Lines) -> None:
    setup = Setup("errors")
    for content in (png(), b"nonsense"):
        await setup.client.post("/predict", content=content)
    setup.service.request_log.flush()
    assert lines.read() == []


async def test_a_fault_that_nobody_foresaw_has_a_line(
    setup: Setup, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup.service.models["fake"], "classify", None)
    answer = await setup.client.post("/predict", content=png(), headers={"x-request-id": "mine"})
    assert answer.status_code == 500
    setup.service.request_log.flush()
    traceback, line = lines.read()
    assert "TypeError" in traceback["exc_text"]
    assert (line["levelname"], line["error"], line["request_id"]) == ("ERROR", "internal", "mine")


async def test_nothing_is_kept_where_nothing_is_wanted(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup("none")
    seen: list[RequestEntry | None] = []
    pipeline = setup.service.models["fake"]
    deadline_s = pipeline.deadline_s

    def watched(timeout_ms: int | None) -> float:
        seen.append(request_log.current())
        return deadline_s(timeout_ms)

    monkeypatch.setattr(pipeline, "deadline_s", watched)
    await setup.client.post("/predict", content=png())
    setup.service.request_log.flush()
    assert seen == [None]
    assert lines.read() == []


async def test_a_client_that_went_away_is_told_from_one_that_was_answered(lines: Lines) -> None:
    setup = Setup()
    setup.classifier.gate.clear()
    request = asyncio.create_task(setup.client.post("/predict", content=png()))
    async with asyncio.timeout(10):
        while not setup.classifier.chunks:
            await asyncio.sleep(0.001)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    setup.classifier.gate.set()
    setup.service.request_log.flush()
    [line] = lines.read()
    assert (line["status"], line["pictures"], line["levelname"]) == (499, 1, "INFO")
    assert request_log.current() is None


async def test_calls_over_grpc_have_lines(lines: Lines) -> None:
    import grpc

    replica = GrpcReplica(FakeClassifier())
    replica.request_log = RequestLog("all", ABOUT)
    message = MESSAGES["ModelInferRequest"](model_name="fake")
    body = png()
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(body)
    name = "/inference.GRPCInferenceService/ModelInfer"
    async with serving(replica) as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(name, lambda one: one.SerializeToString(), MESSAGES["ModelInferResponse"].FromString)
        await call(message, metadata=[("x-retry-attempt", "1")])
        message.model_name = "nope"
        with pytest.raises(grpc.aio.AioRpcError):
            await call(message)
    replica.request_log.flush()
    answered, refused = lines.read()
    assert (
        answered.items()
        >= {
            "route": "gRPC ModelInfer",
            "request_id": "1",
            "status": 200,
            "model": "fake",
            "formats": {"png": 1},
            "largest_bytes": len(body),
            "retry": True,
        }.items()
    )
    assert answered["request_bytes"] > len(body)
    assert (refused["status"], refused["error"], refused["retry"]) == (404, "unknown_model", False)


def entry(**changes: Any) -> RequestEntry:
    return RequestEntry("mine", "POST /predict", **{"status": 200, **changes})


def test_a_line_for_people_says_the_same(lines: Lines) -> None:
    log = RequestLog("all", ABOUT)
    one = entry(model="fake", trace_id="a" * 32, retry=True)
    one.asked("fake", [b"\xff\xd8\xff..", b"\x89PNG"], "batch")
    one.answered(Timing(1.0, 2.0, 30.0), 2)
    one.total_ms = 45.25
    log.note(one)
    log.note(entry(status=404, error="unknown_model"))
    log.flush()
    first, second = lines.text.getvalue().splitlines()
    assert first.endswith(
        "mine -- POST /predict 200 in 45.2 ms; fake version 2; 2 picture(s) (1 jpeg, 1 png), 9 bytes; "
        f"queue 1.0, preprocess 2.0, inference 30.0 ms; batch; retry; trace {'a' * 32}"
    )
    assert second.endswith("mine -- POST /predict 404 unknown_model in 0.0 ms")


def test_a_line_has_the_time_of_the_answer(lines: Lines) -> None:
    clock, unix = FakeClock(), FakeClock(1_700_000_000.25)
    log = RequestLog("all", clock=clock, unix=unix)
    with log.request(entry()):
        clock.advance(0.125)
    assert request_log.current() is None
    unix.advance(60)
    log.flush()
    [line] = lines.read()
    assert line["total_ms"] == 125
    assert line["asctime"].endswith(",250")
    assert line["asctime"] == logging.Formatter().formatTime(
        logging.makeLogRecord({"created": 1_700_000_000.25, "msecs": 250.0})
    )


def test_lines_that_come_too_fast_are_dropped_and_counted(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "MAX_WAITING", 5)
    log = RequestLog("all")
    for _ in range(8):
        log.note(entry())
    log.flush()
    *written, last = lines.read()
    assert len(written) == 5
    assert last["levelname"] == "WARNING"
    assert last["message"].startswith("3 requests have no line")
    log.flush()
    assert len(lines.read()) == 6


def test_a_thread_writes_what_is_noted(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "WRITE_EVERY_S", 0.001)
    log = RequestLog("all")
    written = asyncio.Event()
    monkeypatch.setattr(log, "flush", written.set)
    log.start()

    async def wait() -> None:
        async with asyncio.timeout(10):
            while not written.is_set():
                await asyncio.sleep(0.001)

    asyncio.run(wait())


def test_refusals_are_told_with_the_first_reason() -> None:
    one = entry()
    one.picture_failed(InferenceFailed("no"))
    one.refused(Overloaded("full"))
    assert (one.error, one.status, one.failed, one.is_fault) == ("inference_failed", 429, 1, True)


def test_lines_go_where_serves_go_at_once_and_say_which_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    target = logging.StreamHandler(written)
    target.setFormatter(JSONFormatter())
    buffered = MemoryHandler(1000, target=target)  # as in throughput mode
    buffered.addFilter(ServeComponentFilter("Preprocessor", "abcd", "replica"))  # type: ignore[arg-type]
    ours = logging.getLogger("serve_app")
    for name, value in (("handlers", []), ("level", ours.level), ("propagate", ours.propagate)):
        monkeypatch.setattr(ours, name, value)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [buffered])
    log_beside_serve()
    logging.getLogger("serve_app.some.module").info("an engine is warm")
    line = json.loads(written.getvalue())
    assert (line["message"], line["replica"]) == ("an engine is warm", "abcd")
