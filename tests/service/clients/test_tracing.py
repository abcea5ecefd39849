"""Traces from a request to the engine, and its line in the log, of the service that all tests here share.

The service records what its clients sample, and nothing else, so that this costs the other tests nothing.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from scripts.local_service import grpc_address
from serve_app.oip.messages import MESSAGES

PATIENCE_S = 15.0
COLOCATED, SPLIT = "efficientnet_lite0", "samples4"
OURS = ("picture", "decode", "queue", "engine")
Span = dict[str, Any]


@pytest.fixture(scope="module")
def http(clients_address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=clients_address, timeout=60) as client:
        yield client


class Client:
    """Who asks for a trace of one request."""

    def __init__(self, folder: Path, flags: str = "01") -> None:
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.traceparent = f"00-{self.trace_id}-{self.span_id}-{flags}"
        self.headers = {"traceparent": self.traceparent, "x-request-id": f"test-{self.trace_id}"}
        self._folder = folder

    def spans(self) -> dict[str, list[Span]]:
        """Of this trace so far, by name; each knows which process made it."""
        found: dict[str, list[Span]] = {}
        for file in self._folder.glob("spans-*.jsonl"):
            for line in file.read_text().splitlines():
                if self.trace_id in line:
                    span = json.loads(line)
                    span["pid"] = int(file.stem.rpartition("-")[2])
                    found.setdefault(span["name"], []).append(span)
        return found

    def whole(self) -> dict[str, list[Span]]:
        """All of them, once ours and that of the request are there: each process writes twice a second.

        The request's is Serve's, or ours where its own proxy stood between: in the first moments after a start.
        """

        def are_there(spans: dict[str, list[Span]]) -> bool:
            return spans.keys() >= set(OURS) and len(self._begun(spans)) == 1

        return _once(self.spans, are_there) | {"request": self._begun(self.spans())}

    def _begun(self, spans: dict[str, list[Span]]) -> list[Span]:
        return [span for same in spans.values() for span in same if span["parent_id"] == f"0x{self.span_id}"]

    def line(self) -> dict[str, Any]:
        """The request's line in the log of the replica that it went to."""
        [request] = self.whole()["request"]
        [log] = {
            Path(file.path)
            for file in psutil.Process(request["pid"]).open_files()
            if "/logs/serve/replica_" in file.path and file.path.endswith(".log")
        }
        mine = f'"request_id": "test-{self.trace_id}"'
        [line] = _once(lambda: [one for one in log.read_text().splitlines() if mine in one], bool)
        return dict(json.loads(line))


def _once(look: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    until_s = time.monotonic() + PATIENCE_S
    while not enough(found := look()) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert enough(found), found
    return found


@pytest.fixture
def client(workplace: Path) -> Client:
    return Client(workplace / "traces")


@pytest.mark.parametrize("model", [COLOCATED, SPLIT])
def test_one_trace_from_http_to_the_engine(
    http: httpx.Client, photographs: dict[str, bytes], client: Client, model: str
) -> None:
    body = photographs["cat.jpg"]
    answer = http.post("/predict", params={"model": model}, content=body, headers=client.headers)
    assert answer.status_code == 200
    spans = client.whole()
    [request], [picture], [engine] = spans["request"], spans["picture"], spans["engine"]
    assert request["kind"] == "SpanKind.SERVER"
    assert picture["parent_id"] == request["context"]["span_id"]
    for name in ("decode", "queue", "engine"):
        assert [one["parent_id"] for one in spans[name]] == [picture["context"]["span_id"]]
    about, timing = engine["attributes"], answer.json()["timing_ms"]
    assert about["image_serve.model"] == model
    assert about["image_serve.version"] == answer.json()["version"]
    assert about["image_serve.batch_size"] >= 1
    assert about["image_serve.queue_ms"] >= 0
    assert picture["attributes"]["image_serve.bytes"] == len(body)
    assert picture["attributes"]["image_serve.format"] == "jpeg"
    assert picture["attributes"]["image_serve.inference_ms"] == pytest.approx(timing["inference"], abs=0.001)
    assert (engine["pid"] == request["pid"]) == (model == COLOCATED)
    assert engine["attributes"]["image_serve.replica"]
    assert request["resource"]["attributes"]["service.name"] == "image-serve"


def test_pictures_of_several_traces_in_one_service_stay_apart(
    http: httpx.Client, photographs: dict[str, bytes], workplace: Path
) -> None:
    clients = [Client(workplace / "traces") for _ in range(3)]
    for one in clients:
        http.post("/predict", params={"model": SPLIT}, content=photographs["cat.jpg"], headers=one.headers)
    for one in clients:
        spans = one.whole()
        assert {name: len(spans[name]) for name in OURS} == dict.fromkeys(OURS, 1)


def test_what_the_client_does_not_sample_is_not_recorded(
    http: httpx.Client, photographs: dict[str, bytes], client: Client, workplace: Path
) -> None:
    unsampled = Client(workplace / "traces", flags="00")
    for headers in (unsampled.headers, client.headers):
        http.post("/predict", params={"model": SPLIT}, content=photographs["cat.jpg"], headers=headers)
    client.whole()  # later spans of the same processes
    assert unsampled.spans() == {}


def test_calls_over_grpc_are_traced(clients_address: str, photographs: dict[str, bytes], client: Client) -> None:
    message = MESSAGES["ModelInferRequest"](model_name=COLOCATED)
    message.inputs.add(name="image", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(
        photographs["cat.jpg"]
    )
    with grpc.insecure_channel(grpc_address(clients_address)) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            lambda one: one.SerializeToString(),
            MESSAGES["ModelInferResponse"].FromString,
        )
        call(message, metadata=[("traceparent", client.traceparent)], timeout=60)
    assert client.whole()["request"]


def test_a_request_is_found_in_the_log_by_its_id(
    http: httpx.Client, photographs: dict[str, bytes], client: Client
) -> None:
    body = photographs["cat.jpg"]
    files = [("image", body), ("image", b"nonsense")]
    headers = {**client.headers, "x-priority": "batch"}
    answer = http.post("/predict", params={"model": SPLIT}, files=files, headers=headers)
    assert answer.headers["x-request-id"] == f"test-{client.trace_id}"
    line = client.line()
    timing = answer.json()["results"][0]["timing_ms"]
    assert (
        line.items()
        >= {
            "levelname": "INFO",
            "event": "request",
            "application": "image-serve",
            "deployment": "Preprocessor",
            "route": "POST /predict",
            "trace_id": client.trace_id,
            "model": SPLIT,
            "version": answer.json()["version"],
            "status": 200,
            "error": "unsupported_format",
            "pictures": 2,
            "failed": 1,
            "formats": {"jpeg": 1, "other": 1},
            "largest_bytes": len(body),
            "priority": "batch",
            "inference_ms": timing["inference"],
        }.items()
    )
    assert line["replica"]
    assert line["total_ms"] > timing["inference"]
    label = answer.json()["results"][0]["predictions"][0]["label"]
    assert f'"{label}"' not in json.dumps(line)
