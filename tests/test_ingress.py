"""The native API over ASGI, with a fake engine; the same contract runs against the real service in tests/service."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.errors import NotReady
from serve_app.ingress import create_app
from tests.fakes import FakeClassifier, FakeService


def png(value: int, size: tuple[int, int] = (6, 6)) -> bytes:
    """A picture that the fake classifier puts into class `value % 5`."""
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def service(classifier: FakeClassifier) -> FakeService:
    return FakeService(classifier)


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    # Faults must come back as answers, as they do behind a real server.
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


def best(result: dict[str, Any]) -> int:
    return result["predictions"][0]["class_id"]


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()["error"]["message"]


async def test_raw_body(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict", content=png(3))
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["trained"], best(body)) == ("fake", False, 3)
    assert len(body["predictions"]) == 3
    assert body["predictions"][0]["label"] == "label 3"
    assert set(body["timing_ms"]) == {"queue", "preprocess", "inference"}


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "image/x-unheard-of"])
async def test_the_bytes_decide_not_the_content_type(client: httpx.AsyncClient, kind: str) -> None:
    assert best((await client.post("/predict", content=png(2), headers={"content-type": kind})).json()) == 2


async def test_curl_calls_every_body_a_form(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert best((await client.post("/predict", content=png(2), headers=headers)).json()) == 2


async def test_multipart_one_is_an_object(client: httpx.AsyncClient) -> None:
    body = (await client.post("/predict", files={"image": ("a.png", png(4))})).json()
    assert best(body) == 4


async def test_multipart_many_is_a_list_with_errors_in_place(client: httpx.AsyncClient) -> None:
    files = [("image", ("a.png", png(1))), ("image", ("b.png", b"junk")), ("image", ("c.png", png(2)))]
    answer = await client.post("/predict", files=files)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [best(results[0]), best(results[2])] == [1, 2]
    assert results[1]["error"]["code"] == "unsupported_format"


async def test_json_base64(client: httpx.AsyncClient) -> None:
    text = base64.b64encode(png(3)).decode()
    assert best((await client.post("/predict", json={"image": text})).json()) == 3
    assert best((await client.post("/predict", json={"image": "data:image/png;base64," + text})).json()) == 3
    results = (await client.post("/predict", json={"image": [text, text]})).json()["results"]
    assert [best(result) for result in results] == [3, 3]


async def test_top_k(client: httpx.AsyncClient) -> None:
    for k in (1, 5):
        answer = await client.post("/predict", params={"top_k": k}, content=png(1))
        assert len(answer.json()["predictions"]) == k


@pytest.mark.parametrize("k", ["0", "6", "-1", "x", "", "1.5", "³", "99999999999999"])
async def test_bad_top_k(client: httpx.AsyncClient, k: str) -> None:
    refused(await client.post("/predict", params={"top_k": k}, content=png(1)), 422, "bad_parameter")


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "999999999"])
async def test_bad_timeout(client: httpx.AsyncClient, timeout: str) -> None:
    answer = await client.post("/predict", content=png(1), headers={"x-request-timeout-ms": timeout})
    refused(answer, 422, "bad_parameter")


@pytest.mark.parametrize(
    ("request_parts", "said"),
    [
        ({"content": b""}, "--data-binary"),
        ({"files": {"photo": ("a.png", b"x")}}, "'photo'"),
        ({"data": {"image": "text"}}, "form-urlencoded"),
        ({"files": {"other": ("a", b"x")}, "data": {"image": "text"}}, "text, not a file"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "not valid JSON"),
        ({"json": {"picture": "x"}}, "base64"),
        ({"json": {"image": ""}}, "base64"),
        ({"json": {"image": 5}}, "base64"),
        ({"json": {"image": [5]}}, "base64 string"),
        ({"json": {"image": "not base64!"}}, "not valid base64"),
        ({"json": [1]}, "base64"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "multipart"),
        (
            {
                "content": b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nhalf a file',
                "headers": {"content-type": "multipart/form-data; boundary=b"},
            },
            "before its last boundary",
        ),
    ],
)
async def test_no_picture(client: httpx.AsyncClient, request_parts: dict[str, Any], said: str) -> None:
    assert said in refused(await client.post("/predict", **request_parts), 400, "invalid_request")


async def test_unknown_format_and_broken_picture(client: httpx.AsyncClient) -> None:
    assert "JPEG" in refused(await client.post("/predict", content=b"%PDF-1.7 hello"), 415, "unsupported_format")
    refused(await client.post("/predict", content=png(1, (60, 60))[:60]), 422, "broken_picture")


async def test_too_large(client: httpx.AsyncClient) -> None:
    assert "5000 bytes" in refused(await client.post("/predict", content=b"x" * 5001), 413, "too_large")

    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield b"x" * 1000

    refused(await client.post("/predict", content=unannounced()), 413, "too_large")
    assert "10000" in refused(await client.post("/predict", content=png(1, (200, 51))), 413, "too_large")
    many = [("image", ("a.png", b"x"))] * 65
    refused(await client.post("/predict", files=many), 413, "too_large")


async def test_unknown_model_route_and_method(client: httpx.AsyncClient) -> None:
    assert "served: fake" in refused(
        await client.post("/predict", params={"model": "vgg"}, content=png(1)), 404, "unknown_model"
    )
    assert (await client.post("/predict", params={"model": "fake"}, content=png(1))).status_code == 200
    refused(await client.get("/nothing"), 404, "not_found")
    answer = await client.get("/predict")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_overload_says_when_to_come_back(classifier: FakeClassifier) -> None:
    classifier.gate.clear()
    app = create_app(FakeService(classifier, max_queued_pictures=1, max_pictures_per_request=1))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        taken = asyncio.create_task(http.post("/predict", content=png(1)))
        while not classifier.chunks:
            await asyncio.sleep(0.001)
        answer = await http.post("/predict", content=png(2))
        refused(answer, 429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        classifier.gate.set()
        assert best((await taken).json()) == 1


async def test_deadline(client: httpx.AsyncClient, classifier: FakeClassifier) -> None:
    classifier.gate.clear()
    answer = await client.post("/predict", content=png(1), headers={"x-request-timeout-ms": "30"})
    refused(answer, 504, "deadline_exceeded")


async def test_a_fault_of_ours_says_nothing_of_the_inside(
    client: httpx.AsyncClient, classifier: FakeClassifier
) -> None:
    classifier.errors = [RuntimeError("secret path /srv/engines")]
    assert "secret" not in refused(await client.post("/predict", content=png(1)), 500, "inference_failed")


async def test_an_unforeseen_exception_is_an_answer_too(client: httpx.AsyncClient, service: FakeService) -> None:
    service.describe = None  # type: ignore[assignment]
    assert "NoneType" not in refused(await client.get("/models"), 500, "internal")


async def test_a_classifier_that_is_away(client: httpx.AsyncClient, classifier: FakeClassifier) -> None:
    classifier.errors = [NotReady("no classifier is available; try again in a second")]
    answer = await client.post("/predict", content=png(1))
    refused(answer, 503, "not_ready")
    assert answer.headers["retry-after"] == "1"


async def test_health(client: httpx.AsyncClient, service: FakeService) -> None:
    assert (await client.get("/healthz")).json() == {"live": True}
    assert (await client.get("/readyz")).json() == {"ready": True}
    service.is_ready = False
    refused(await client.get("/readyz"), 503, "not_ready")
    assert (await client.get("/healthz")).status_code == 200


async def test_models_and_page(client: httpx.AsyncClient) -> None:
    assert (await client.get("/models")).json() == {"models": [{"name": "fake"}]}
    page = await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<html" in page.text
    # Strict: the page's own files, nothing inline, nobody else's.
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    again = await client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["__init__.py", "..%2Ferrors.py", "nothing.js", ""])
async def test_only_files_of_the_page_are_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get("/static/index.html")).status_code == 200
    refused(await client.get(f"/static/{name}"), 404, "not_found")


async def test_each_model_answers_under_its_name(classifier: FakeClassifier) -> None:
    service = FakeService(classifier, names=("first", "second"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://test") as http:
        answers = [
            (await http.post("/predict", params=params, content=png(1))).json()["model"]
            for params in ({}, {"model": "second"}, {"model": "first"})
        ]
        assert answers == ["first", "second", "first"]
        refused(await http.post("/predict", params={"model": "third"}, content=png(1)), 404, "unknown_model")
        live = (await http.get("/live")).json()
    assert list(live["models"]) == ["first", "second"]
    assert service.metrics["first"].tally.totals().answered == 2
    assert service.metrics["second"].tally.totals().answered == 1


async def test_metrics_that_cannot_be_read_are_not_ready(client: httpx.AsyncClient) -> None:
    refused(await client.get("/metrics"), 503, "not_ready")


async def test_every_request_gives_back_what_it_held(client: httpx.AsyncClient, service: FakeService) -> None:
    await asyncio.gather(
        *(client.post("/predict", content=body) for body in (png(1), b"junk", b"", b"x" * 6000, png(2)[:50]))
    )
    assert (service.models["fake"].admission.queued_pictures, service.models["fake"].admission.queued_bytes) == (0, 0)


async def test_a_flood_is_refused_before_its_body_is_read(service: FakeService, client: httpx.AsyncClient) -> None:
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"piece")
        yield png(1)

    with service.models["fake"].admission.ticket() as flood:
        flood.add_pictures(250, 30)  # 2.5 s at 100/s
        service.models["fake"].admission._limits = service.models["fake"].admission._limits.model_copy(
            update={"max_wait_ms": 2000}
        )
        answer = await client.post("/predict", content=body())
        refused(answer, 429, "overloaded")
        assert answer.headers["retry-after"] == "2"  # 1.1 s, and whole seconds are told
        assert read == []


async def test_retries_are_let_in_before_newcomers_and_batch_after_them(
    service: FakeService, client: httpx.AsyncClient
) -> None:
    with service.models["fake"].admission.ticket() as waiting:
        waiting.add_pictures(240, 30)  # 2.4 s at 100/s, where 5 s are the most, 3.5 for newcomers, 1.75 for batch
        assert (await client.post("/predict", content=png(1))).status_code == 200
        refused(await client.post("/predict", content=png(1), headers={"x-priority": "batch"}), 429, "overloaded")
        again = {"x-priority": "batch", "x-retry-attempt": "1"}
        assert (await client.post("/predict", content=png(1), headers=again)).status_code == 200


@pytest.mark.parametrize("header", [{"x-priority": "urgent"}, {"x-retry-attempt": "-1"}, {"x-retry-attempt": "again"}])
async def test_headers_that_mean_nothing_are_refused(client: httpx.AsyncClient, header: dict[str, str]) -> None:
    assert next(iter(header)) in refused(
        await client.post("/predict", content=png(1), headers=header), 422, "bad_parameter"
    )
