"""Both clients and the command against the real routes of a replica, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from serve_app.cli import main
from serve_app.client import AsyncClient, Client, ClientError, Refused, Rejected, TimeUp
from serve_app.ingress import create_app
from tests.openapi_helpers import FakeService
from tests.test_ingress import png


@contextmanager
def listening(service: FakeService) -> Iterator[str]:
    """The address of a server in a thread, gone afterwards."""
    config = uvicorn.Config(create_app(service), port=0, lifespan="off", ws="none", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.001)
    try:
        yield "http://127.0.0.1:{1}".format(*server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    with listening(service) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_one_picture(client: Client) -> None:
    answer = client.classify(png(3), top_k=2, model="flowers")
    assert (answer.model, answer.version, answer.trained) == ("flowers", 1, True)
    assert answer.predictions[0].label == "label 3"
    assert len(answer.predictions) == 2
    assert answer.timing.inference > 0


def test_more_than_a_request_may_have(client: Client) -> None:
    pictures = [png(number) for number in range(5)] + [b"junk", png(4)]
    results = list(client.classify_many(pictures, per_request=7))  # of which the service takes three
    assert [one.code if isinstance(one, ClientError) else one.predictions[0].class_id for one in results] == [
        0, 1, 2, 3, 4, "unsupported_format", 4,
    ]  # fmt: skip


async def test_side_by_side(address: str) -> None:
    async with AsyncClient(address) as client:
        results = [one async for one in client.classify_many([png(number) for number in range(5)])]
        assert await client.ready()
    assert [None if isinstance(one, ClientError) else one.predictions[0].class_id for one in results] == [0, 1, 2, 3, 4]


def test_a_refusal_is_a_promise(service: FakeService, address: str) -> None:
    """The service is full until the client has waited as long as it was told to."""
    admission, waits = service.models["fake"].admission, list[float]()
    with admission.ticket() as flood:
        flood.add_pictures(190, 30)  # 1.9 s at 100/s; newcomers are refused from 1.4 s on, retries from 2 s

        def sleep(seconds: float) -> None:
            waits.append(seconds)

        with Client(address, sleep=sleep) as client:
            assert client.classify(png(1)).predictions[0].class_id == 1
            assert waits == [1.0]
            with pytest.raises(Refused, match="s of pictures are waiting"):
                client.classify(png(1), priority="batch")
    assert len(waits) == 1 + 4


def test_the_service_drops_what_is_late(service: FakeService, client: Client) -> None:
    service.classifier.gate.clear()
    with pytest.raises(TimeUp):
        client.classify(png(1), timeout_s=0.05)


def test_errors(client: Client) -> None:
    for options, code, status in (({"model": "vgg"}, "unknown_model", 404), ({"top_k": 6}, "bad_parameter", 422)):
        with pytest.raises(Rejected) as caught:
            client.classify(png(1), **options)  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.status) == (code, status)


def test_what_it_says_of_itself(service: FakeService, client: Client) -> None:
    first, second = client.models()
    assert (first.name, first.num_classes, first.default, second.default) == ("fake", 5, True, False)
    service.count()
    view = client.live()
    assert view.models["fake"].shed_per_s > 0
    assert view.models["fake"].batch_pictures == 2
    assert [(one.deployment, one.running_replicas) for one in view.stages] == [("Preprocessor", 1)]
    service.is_ready = False
    assert client.ready() is False


def test_a_folder(address: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "results.jsonl"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "cut.png").write_bytes(png(1, (60, 60))[:60])
    assert main(["classify", str(folder), "--out", str(out), "--address", address, "--model", "flowers"]) == 3
    rows = {Path(row["path"]).stem: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows.pop("cut")["error"]["code"] == "broken_picture"
    assert {name: row["predictions"][0]["class_id"] for name, row in rows.items()} == {str(n): n for n in range(5)}
