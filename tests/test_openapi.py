"""The description: valid, whole, and held by the answers of a replica in this process."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from PIL import Image
from pydantic import BaseModel
from starlette.routing import Route

from serve_app import api
from serve_app.errors import InferenceFailed, MethodNotAllowed, NotReady, RequestError, ServeError, UnknownRoute
from serve_app.ingress import create_app
from serve_app.ingress.torchserve import PING, PREDICTIONS
from serve_app.ingress.v2_http import PREFIX, V2
from serve_app.openapi import Served, document
from serve_app.openapi.page import operations
from serve_app.openapi.parts import MEANING
from serve_app.settings import LimitSettings
from tests.openapi_helpers import SERVED, FakeService, base64_of, contents, served_document, undocumented, validator

README = Path(__file__).parent.parent / "README.md"
INPUT = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"content_type": "base64"}}
BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}


def png(size: tuple[int, int] = (6, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


def below(prefix: str) -> dict[str, set[str]]:
    """Methods of each described path that begins so."""
    paths = served_document()["paths"].items()
    return {path: {one.upper() for one in item} for path, item in paths if path.startswith(prefix)}


def example_path(path: str) -> str:
    """With the examples of its parameters."""
    item = served_document()["paths"][path]
    parameters = next(iter(item.values())).get("parameters", [])
    examples = {each["name"]: str(each["example"]) for each in parameters if each["in"] == "path"}
    return path.format(**examples)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


def test_it_is_valid_openapi_3_1() -> None:
    assert served_document()["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(served_document()).iter_errors()) == []


def test_the_validator_finds_what_is_wrong() -> None:
    wrong = {**served_document(), "paths": {"/predict": {"post": {"responses": {"200": {}}}}}}
    assert list(OpenAPIV31SpecValidator(wrong).iter_errors())


def test_every_route_is_described_and_nothing_else(service: FakeService) -> None:
    routes = [route for route in create_app(service).routes if isinstance(route, Route) and route.methods]
    served = {route.path: (route.methods or set()) - {"HEAD"} for route in routes}
    elsewhere = below(PREFIX) | below(PREDICTIONS) | below(PING)
    assert below("/") == served | elsewhere
    assert not set(served) & set(elsewhere)


def test_every_route_of_the_protocol_is_described_and_nothing_else(service: FakeService) -> None:
    """Each described path is one of the patterns, with all of its methods; and no part that a pattern may have is left
    out of the description."""
    described: dict[str, list[str]] = {}
    for path, methods in below(PREFIX).items():
        first = next((pattern, of) for pattern, of in V2(service)._routes if pattern.fullmatch(example_path(path)))
        assert set(first[1]) == methods, path
        described.setdefault(first[0].pattern, []).append(path)
    assert set(described) == {pattern.pattern for pattern, _ in V2(service)._routes}
    for pattern, paths in described.items():
        alternatives = 2 ** pattern.count("|") * 2 ** len(re.findall(r"\)\?", pattern))
        assert len(paths) == alternatives, (pattern, paths)


async def test_every_described_route_of_torchserve_is_there(client: httpx.AsyncClient) -> None:
    for path, methods in (below(PREDICTIONS) | below(PING)).items():
        refused = await client.delete(example_path(path))
        assert refused.status_code == 405
        assert set(re.findall(r"GET|POST|PUT", refused.text.partition("use ")[2])) == methods


def test_names_of_operations_are_unique_and_their_tags_are_known() -> None:
    every = [one for _, _, one in operations(served_document())]
    assert len({one["operationId"] for one in every}) == len(every)
    assert {one["tags"][0] for one in every} <= {tag["name"] for tag in served_document()["tags"]}


def test_every_error_class_is_in_the_table_and_those_of_routes_at_a_route() -> None:
    errors = set(api.error_classes())
    assert errors <= set(MEANING)
    [table] = [tag["description"] for tag in served_document()["tags"] if tag["name"] == "Errors"]
    assert all(f"| {one.status.value} | `{one.code}` | {MEANING[one]} |" in table for one in errors)
    answered = " ".join(
        answer["description"] for _, _, one in operations(served_document()) for answer in one["responses"].values()
    )
    missing = {one for one in errors if f"`{one.code}`" not in answered}
    assert missing == {RequestError, MethodNotAllowed}  # of no operation: another method than those described


def test_the_readme_has_the_same_table() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (`[^|]*`) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    told = {(int(status), code) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert told == {(one.status.value, one.code) for one in api.error_classes()} - {(400, RequestError.code)}


def test_every_answer_that_says_when_to_come_back_is_described_so() -> None:
    for _, _, one in operations(served_document()):
        for status in ("429", "503"):
            if status in one["responses"]:
                assert one["responses"][status]["headers"]["Retry-After"]["required"]


def test_examples_are_what_their_schemas_say() -> None:
    whole = served_document()
    checked = 0
    for place, kind, body in contents(whole):
        for name, example in body.get("examples", {}).items():
            problems = [problem.message for problem in validator(body["schema"], whole).iter_errors(example["value"])]
            assert not problems, (place, kind, name)
            checked += 1
    assert checked > 20


def test_bounds_are_those_of_the_configuration() -> None:
    limits = LimitSettings(max_pictures_per_request=7, max_timeout_ms=50, default_timeout_ms=50)
    one = document(Served(("roses",), 12, limits))["paths"]["/predict"]["post"]
    parameters = {parameter["name"]: parameter for parameter in one["parameters"]}
    assert parameters["top_k"]["schema"]["maximum"] == 12
    assert parameters["x-request-timeout-ms"]["schema"]["maximum"] == 50
    assert parameters["model"]["example"] == "roses"
    assert one["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["image"]["maxItems"] == 7


PREDICT: list[tuple[int, dict[str, Any]]] = [
    (200, {"content": png()}),
    (200, {"content": png(), "params": {"top_k": 5, "model": "flowers"}}),
    (200, {"json": {"image": [base64_of(png()), base64_of(b"junk")]}}),
    (200, {"files": [("image", ("a.png", png())), ("image", ("b.png", png()))]}),
    (400, {"content": b""}),
    (400, {"json": {"image": None}}),
    (400, {"content": b"--b", "headers": BOUNDARY}),
    (404, {"content": png(), "params": {"model": "vgg"}}),
    (413, {"content": bytes(5001)}),
    (415, {"content": b"%PDF"}),
    (422, {"content": png((90, 90))[:70]}),
    (422, {"content": png(), "params": {"top_k": 6}}),
    (422, {"content": png(), "headers": {"x-priority": "urgent"}}),
    (504, {"content": png((99, 99)), "headers": {"x-request-timeout-ms": "1"}}),
]


@pytest.mark.parametrize(("status", "request_parts"), PREDICT, ids=[f"{i} {one[0]}" for i, one in enumerate(PREDICT)])
async def test_answers_of_predict(
    client: httpx.AsyncClient, service: FakeService, status: int, request_parts: dict[str, Any]
) -> None:
    if status == 504:
        service.classifier.gate.clear()
    answer = await client.post("/predict", **request_parts)
    assert answer.status_code == status, answer.text
    assert undocumented(served_document(), "/predict", answer) is None


async def test_examples_of_bodies_work(client: httpx.AsyncClient) -> None:
    examples = served_document()["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        answer = await client.post("/predict", json=example["value"])
        assert answer.status_code == 200, answer.text
        assert "error" not in answer.text


@pytest.mark.parametrize(
    "error", [InferenceFailed("x"), NotReady("x"), RuntimeError("x")], ids=lambda e: type(e).__name__
)
async def test_faults_are_described_too(client: httpx.AsyncClient, service: FakeService, error: Exception) -> None:
    service.classifier.errors = [error]
    answer = await client.post("/predict", content=png())
    assert answer.status_code >= 500
    assert undocumented(served_document(), "/predict", answer) is None


@pytest.mark.parametrize("path", ["/predict", "/v2/models/{model}/infer", "/predictions/{model}"])
async def test_overload_is_described(client: httpx.AsyncClient, service: FakeService, path: str) -> None:
    with service.models["fake"].admission.ticket() as flood:
        flood.add_pictures(250, 30)
        answer = await client.post(example_path(path), content=png())
    assert answer.status_code == 429
    assert undocumented(served_document(), path, answer) is None


@pytest.mark.parametrize("path", ["/models", "/live", "/healthz", "/readyz", "/metrics", "/", "/docs", "/openapi.json"])
async def test_answers_of_the_other_routes(client: httpx.AsyncClient, service: FakeService, path: str) -> None:
    for _ in range(2):
        answer = await client.get(path)
        assert answer.status_code == (503 if path == "/metrics" else 200), answer.text  # there is no exporter here
        assert undocumented(served_document(), path, answer) is None
        service.count()


async def test_not_ready_is_described(client: httpx.AsyncClient, service: FakeService) -> None:
    service.is_ready = False
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert undocumented(served_document(), "/readyz", answer) is None


async def test_files_of_the_page_are_described(client: httpx.AsyncClient) -> None:
    first = await client.get("/static/index.html")
    kept = await client.get("/static/index.html", headers={"if-none-match": first.headers["etag"]})
    answers = [first, kept, await client.get("/static/nothing.js")]
    assert [answer.status_code for answer in answers] == [200, 304, 404]
    assert [undocumented(served_document(), "/static/{name}", answer) for answer in answers] == [None] * 3


@pytest.mark.parametrize("path", [path for path, methods in below(PREFIX).items() if "GET" in methods])
async def test_answers_of_the_protocol(client: httpx.AsyncClient, service: FakeService, path: str) -> None:
    for ready in (True, False):
        answer = await client.get(example_path(path))
        assert answer.status_code == (200 if ready or not path.endswith("/ready") else 503)
        assert undocumented(served_document(), path, answer) is None
        service.is_ready = False
        service.count()
    if "{model}" in path:
        answer = await client.get(example_path(path).replace("/fake", "/vgg"))
        assert answer.status_code == 404
        assert undocumented(served_document(), path, answer) is None


INFER_PATH = "/v2/models/{model}/infer"
RAW = {"inference-header-content-length": "0"}
INFER: list[tuple[int, dict[str, Any]]] = [
    (200, {"content": png(), "headers": RAW}),
    (200, {"json": {"inputs": [{**INPUT, "data": [base64_of(png())]}], "parameters": {"binary_data_output": True}}}),
    (400, {"content": b""}),
    (400, {"json": {"inputs": []}}),
    (400, {"content": b"%PDF", "headers": RAW}),
    (400, {"content": bytes(5001), "headers": RAW}),
    (400, {"content": png((90, 90))[:70], "headers": RAW}),
    (400, {"content": png(), "headers": {**RAW, "x-retry-attempt": "soon"}}),
    (501, {"content": png(), "headers": {**RAW, "content-encoding": "br"}}),
]


@pytest.mark.parametrize(("status", "request_parts"), INFER, ids=[f"{i} {one[0]}" for i, one in enumerate(INFER)])
async def test_answers_of_infer(client: httpx.AsyncClient, status: int, request_parts: dict[str, Any]) -> None:
    answer = await client.post("/v2/models/fake/infer", **request_parts)
    assert answer.status_code == status, answer.text
    assert undocumented(served_document(), INFER_PATH, answer) is None


PREDICTIONS_PATH = "/predictions/{model}"
TORCHSERVE: list[tuple[int, dict[str, Any]]] = [
    (200, {"content": png()}),
    (200, {"files": {"data": ("a.png", png())}}),
    (400, {"content": b""}),
    (413, {"content": bytes(5001)}),
    (415, {"content": b"%PDF"}),
    (422, {"content": png((90, 90))[:70]}),
    (422, {"content": png(), "headers": {"x-request-timeout-ms": "soon"}}),
]


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(("status", "request_parts"), TORCHSERVE)
async def test_answers_of_torchserve(
    client: httpx.AsyncClient, method: str, status: int, request_parts: dict[str, Any]
) -> None:
    for name, code in (("fake", status), ("vgg", 404)):
        answer = await client.request(method, f"/predictions/{name}", **request_parts)
        assert answer.status_code == code, answer.text
        assert undocumented(served_document(), PREDICTIONS_PATH, answer) is None


async def test_answers_of_ping(client: httpx.AsyncClient, service: FakeService) -> None:
    for ready in (True, False):
        service.is_ready = ready
        answer = await client.get(PING)
        assert answer.status_code == (200 if ready else 503)
        assert undocumented(served_document(), PING, answer) is None


@pytest.mark.parametrize(
    ("path", "model"), [("/models", api.Models), ("/live", api.Live), ("/healthz", api.Alive), ("/readyz", api.Ready)]
)
async def test_nothing_is_answered_that_is_not_declared(
    client: httpx.AsyncClient, service: FakeService, path: str, model: type[BaseModel]
) -> None:
    service.count()
    model.model_validate_json((await client.get(path)).content, extra="forbid", strict=True)


async def test_predict_answers_nothing_that_is_not_declared(client: httpx.AsyncClient) -> None:
    one = (await client.post("/predict", content=png())).json()
    api.Answer.model_validate(one, extra="forbid", strict=True)
    many = await client.post("/predict", json={"image": [base64_of(png()), base64_of(b"junk")]})
    api.ManyAnswers.model_validate(many.json(), extra="forbid", strict=True)
    refused = (await client.post("/predict", content=b"junk")).json()
    api.ErrorAnswer.model_validate(refused, extra="forbid", strict=True)


async def test_the_document_that_is_served_is_of_this_service(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == document(SERVED)


async def test_it_says_where_the_service_is_mounted(service: FakeService) -> None:
    transport = httpx.ASGITransport(create_app(service), root_path="/pictures")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        whole = (await http.get("/pictures/openapi.json")).json()
        text = (await http.get("/pictures/docs")).text
    assert whole["servers"] == [{"url": "/pictures"}]
    assert "http://test/pictures/predict" in text


async def test_what_is_not_described_is_refused_as_the_description_says(client: httpx.AsyncClient) -> None:
    said = served_document()["info"]["description"]
    for answer, error in (
        (await client.get("/nothing"), UnknownRoute),
        (await client.get("/predict"), MethodNotAllowed),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (error.status, error.code)
        assert f"{error.status.value} `{error.code}`" in said
        api.ErrorAnswer.model_validate(answer.json())


async def test_a_fault_of_the_description_is_an_answer(client: httpx.AsyncClient, service: FakeService) -> None:
    service.models = {}
    answer = await client.get("/openapi.json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (ServeError.status, ServeError.code)
    assert undocumented(served_document(), "/openapi.json", answer) is None
