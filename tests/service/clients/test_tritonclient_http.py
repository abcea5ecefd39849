"""Triton's own HTTP clients, sync and asyncio, against the running service; and TorchServe's way of asking."""

from __future__ import annotations

import io
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
import pytest
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.http import aio as async_http
from tritonclient.utils import InferenceServerException

from serve_app.cluster import FRESH_S
from serve_app.manifest import InputSpec
from serve_app.preprocess import preprocess_exact
from tests.service.clients.image_client import Parsed, Scaling, parse_model, postprocess, preprocess
from tests.service.conftest import MODEL

pytestmark = pytest.mark.service
TENSORS = f"{MODEL}_tensor"
Client: TypeAlias = InferenceServerClient
Photographs: TypeAlias = dict[str, bytes]


@pytest.fixture(scope="module")
def client(clients_address: str) -> Iterator[Client]:
    with InferenceServerClient(clients_address.removeprefix("http://"), concurrency=4) as triton:
        yield triton


@pytest.fixture
async def aio_client(clients_address: str) -> AsyncIterator[async_http.InferenceServerClient]:
    async with async_http.InferenceServerClient(clients_address.removeprefix("http://")) as triton:
        yield triton


@pytest.fixture(scope="module")
def native(clients_address: str, photographs: Photographs) -> Callable[[str], np.ndarray]:
    """Scores of the native API for a photograph, by class; float32 (1000,)."""

    def scores(name: str) -> np.ndarray:
        with httpx.Client(base_url=clients_address, timeout=60) as http:
            query = {"model": MODEL, "top_k": 1000}
            answer = http.post("/predict", params=query, content=photographs[name]).json()
        row = np.zeros(1000, np.float32)
        for one in answer["predictions"]:
            row[one["class_id"]] = one["score"]
        return row

    return scores


def files(*bodies: bytes) -> InferInput:
    tensor = InferInput("image", [len(bodies), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[body] for body in bodies], object))
    return tensor


def tensor_of(array: np.ndarray, *, binary: bool = True) -> InferInput:
    tensor = InferInput("pixels", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def pixels_of(client: Client, body: bytes) -> np.ndarray:
    """float32 (1, 3, height, width), as the model's configuration says it wants them."""
    config = client.get_model_config(TENSORS)
    said = {name: value["string_value"] for name, value in config["parameters"].items()}
    mean, std = (tuple(float(one) for one in said[name].split(",")) for name in ("mean", "std"))
    _, height, width = config["input"][0]["dims"]
    spec = InputSpec(
        height=height,
        width=width,
        resize_size=int(said["resize_size"]),
        interpolation=said["interpolation"],  # type: ignore[arg-type]
        mean=mean,  # type: ignore[arg-type]
        std=std,  # type: ignore[arg-type]
    )
    picture = preprocess_exact(body, spec, max_pixels=10**8).astype(np.float32) / 255
    return np.ascontiguousarray((picture - np.float32(mean)) / np.float32(std), np.float32).transpose(2, 0, 1)[None]


def scores_of(result: InferResult) -> np.ndarray:
    scores = result.as_numpy("scores")
    assert scores.dtype == np.float32
    return np.asarray(scores)


CALLS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "is_server_live": (lambda client: client.is_server_live(), lambda said: said is True),
    "is_server_ready": (lambda client: client.is_server_ready(), lambda said: said is True),
    "is_model_ready": (lambda client: client.is_model_ready(MODEL), lambda said: said is True),
    "is_model_ready, version": (lambda client: client.is_model_ready(TENSORS, "1"), lambda said: said is True),
    "is_model_ready, missing": (lambda client: client.is_model_ready("missing"), lambda said: said is False),
    "server_metadata": (lambda client: client.get_server_metadata(), lambda said: "statistics" in said["extensions"]),
    "model_metadata": (
        lambda client: client.get_model_metadata(MODEL),
        lambda said: said["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
    ),
    "model_metadata, version": (
        lambda client: client.get_model_metadata(TENSORS, "1"),
        lambda said: said["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 1000]}],
    ),
    "model_config": (
        lambda client: client.get_model_config(TENSORS, "1"),
        lambda said: said["input"][0]["format"] == "FORMAT_NCHW",
    ),
    "repository_index": (
        lambda client: client.get_model_repository_index(),
        lambda said: {(one["name"], one["state"]) for one in said} >= {(MODEL, "READY"), (TENSORS, "READY")},
    ),
    "statistics": (
        lambda client: client.get_inference_statistics(),
        lambda said: {MODEL, TENSORS} <= {one["name"] for one in said["model_stats"]},
    ),
    "statistics of one": (
        lambda client: client.get_inference_statistics(MODEL, "1"),
        lambda said: [one["version"] for one in said["model_stats"]] == ["1"],
    ),
    "trace_settings": (lambda client: client.get_trace_settings(), lambda said: said["trace_level"] == ["OFF"]),
    "trace_settings of one": (lambda client: client.get_trace_settings(MODEL), lambda said: "trace_rate" in said),
    "log_settings": (lambda client: client.get_log_settings(), lambda said: said["log_error"] is True),
    "system_shared_memory": (lambda client: client.get_system_shared_memory_status(), lambda said: said == []),
    "cuda_shared_memory": (lambda client: client.get_cuda_shared_memory_status("r"), lambda said: said == []),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call(client: Client, call: str) -> None:
    ask, is_right = CALLS[call]
    answer = ask(client)
    assert is_right(answer), answer


async def test_every_call_by_asyncio(aio_client: Any) -> None:
    for name, (ask, is_right) in CALLS.items():
        answer = await ask(aio_client)
        assert is_right(answer), (name, answer)


HANDLE = b"\0" * 64
REFUSED: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "load_model": (lambda client: client.load_model(MODEL), "501", "configuration"),
    "unload_model": (lambda client: client.unload_model(MODEL), "501", "configuration"),
    "register": (lambda client: client.register_system_shared_memory("r", "/k", 8), "501", "shared memory"),
    "unregister": (lambda client: client.unregister_system_shared_memory("r"), "501", "shared memory"),
    "register cuda": (lambda client: client.register_cuda_shared_memory("r", HANDLE, 0, 8), "501", "shared memory"),
    "unregister cuda": (lambda client: client.unregister_cuda_shared_memory(), "501", "shared memory"),
    "trace": (lambda client: client.update_trace_settings(settings={"trace_rate": "1"}), "501", "operator"),
    "log": (lambda client: client.update_log_settings({"log_error": False}), "501", "operator"),
    "metadata": (lambda client: client.get_model_metadata("missing"), "404", "served"),
    "version": (lambda client: client.get_model_config(MODEL, "7"), "404", "version 1 is served"),
    "model": (lambda client: client.infer("missing", [files(b"x")]), "404", "served"),
    "junk": (lambda client: client.infer(MODEL, [files(b"junk")]), "400", "format"),
    "empty": (lambda client: client.infer(MODEL, [files(b"")]), "400", "is empty"),
    "input": (lambda client: client.infer(TENSORS, [files(b"x")]), "400", "unexpected inference input 'image'"),
    "shape": (
        lambda client: client.infer(TENSORS, [tensor_of(np.zeros((1, 3, 5, 5), np.float32))]),
        "400",
        "unexpected shape",
    ),
    "not finite": (
        lambda client: client.infer(TENSORS, [tensor_of(np.full((1, 3, 224, 224), np.nan, np.float32))]),
        "400",
        "finite",
    ),
    "output": (
        lambda client: client.infer(MODEL, [files(b"x")], outputs=[InferRequestedOutput("logits")]),
        "400",
        "unexpected inference output 'logits'",
    ),
    "timeout": (lambda client: client.infer(MODEL, [files(b"x")], timeout=10**12), "400", "timeout"),
    "many": (lambda client: client.infer(MODEL, [files(*[b"x"] * 65)]), "400", "at most 64"),
}


@pytest.mark.parametrize("call", REFUSED)
def test_what_is_wrong_is_told(client: Client, call: str) -> None:
    ask, status, said = REFUSED[call]
    with pytest.raises(InferenceServerException, match=said) as caught:
        ask(client)
    assert caught.value.status() == status


async def test_what_is_wrong_is_told_by_asyncio(aio_client: Any) -> None:
    for name, (ask, status, said) in REFUSED.items():
        with pytest.raises(InferenceServerException, match=said) as caught:
            await ask(aio_client)
        assert caught.value.status() == status, name


def test_scores_are_the_native_apis(
    client: Client, photographs: Photographs, native: Callable[[str], np.ndarray]
) -> None:
    for name in ("cat.jpg", "espresso.jpg"):
        expected = native(name)
        scores = scores_of(client.infer(MODEL, [files(photographs[name])]))
        assert scores.shape == (1, 1000)
        np.testing.assert_allclose(scores[0], expected, atol=1e-6)  # the native API writes six decimals
        pixels = pixels_of(client, photographs[name])
        np.testing.assert_array_equal(scores_of(client.infer(TENSORS, [tensor_of(pixels)])), scores)


def test_json_and_compression_change_nothing(client: Client, photographs: Photographs) -> None:
    pixels = pixels_of(client, photographs["cat.jpg"])
    expected = scores_of(client.infer(TENSORS, [tensor_of(pixels)]))
    text = InferRequestedOutput("scores", binary_data=False)
    answer = client.infer(TENSORS, [tensor_of(pixels, binary=False)], outputs=[text])
    assert "data" in answer.get_output("scores")
    np.testing.assert_array_equal(scores_of(answer), expected)
    expected = scores_of(client.infer(MODEL, [files(photographs["cat.jpg"])]))
    for encoding in ("gzip", "deflate"):
        options = {"request_compression_algorithm": encoding, "response_compression_algorithm": encoding}
        for outputs in (None, [text]):
            answer = client.infer(MODEL, [files(photographs["cat.jpg"])], outputs=outputs, **options)
            np.testing.assert_array_equal(scores_of(answer), expected)


async def test_asyncio_answers_the_same(aio_client: Any, client: Client, photographs: Photographs) -> None:
    expected = scores_of(client.infer(MODEL, [files(photographs["cat.jpg"])]))
    for encoding in (None, "gzip", "deflate"):
        options = {"request_compression_algorithm": encoding, "response_compression_algorithm": encoding}
        answer = await aio_client.infer(MODEL, [files(photographs["cat.jpg"])], **options)
        np.testing.assert_array_equal(scores_of(answer), expected)


def test_a_file_alone(clients_address: str, client: Client, photographs: Photographs) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    answer = httpx.post(f"{clients_address}/v2/models/{MODEL}/infer", content=photographs["cat.jpg"], headers=headers)
    length = int(answer.headers["inference-header-content-length"])
    result = InferenceServerClient.parse_response_body(answer.content, header_length=length)
    np.testing.assert_array_equal(scores_of(result), scores_of(client.infer(MODEL, [files(photographs["cat.jpg"])])))


def test_id_parameters_and_classification(client: Client, photographs: Photographs) -> None:
    wanted = InferRequestedOutput("scores", class_count=3)
    picture = files(photographs["espresso.jpg"])
    options: dict[str, Any] = {"priority": 2, "timeout": 20_000_000, "parameters": {"mine": "yes"}}
    answer = client.infer(MODEL, [picture], "1", [wanted], request_id="mine", **options)
    said = answer.get_response()
    assert (said["id"], said["model_name"], said["model_version"]) == ("mine", MODEL, "1")
    [row] = postprocess(answer.as_numpy("scores"), 1)
    assert row[0][2] == "espresso"
    scores = scores_of(client.infer(MODEL, [picture]))[0]
    assert [index for _, index, _ in row] == np.argsort(-scores)[:3].tolist()
    np.testing.assert_allclose([score for score, _, _ in row], scores[[index for _, index, _ in row]], atol=1e-6)


def test_several_pictures_and_several_requests_at_once(client: Client, photographs: Photographs) -> None:
    names = ["cat.jpg", "espresso.jpg"]
    together = scores_of(client.infer(MODEL, [files(*(photographs[name] for name in names))]))
    asked = [client.async_infer(MODEL, [files(photographs[name])]) for name in names * 4]
    apart = np.concatenate([scores_of(one.get_result(timeout=60)) for one in asked])
    np.testing.assert_array_equal(apart.argmax(axis=1), np.tile(together.argmax(axis=1), 4))
    np.testing.assert_allclose(apart, np.tile(together, (4, 1)), atol=0.02)  # other batches round differently


def test_statistics_count_pictures(client: Client, photographs: Photographs) -> None:
    def counted() -> dict[str, Any]:
        return dict(client.get_inference_statistics(MODEL)["model_stats"][0])

    time.sleep(FRESH_S)  # else `before` may be from before the pictures of an earlier test
    before = counted()
    client.infer(MODEL, [files(photographs["cat.jpg"], photographs["cat.jpg"])])
    give_up_s = time.monotonic() + 10 * FRESH_S
    while (after := counted())["inference_count"] == before["inference_count"] and time.monotonic() < give_up_s:
        time.sleep(FRESH_S / 10)
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] > before["execution_count"]
    assert after["last_inference"] > before["last_inference"]
    for name in ("success", "compute_input", "compute_infer"):
        assert after["inference_stats"][name]["ns"] > before["inference_stats"][name]["ns"]


@pytest.mark.parametrize("at_once", [False, True])
def test_image_client(client: Client, photographs: Photographs, at_once: bool) -> None:
    """Its flow: it learns from metadata and configuration how to preprocess, and asks for classes in batches."""
    parsed: Parsed = parse_model(client.get_model_metadata(TENSORS), client.get_model_config(TENSORS))
    assert (parsed.channels, parsed.max_batch_size) == (3, 64)
    scaling: Scaling = "INCEPTION"
    pictures = [Image.open(io.BytesIO(photographs[name])) for name in ("espresso.jpg", "cat.jpg")]
    batch = np.stack([preprocess(picture, parsed, scaling) for picture in pictures])
    given = InferInput(parsed.input_name, list(batch.shape), parsed.datatype)
    given.set_data_from_numpy(batch)
    wanted = InferRequestedOutput(parsed.output_name, class_count=2)
    if at_once:
        result = client.async_infer(TENSORS, [given], outputs=[wanted]).get_result()
    else:
        result = client.infer(TENSORS, [given], request_id="1", outputs=[wanted])
    rows = postprocess(result.as_numpy(parsed.output_name), 2)
    assert rows[0][0][2] == "espresso"
    assert "cat" in rows[1][0][2]


def test_torchserve_clients(clients_address: str, photographs: Photographs, tmp_path: Path) -> None:
    with httpx.Client(base_url=clients_address, timeout=60) as http:
        assert http.get("/ping").json() == {"status": "Healthy"}
        body = photographs["espresso.jpg"]
        ways = [
            http.post(f"/predictions/{MODEL}", content=body),
            http.post(f"/predictions/{MODEL}/1.0", files={"data": ("espresso.jpg", body)}),
        ]
        assert [next(iter(way.json())) for way in ways] == ["espresso"] * 2
        assert ways[0].json() == ways[1].json()
        assert len(ways[0].json()) == 5
        missing = http.post("/predictions/missing", content=body)
        assert (missing.status_code, missing.json()["type"]) == (404, "ModelNotFoundException")
    photograph = tmp_path / "espresso.jpg"
    photograph.write_bytes(body)
    curl = ["curl", "--silent", "--fail", f"{clients_address}/predictions/{MODEL}", "-T", str(photograph)]
    assert b'"espresso"' in subprocess.run(curl, capture_output=True, check=True).stdout
