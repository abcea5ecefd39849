"""The contract of the native API, against the real service, in both placements."""

from __future__ import annotations

import base64
import io
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from scripts.consistency import run
from tests.service.conftest import MODEL

pytestmark = pytest.mark.service


def label(result: dict[str, Any]) -> str:
    return str(result["predictions"][0]["label"])


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert "Traceback" not in answer.text


def test_a_photograph_is_named(client: httpx.Client, photographs: dict[str, bytes]) -> None:
    answer = client.post("/predict", content=photographs["espresso.jpg"])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model"], body["trained"], label(body)) == (MODEL, True, "espresso")
    assert len(body["predictions"]) == 3
    assert all(body["timing_ms"][stage] >= 0 for stage in ("queue", "preprocess", "inference"))


def test_every_way_to_send_a_picture_gives_the_same_answer(client: httpx.Client, photographs: dict[str, bytes]) -> None:
    cat = photographs["cat.jpg"]
    text = base64.b64encode(cat).decode()
    answers = [
        client.post("/predict", content=cat),
        client.post("/predict", content=cat, headers={"content-type": "image/jpeg"}),
        client.post("/predict", files={"image": ("cat.jpg", cat, "image/jpeg")}),
        client.post("/predict", json={"image": text}),
    ]
    assert len({str(answer.json()["predictions"]) for answer in answers}) == 1
    results = client.post("/predict", json={"image": [text, text]}).json()["results"]
    assert [result["predictions"] for result in results] == [answers[0].json()["predictions"]] * 2


def test_several_pictures_with_a_bad_one_among_them(client: httpx.Client, photographs: dict[str, bytes]) -> None:
    files = [("image", (name, body)) for name, body in photographs.items()]
    files.insert(1, ("image", ("bad.jpg", b"\xff\xd8\xff\xe0 no more")))
    results = client.post("/predict", files=files).json()["results"]
    assert len(results) == len(files)
    assert results[1]["error"]["code"] == "broken_picture"
    alone = [client.post("/predict", content=body).json()["predictions"] for body in photographs.values()]
    assert [result["predictions"] for result in results if "predictions" in result] == alone


def test_top_k(client: httpx.Client, photographs: dict[str, bytes]) -> None:
    cat = photographs["cat.jpg"]
    for k in (1, 10, 1000):
        predictions = client.post("/predict", params={"top_k": k}, content=cat).json()["predictions"]
        scores = [one["score"] for one in predictions]
        assert len(predictions) == k
        assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=0.01)
    refused(client.post("/predict", params={"top_k": 1001}, content=cat), 422, "bad_parameter")


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


ERRORS: list[tuple[int, str, Callable[[httpx.Client, bytes], httpx.Response]]] = [
    (400, "invalid_request", lambda http, cat: http.post("/predict")),
    (400, "invalid_request", lambda http, cat: http.post("/predict", files={"photo": cat})),
    (400, "invalid_request", lambda http, cat: http.post("/predict", json={"image": "?"})),
    (404, "unknown_model", lambda http, cat: http.post("/predict", params={"model": "vgg16"}, content=cat)),
    (404, "not_found", lambda http, cat: http.get("/favicon.ico")),
    (405, "method_not_allowed", lambda http, cat: http.get("/predict")),
    (413, "too_large", lambda http, cat: http.post("/predict", content=cat + bytes(20 * 2**20))),
    (413, "too_large", lambda http, cat: http.post("/predict", content=png(8000, 7000))),
    (415, "unsupported_format", lambda http, cat: http.post("/predict", content=b"<svg/>")),
    (422, "broken_picture", lambda http, cat: http.post("/predict", content=cat[: len(cat) // 2])),
    (422, "bad_parameter", lambda http, cat: http.post("/predict", params={"top_k": "many"}, content=cat)),
    (422, "bad_parameter", lambda http, cat: http.post("/predict", headers={"x-request-timeout-ms": "x"}, content=cat)),
    (
        504,
        "deadline_exceeded",
        lambda http, cat: http.post("/predict", headers={"x-request-timeout-ms": "1"}, content=cat),
    ),
]


@pytest.mark.parametrize(("status", "code", "send"), ERRORS, ids=[f"{s} {c} {i}" for i, (s, c, _) in enumerate(ERRORS)])
def test_errors_of_the_contract(
    client: httpx.Client,
    photographs: dict[str, bytes],
    status: int,
    code: str,
    send: Callable[[httpx.Client, bytes], httpx.Response],
) -> None:
    refused(send(client, photographs["cat.jpg"]), status, code)


def test_overload_is_announced_and_what_is_taken_is_answered(address: str, photographs: dict[str, bytes]) -> None:
    """20 requests of 64 pictures, where a replica holds 256 pictures and there are at most two."""
    files = [("image", ("cat.jpg", photographs["cat.jpg"]))] * 64

    def one(_: int) -> httpx.Response:
        return httpx.post(f"{address}/predict", files=files, timeout=120)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(20)))
    taken = [answer for answer in answers if answer.status_code == 200]
    turned_away = [answer for answer in answers if answer.status_code == 429]
    assert len(taken) + len(turned_away) == len(answers), {answer.status_code for answer in answers}
    assert taken
    assert turned_away
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in turned_away)
    assert all(answer.json()["error"]["code"] == "overloaded" for answer in turned_away)
    results = [result for answer in taken for result in answer.json()["results"]]
    assert len(results) == 64 * len(taken)
    assert len({str(result["predictions"]) for result in results}) == 1


def test_64_clients_get_the_answers_of_lone_requests(address: str, photographs: dict[str, bytes]) -> None:
    result = run(address, photographs, requests=400, clients=64)
    assert (result.requests, result.errors, result.different) == (400, [], [])


def test_clients_that_hang_up_harm_nobody(address: str, photographs: dict[str, bytes]) -> None:
    cat = photographs["cat.jpg"]
    place = urlsplit(address)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(cat)}\r\n\r\n".encode()
    whole = head + cat
    for turn in range(90):
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.sendall(whole[: (len(head) // 2, len(whole) // 2, len(whole))[turn % 3]])
            time.sleep((0, 0.001, 0.01)[turn // 3 % 3])
    result = run(address, photographs, requests=80, clients=16)
    assert (result.requests, result.errors, result.different) == (80, [], [])


def test_health_models_and_page(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"live": True}
    assert client.get("/readyz").json() == {"ready": True}
    [model] = client.get("/models").json()["models"]
    assert (model["name"], model["backend"], model["num_classes"]) == (MODEL, "openvino", 1000)
    assert "<html" in client.get("/").text


def test_what_was_answered_is_counted(
    address: str, client: httpx.Client, workplace: Path, photographs: dict[str, bytes]
) -> None:
    """At the port that the start names: our own counter, Serve's count of requests, and the batches."""
    client.post("/predict", content=photographs["cat.jpg"]).raise_for_status()
    log = (workplace / f"service-{urlsplit(address).port}.log").read_text()
    url = re.findall(r"metrics: (\S+)", log)[-1]
    wanted = {
        "ray_image_serve_pictures_total": 'outcome="ok"',
        "ray_image_serve_batch_pictures_count": "",
        "ray_serve_num_http_requests_total": "",
    }
    until_s = time.monotonic() + 40  # Ray exports every few seconds
    while (missing := [name for name, label in wanted.items() if not _counted(url, name, label)]) and (
        time.monotonic() < until_s
    ):
        time.sleep(0.5)
    assert not missing


def _counted(url: str, name: str, label: str) -> bool:
    lines = [line for line in httpx.get(url, timeout=10).text.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if label in line) > 0
