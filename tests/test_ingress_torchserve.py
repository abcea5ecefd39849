"""TorchServe's inference API over ASGI, with a fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve_app.errors import InferenceFailed
from serve_app.ingress import create_app
from serve_app.pipeline import Serving
from serve_app.preprocess import make_preprocess
from tests.fakes import FakeClassifier, FakeService, manifest, split
from tests.test_v2 import noise, png


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def service(classifier: FakeClassifier) -> FakeService:
    return FakeService(classifier, names=("fake", "other"))


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://test") as http:
        yield http


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    body = answer.json()
    assert (answer.status_code, body["code"], body["type"]) == (status, status, kind), answer.text
    assert set(body) == {"code", "type", "message"}
    assert answer.headers["content-type"] == "application/json"
    return str(body["message"])


@pytest.mark.parametrize(
    "parts",
    [
        {"content": png(3)},
        {"content": png(3), "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"files": {"data": ("a.png", png(3))}},
        {"files": {"body": ("a.png", png(3))}},
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_every_way_to_send_a_picture(client: httpx.AsyncClient, parts: dict[str, Any], method: str) -> None:
    answer = await client.request(method, "/predictions/fake", **parts)
    assert answer.status_code == 200, answer.text
    scores = answer.json()
    assert next(iter(scores)) == "label 3"
    assert len(scores) == 5
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert sum(scores.values()) == pytest.approx(1)


async def test_versions(client: httpx.AsyncClient) -> None:
    for version in ("1", "1.0"):
        assert (await client.post(f"/predictions/other/{version}", content=png(1))).status_code == 200
    for path in ("/predictions/other/2", "/predictions/missing", "/predictions/fake_tensor"):
        assert "served" in refused(await client.post(path, content=png(1)), 404, "ModelNotFoundException")


async def test_ping(client: httpx.AsyncClient, service: FakeService) -> None:
    assert (await client.get("/ping")).json() == {"status": "Healthy"}
    service.is_ready = False
    refused(await client.get("/ping"), 503, "ServiceUnavailableException")
    refused(await client.post("/ping"), 405, "MethodNotAllowedException")


@pytest.mark.parametrize(
    ("parts", "status", "kind", "said"),
    [
        ({"content": b""}, 400, "BadRequestException", "empty"),
        ({"content": b"junk"}, 415, "BadRequestException", "not a picture format"),
        ({"content": png(1)[:-30]}, 422, "BadRequestException", "truncated"),
        ({"content": bytes(6000)}, 413, "RequestEntityTooLargeException", "5000 bytes"),
        ({"files": {"image": ("a.png", png(1))}}, 400, "BadRequestException", "-F data=@photo.jpg"),
        ({"files": [("data", ("a.png", b"x")), ("body", ("b.png", b"x"))]}, 400, "BadRequestException", "one each"),
        ({"content": png(1), "headers": {"x-request-timeout-ms": "0"}}, 422, "BadRequestException", "timeout"),
    ],
)
async def test_wrong_requests(client: httpx.AsyncClient, parts: Any, status: int, kind: str, said: str) -> None:
    assert said in refused(await client.post("/predictions/fake", **parts), status, kind)


async def test_faults_and_floods(client: httpx.AsyncClient, service: FakeService, classifier: FakeClassifier) -> None:
    classifier.errors = [InferenceFailed("it broke")]
    assert refused(await client.post("/predictions/fake", content=png(1)), 500, "InternalServerException") == "it broke"
    with service.models["fake"].admission.ticket(retry=True) as before:
        before.add_pictures(256, 1e9)
        answer = await client.post("/predictions/fake", content=png(1))
        refused(answer, 429, "TooManyRequestsException")
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_fault_of_ours_is_not_explained_to_clients(client: httpx.AsyncClient, service: FakeService) -> None:
    async def ready(model: str | None = None) -> bool:
        raise RuntimeError("secret")

    service.ready = ready  # type: ignore[method-assign]
    assert "secret" not in refused(await client.get("/ping"), 500, "InternalServerException")


async def test_a_file_that_is_cut_out_of_the_body_counts_twice() -> None:
    picture = noise()
    service = FakeService(FakeClassifier(), max_queued_bytes=len(picture) + 1000)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://test") as http:
        assert (await http.post("/predictions/fake", content=picture)).status_code == 200
        answer = await http.post("/predictions/fake", files={"data": ("a.png", picture)})
        assert "bytes" in refused(answer, 429, "TooManyRequestsException")


async def test_of_classes_with_one_label_the_best_counts(client: httpx.AsyncClient, service: FakeService) -> None:
    pipeline = service.models["fake"]
    labels = ("crane", "crane", "crane", "crane", "other")
    decode = make_preprocess("exact", manifest().input, 10_000)
    await pipeline.replace(Serving(manifest(labels=labels), split(FakeClassifier(), decode), 100.0))
    scores = (await client.post("/predictions/fake", content=png(2))).json()
    assert list(scores) == ["crane", "other"]
    assert scores["crane"] > 0.9


async def test_other_paths(client: httpx.AsyncClient) -> None:
    refused(await client.get("/predictions/fake"), 405, "MethodNotAllowedException")
    refused(await client.post("/predictions/a/b/c", content=b"x"), 404, "ResourceNotFoundException")
