"""Infer over REST: what Triton's own client writes is read, what it reads is written, and lies are refused."""

from __future__ import annotations

import base64
import gzip
import random
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from serve_app.errors import InvalidRequest, RequestError, Unsupported
from serve_app.oip.http_codec import (
    INFLATED_PIECE_BYTES,
    Encoded,
    Inflater,
    accepted_encoding,
    compressed,
    content_encoding,
    decode_request,
    encode_response,
    json_length,
    raw_request,
)
from serve_app.oip.metadata import TensorSpec
from serve_app.oip.values import InferRequest, InferResponse, RequestedOutput, Tensor

PIXELS = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 7
FILES = np.array([[b"\xff\xd8 one"], [b""]], object)


def written(name: str, array: np.ndarray, datatype: str, *, binary: bool) -> InferInput:
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def request_of(inputs: list[InferInput], **options: Any) -> InferRequest:
    body, json_bytes = InferenceServerClient.generate_request_body(inputs, **options)
    return decode_request("m", "1", body, json_bytes)


def result_of(encoded: Encoded) -> InferResult:
    return InferenceServerClient.parse_response_body(encoded.body, header_length=encoded.json_bytes)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_is_read(binary: bool) -> None:
    request = request_of([written("pixels", PIXELS, "FP32", binary=binary)], request_id="7", priority=2, timeout=1500)
    assert (request.model, request.version, request.id, request.outputs) == ("m", "1", "7", ())
    assert request.parameters == {"priority": 2, "timeout": 1500, "binary_data_output": True}
    [tensor] = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("pixels", "FP32", (2, 3, 2, 2))
    np.testing.assert_array_equal(tensor.data, PIXELS)


def test_several_binary_inputs_are_taken_in_order() -> None:
    inputs = [
        written("a", FILES, "BYTES", binary=True),
        written("b", PIXELS, "FP32", binary=False),
        written("c", np.array([1, 2], np.int16), "INT16", binary=True),
    ]
    one, two, three = request_of(inputs).inputs
    assert one.data == [b"\xff\xd8 one", b""]
    np.testing.assert_array_equal(two.data, PIXELS)
    np.testing.assert_array_equal(three.data, [1, 2])


def test_requested_outputs() -> None:
    wanted = [
        InferRequestedOutput("scores", binary_data=False),
        InferRequestedOutput("more", binary_data=True, class_count=3),
    ]
    request = request_of([written("a", FILES, "BYTES", binary=True)], outputs=wanted)
    assert request.outputs == (RequestedOutput("scores"), RequestedOutput("more", 3, binary=True))
    body = {"parameters": {"binary_data_output": True}, "outputs": [{"name": "a"}]}
    assert decode_request("m", "", orjson.dumps(body), None).outputs == (RequestedOutput("a", binary=True),)


SCORES = np.random.default_rng(1).random((2, 5), np.float32)
ANSWER = InferResponse(
    "m",
    "3",
    "seven",
    (Tensor("scores", "FP32", (2, 5), SCORES), Tensor("best", "BYTES", (1, 2), [b"a:\xc3\xa9", b""])),
)


@pytest.mark.parametrize("binary", [(True, True), (True, False), (False, True), (False, False)])
def test_answers_are_read_by_tritons_client(binary: tuple[bool, bool]) -> None:
    outputs = tuple(RequestedOutput(name, binary=how) for name, how in zip(("scores", "best"), binary, strict=True))
    encoded = encode_response(ANSWER, InferRequest("m", "", "", (), outputs))
    assert (encoded.json_bytes is None) == (not any(binary))
    result = result_of(encoded)
    np.testing.assert_array_equal(result.as_numpy("scores"), SCORES)
    texts = result.as_numpy("best").ravel().tolist()
    assert [text if isinstance(text, bytes) else text.encode() for text in texts] == [b"a:\xc3\xa9", b""]
    said = result.get_response()
    assert (said["model_name"], said["model_version"], said["id"]) == ("m", "3", "seven")


def test_without_outputs_one_parameter_decides() -> None:
    for binary in (True, False):
        request = InferRequest("m", "", "", (), parameters={"binary_data_output": binary})
        assert (encode_response(ANSWER, request).json_bytes is not None) == binary


def test_an_answer_without_id_has_none() -> None:
    encoded = encode_response(InferResponse("m", "1", "", ANSWER.outputs), InferRequest("m", "", "", ()))
    assert "id" not in orjson.loads(encoded.body)


def test_a_file_alone_is_a_request() -> None:
    request = raw_request("m", "", TensorSpec("image", "BYTES", (-1, 1)), b"file")
    assert request.inputs == (Tensor("image", "BYTES", (1, 1), [b"file"]),)
    assert request.inputs[0].data[0] is not None
    assert encode_response(ANSWER, request).json_bytes is not None


def test_tensors_alone_are_a_request() -> None:
    spec = TensorSpec("pixels", "FP32", (-1, 3, 2, 2))
    [tensor] = raw_request("m", "", spec, PIXELS.tobytes()).inputs
    assert tensor.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(tensor.data, PIXELS)
    for wrong in (b"", PIXELS.tobytes()[:-1]):
        with pytest.raises(InvalidRequest, match="48; send"):
            raw_request("m", "", spec, wrong)
    with pytest.raises(InvalidRequest, match="empty"):
        raw_request("m", "", TensorSpec("image", "BYTES", (-1, 1)), b"")


def test_a_picture_in_json_is_base64_where_it_says_so() -> None:
    given_input = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(b"\xff\xd8").decode()],
    }
    assert decode_request("m", "", orjson.dumps({"inputs": [given_input]}), None).inputs[0].data == [b"\xff\xd8"]
    given_input["data"] = ["no base64!"]
    with pytest.raises(InvalidRequest, match="base64"):
        decode_request("m", "", orjson.dumps({"inputs": [given_input]}), None)


INPUT = {"name": "a", "datatype": "FP32", "shape": [1], "data": [1.0]}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "JSON object"),
        ({"id": 5}, "id must be a string"),
        ({"inputs": {}}, "'inputs' must be a list"),
        ({"inputs": [1]}, "'inputs' must be a list"),
        ({"inputs": [INPUT | {"name": 1}]}, "no 'name'"),
        ({"inputs": [INPUT | {"datatype": None}]}, "no 'datatype'"),
        ({"inputs": [INPUT | {"shape": 1}]}, "no 'shape'"),
        ({"inputs": [INPUT | {"shape": [1, 0]}]}, "no valid shape"),
        ({"inputs": [{**INPUT, "parameters": {"binary_data_size": 4}}]}, "either 'data' or"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1]}]}, "either 'data' or"),
        (
            {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]},
            "only 0",
        ),
        (
            {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": -4}}]},
            "whole number",
        ),
        (
            {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": True}}]},
            "whole number",
        ),
        ({"inputs": [INPUT], "outputs": "scores"}, "'outputs' must be a list"),
        ({"inputs": [INPUT], "outputs": [{}]}, "no 'name'"),
        ({"outputs": [{"name": "s", "parameters": {"classification": -1}}]}, "classification must be"),
        ({"outputs": [{"name": "s", "parameters": {"binary_data": 1}}]}, "binary_data must be true or false"),
        ({"parameters": []}, "must be an object"),
        ({"parameters": {"a": []}}, "'a' of the request"),
        ({"parameters": {"binary_data_output": "yes"}}, "binary_data_output must be true or false"),
    ],
)
def test_wrong_documents_are_told(document: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        decode_request("m", "", orjson.dumps(document), None)


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_shared_memory_is_refused_honestly(where: str) -> None:
    item = {"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"shared_memory_region": "r"}}
    with pytest.raises(Unsupported, match="shared memory"):
        decode_request("m", "", orjson.dumps({where: [item]}), None)


def test_bytes_that_no_input_claims_are_refused() -> None:
    body, json_bytes = InferenceServerClient.generate_request_body([written("a", FILES, "BYTES", binary=True)])
    with pytest.raises(InvalidRequest, match="no input claims"):
        decode_request("m", "", body + b"x", json_bytes)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mangled_requests_raise_nothing_else(data: st.DataObject) -> None:
    inputs = [written("a", FILES, "BYTES", binary=True), written("b", PIXELS, "FP32", binary=True)]
    body, json_bytes = InferenceServerClient.generate_request_body(inputs, outputs=[InferRequestedOutput("s")])
    assert json_bytes is not None
    mangled = bytearray(body[: data.draw(st.integers(0, len(body)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if mangled:
            mangled[data.draw(st.integers(0, len(mangled) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.sampled_from([json_bytes, None]) | st.integers(1, len(body) + 5))
    try:
        decode_request("m", "", bytes(mangled), length)
    except RequestError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size", "classification"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional={"inputs": JSON, "outputs": JSON, "parameters": JSON, "id": JSON}))
def test_any_json_raises_nothing_else(document: Any) -> None:
    try:
        decode_request("m", "", orjson.dumps(document), None)
    except RequestError:
        return


@pytest.mark.parametrize("header", ["", "-1", "5", "x", "1.0", "+1", "1e1", "9" * 30, "³"])
def test_a_wrong_header_length_is_refused(header: str) -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 4"):
        json_length(header, 4)
    assert [json_length(text, 4) for text in ("0", "4", None)] == [0, 4, None]


def inflated(body: bytes, piece_bytes: int) -> bytes:
    inflater = Inflater()
    parts = [part for at in range(0, len(body), piece_bytes) for part in inflater.feed(body[at : at + piece_bytes])]
    inflater.finish()
    assert all(len(part) <= INFLATED_PIECE_BYTES for part in parts)
    return b"".join(parts)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=2000), st.integers(1, 2000), st.sampled_from([gzip.compress, zlib.compress]))
def test_bodies_inflate_in_any_pieces(body: bytes, piece_bytes: int, squeeze: Any) -> None:
    assert inflated(squeeze(body), piece_bytes) == body


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["gzip", "deflate"]), st.integers(1, 40), st.binary(min_size=1, max_size=40), st.data())
def test_wrong_compressed_bodies_raise_nothing_else(
    encoding: Any, piece_bytes: int, body: bytes, data: st.DataObject
) -> None:
    squeezed = compressed(body, encoding)
    with pytest.raises(InvalidRequest, match="too early"):
        inflated(squeezed[: data.draw(st.integers(0, len(squeezed) - 1))], piece_bytes)
    with pytest.raises(InvalidRequest, match="after its end"):
        inflated(squeezed + b"x", piece_bytes)
    mangled = bytearray(squeezed)
    mangled[data.draw(st.integers(0, len(mangled) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        inflated(bytes(mangled), piece_bytes)
    except InvalidRequest:
        return


def test_a_bomb_comes_in_pieces_and_can_be_left_off() -> None:
    bomb = gzip.compress(bytes(10 * 2**20))
    assert len(bomb) < 20_000
    inflater = Inflater()
    first = next(inflater.feed(bomb))
    assert len(first) <= INFLATED_PIECE_BYTES


def test_a_large_body_inflates_whole() -> None:
    body = random.Random(1).randbytes(3 * INFLATED_PIECE_BYTES) + bytes(5 * INFLATED_PIECE_BYTES)
    for piece_bytes in (1 << 20, 1000):
        assert inflated(gzip.compress(body), piece_bytes) == body


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.1, deflate;q=0.9", "deflate"),
        ("gzip; q=0", "identity"),
        ("br, *", "identity"),
        ("gzip;q=x", "identity"),
        ("GZIP", "gzip"),
        ("identity, gzip;q=0.5", "identity"),
    ],
)
def test_accept_encoding(header: str | None, encoding: str) -> None:
    assert accepted_encoding(header) == encoding


def test_compressed_answers_are_what_they_say() -> None:
    assert gzip.decompress(compressed(b"abc", "gzip")) == b"abc"
    assert zlib.decompress(compressed(b"abc", "deflate")) == b"abc"
    assert compressed(b"abc", "identity") == b"abc"


def test_content_encoding() -> None:
    assert [content_encoding(text) for text in (None, "identity", "GZIP", " deflate")] == [
        "identity",
        "identity",
        "gzip",
        "deflate",
    ]
    with pytest.raises(Unsupported, match="gzip or deflate"):
        content_encoding("br")
