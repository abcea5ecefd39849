from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve_app.errors import InvalidRequest, RequestError
from serve_app.oip import wire
from serve_app.oip.messages import ModelInferRequest, ModelInferResponse
from serve_app.oip.values import InferResponse, RequestedOutput, Tensor


def request(**fields: Any) -> Any:
    return ModelInferRequest(model_name="resnet18", **fields)


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    return request(inputs=[{"name": "x", "datatype": datatype, "shape": shape, "contents": contents}])


def test_a_request_keeps_what_it_says() -> None:
    message = request(model_version="2", id="7")
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 50_000
    message.parameters["name"].string_param = "a"
    message.parameters["on"].bool_param = False
    message.parameters["share"].double_param = 0.5
    message.outputs.add(name="scores").parameters["classification"].int64_param = 3
    message.outputs.add(name="more")
    value = wire.request_of(message)
    assert (value.model, value.version, value.id, value.inputs) == ("resnet18", "2", "7", ())
    assert value.parameters == {"priority": 2, "timeout": 50_000, "name": "a", "on": False, "share": 0.5}
    assert value.outputs == (RequestedOutput("scores", 3, binary=True), RequestedOutput("more", 0, binary=True))


@pytest.mark.parametrize(
    ("datatype", "contents", "expected"),
    [
        ("BOOL", {"bool_contents": [True, False]}, np.array([True, False])),
        ("INT8", {"int_contents": [-128, 127]}, np.array([-128, 127], np.int8)),
        ("INT16", {"int_contents": [-1, 32_767]}, np.array([-1, 32_767], np.int16)),
        ("INT32", {"int_contents": [-1, 2**31 - 1]}, np.array([-1, 2**31 - 1], np.int32)),
        ("INT64", {"int64_contents": [-(2**63), 1]}, np.array([-(2**63), 1])),
        ("UINT8", {"uint_contents": [0, 255]}, np.array([0, 255], np.uint8)),
        ("UINT16", {"uint_contents": [0, 65_535]}, np.array([0, 65_535], np.uint16)),
        ("UINT32", {"uint_contents": [0, 2**32 - 1]}, np.array([0, 2**32 - 1], np.uint32)),
        ("UINT64", {"uint64_contents": [0, 2**64 - 1]}, np.array([0, 2**64 - 1], np.uint64)),
        ("FP32", {"fp32_contents": [0.1, -1]}, np.array([0.1, -1], np.float32)),
        ("FP64", {"fp64_contents": [0.1, -1]}, np.array([0.1, -1])),
    ],
)
def test_numbers_in_contents(datatype: str, contents: dict[str, Any], expected: np.ndarray) -> None:
    [tensor] = wire.request_of(typed(datatype, [2, 1], **contents)).inputs
    assert isinstance(tensor.data, np.ndarray)
    assert (tensor.datatype, tensor.shape, tensor.data.dtype) == (datatype, (2, 1), expected.dtype)
    assert tensor.data.tolist() == expected.reshape(2, 1).tolist()


def test_bytes_in_contents_and_raw() -> None:
    by_contents = wire.request_of(typed("BYTES", [2], bytes_contents=[b"a\xff", b""]))
    raw = request(inputs=[{"name": "x", "datatype": "BYTES", "shape": [2]}])
    raw.raw_input_contents.append(b"\2\0\0\0a\xff\0\0\0\0")
    assert by_contents.inputs == wire.request_of(raw).inputs == (Tensor("x", "BYTES", (2,), [b"a\xff", b""]),)


def test_raw_contents_go_to_their_inputs_in_order() -> None:
    message = request(inputs=[{"name": name, "datatype": "FP16", "shape": [1]} for name in "ab"])
    message.raw_input_contents.extend([np.float16(1).tobytes(), np.float16(2).tobytes()])
    first, second = wire.request_of(message).inputs
    assert [(first.name, first.data.tolist()), (second.name, second.data.tolist())] == [("a", [1]), ("b", [2])]


def with_parameter(where: str, name: str, **value: Any) -> Any:
    message = typed("FP32", [1], fp32_contents=[1])
    message.outputs.add(name="scores")
    owner = {"request": message, "input": message.inputs[0], "output": message.outputs[0]}[where]
    owner.parameters[name].SetInParent()
    for key, one in value.items():
        setattr(owner.parameters[name], key, one)
    return message


def raw(count: int, **more: Any) -> Any:
    message = request(inputs=[{"name": "x", "datatype": "FP32", "shape": [1], **more}])
    message.raw_input_contents.extend([b"\0\0\0\0"] * count)
    return message


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (typed("INT8", [1], int_contents=[128]), "numbers beyond INT8; send smaller ones"),
        (typed("UINT16", [1], uint_contents=[65_536]), "numbers beyond UINT16"),
        (typed("FP32", [2], fp32_contents=[1]), "1 elements in fp32_contents, but 2 by its shape"),
        (typed("FP32", [1], int_contents=[1]), "0 elements in fp32_contents, but 1 by its shape"),
        (typed("FP32", [-1], fp32_contents=[1]), "no valid shape"),
        (typed("FP32", [], fp32_contents=[1]), "no valid shape"),
        (
            typed("BYTES", [2], bytes_contents=[b"a"]),
            "1 elements in bytes_contents, but 2 by its shape; make them agree",
        ),
        (typed("BYTES", [2**40, 2**40], bytes_contents=[b"a"]), "make them agree"),
        (typed("FP16", [1]), "'FP16', which contents cannot hold, but BOOL, .*; send one of these, or raw_input"),
        (typed("FP33", [1], fp32_contents=[1]), "'FP33', which contents cannot hold"),
        (raw(2), "2 raw_input_contents for 1 inputs; send one for each"),
        (raw(1, contents={"fp32_contents": [1]}), "contents beside raw_input_contents; send one of the two"),
        (raw(1, shape=[2]), "has 4 bytes, but 8 by its shape"),
        (with_parameter("request", "priority"), "'priority' has no value"),
        (with_parameter("output", "classification", string_param="3"), "must be a number of classes"),
        (with_parameter("output", "classification", int64_param=-3), "must be a number of classes"),
        (with_parameter("output", "classification", bool_param=True), "must be a number of classes"),
    ],
)
def test_what_is_wrong_is_named(message: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        wire.request_of(message)


@pytest.mark.parametrize("where", ["input", "output"])
def test_shared_memory_is_refused(where: str) -> None:
    with pytest.raises(RequestError, match="shared memory is not supported; send the data"):
        wire.request_of(with_parameter(where, "shared_memory_region", string_param="region"))


def test_an_answer_goes_out_raw() -> None:
    scores = np.array([[0.25, 0.75]], np.float32)
    texts = [b"0.75:1:cat", b""]
    outputs = (Tensor("scores", "FP32", (1, 2), scores), Tensor("best", "BYTES", (1, 2), texts))
    message = wire.response_message(InferResponse("resnet18", "3", "7", outputs))
    again = ModelInferResponse.FromString(message.SerializeToString())
    assert (again.model_name, again.model_version, again.id) == ("resnet18", "3", "7")
    assert [(one.name, one.datatype, list(one.shape)) for one in again.outputs] == [
        ("scores", "FP32", [1, 2]),
        ("best", "BYTES", [1, 2]),
    ]
    assert list(again.raw_output_contents) == [scores.tobytes(), b"\x0a\0\0\x000.75:1:cat\0\0\0\0"]
