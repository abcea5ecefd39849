"""Tensors as bytes and JSON: round trips, agreement with Triton's own client code, and lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient import utils as triton

from serve_app.errors import InvalidRequest, RequestError
from serve_app.oip.tensors import DTYPES, element_count, from_binary, from_json, to_binary, to_json
from serve_app.oip.values import Tensor

SHAPES = npst.array_shapes(max_dims=4, max_side=4)
ANY_BYTES = st.binary(max_size=20)


@st.composite
def number_tensors(draw: st.DrawFn, names: tuple[str, ...] = tuple(DTYPES)) -> Tensor:
    datatype = draw(st.sampled_from(names))
    shape = draw(SHAPES)
    elements: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if DTYPES[datatype].kind == "f" else {}
    array = draw(npst.arrays(DTYPES[datatype], shape, elements=elements))
    return Tensor("x", datatype, shape, array)


@st.composite
def bytes_tensors(draw: st.DrawFn, element: st.SearchStrategy[bytes] = ANY_BYTES) -> Tensor:
    shape = draw(SHAPES)
    count = int(np.prod(shape))
    return Tensor("x", "BYTES", shape, draw(st.lists(element, min_size=count, max_size=count)))


def same(one: Tensor, other: Tensor) -> None:
    assert (one.name, one.datatype, one.shape) == (other.name, other.datatype, other.shape)
    if isinstance(one.data, list) or isinstance(other.data, list):
        assert one.data == other.data
    else:
        assert one.data.dtype == other.data.dtype
        assert one.data.shape == one.shape
        np.testing.assert_array_equal(one.data, other.data)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(number_tensors() | bytes_tensors())
def test_binary_round_trip(tensor: Tensor) -> None:
    same(from_binary(tensor.name, tensor.datatype, tensor.shape, to_binary(tensor)), tensor)


JSON_TYPES = tuple(name for name in DTYPES if name != "FP16")
TEXT = st.text(max_size=10).map(lambda text: text.encode("utf-8", "replace"))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(number_tensors(JSON_TYPES) | bytes_tensors(TEXT), st.booleans())
def test_json_round_trip(tensor: Tensor, nested: bool) -> None:
    data = orjson.loads(orjson.dumps(to_json(tensor), option=orjson.OPT_SERIALIZE_NUMPY))
    assert not data or not isinstance(data[0], list)
    if nested:
        data = np.array(data, object).reshape(tensor.shape).tolist()
    same(from_json(tensor.name, tensor.datatype, tensor.shape, data), tensor)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bytes_tensors())
def test_bytes_are_written_and_read_as_tritons_client_does(tensor: Tensor) -> None:
    assert isinstance(tensor.data, list)
    array = np.array(tensor.data, object).reshape(tensor.shape)
    theirs = triton.serialize_byte_tensor(array).item()
    assert to_binary(tensor) == theirs
    assert from_binary("x", "BYTES", tensor.shape, theirs).data == triton.deserialize_bytes_tensor(theirs).tolist()


def test_bf16_is_written_and_read_as_tritons_client_does() -> None:
    theirs = np.array([[0.0, 1.0, -2.5], [3.0e38, 1e-3, 1 / 3]], triton.triton_to_np_dtype("BF16"))
    read = from_binary("x", "BF16", (2, 3), theirs.tobytes())
    assert isinstance(read.data, np.ndarray)
    np.testing.assert_array_equal(read.data, theirs.astype(np.float32))
    assert to_binary(read) == theirs.tobytes()


def test_numbers_are_not_copied() -> None:
    body = bytes(64)
    tensor = from_binary("x", "FP32", (4, 4), memoryview(body))
    assert isinstance(tensor.data, np.ndarray)
    assert np.shares_memory(tensor.data, np.frombuffer(body, np.uint8))


SIZES = st.integers(-3, 5) | st.sampled_from([10**6, 2**31, 2**62, 2**64, True, 1.5, None, "3", []])
ANY_SHAPE = st.lists(SIZES, max_size=4) | st.lists(st.just(1), max_size=70)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([*DTYPES, "BF16", "BYTES", "FP8", ""]), ANY_SHAPE, st.binary(max_size=80))
def test_lies_about_bytes_are_refused(datatype: str, shape: list[Any], data: bytes) -> None:
    try:
        tensor = from_binary("x", datatype, shape, data)
    except RequestError:
        return
    assert (tensor.datatype, tensor.shape) == (datatype, tuple(shape))
    assert to_binary(tensor) == data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([*DTYPES, "BF16", "BYTES", "FP8"]), ANY_SHAPE, JSON)
def test_lies_in_json_are_refused(datatype: str, shape: list[Any], data: Any) -> None:
    try:
        tensor = from_json("x", datatype, shape, data)
    except RequestError:
        return
    assert element_count("x", shape) == (len(tensor.data) if isinstance(tensor.data, list) else tensor.data.size)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bytes_tensors(), st.data())
def test_truncated_bytes_are_refused(tensor: Tensor, data: st.DataObject) -> None:
    whole = to_binary(tensor)
    with pytest.raises(InvalidRequest):
        from_binary("x", "BYTES", tensor.shape, whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    ("datatype", "data", "said"),
    [
        ("UINT8", [256], "beyond UINT8"),
        ("UINT8", [-1], "beyond UINT8"),
        ("INT64", [2**63], "beyond INT64"),
        ("INT32", [1.5], "not all INT32"),
        ("FP32", [True], "not all numbers"),
        ("FP32", ["1"], "not all numbers"),
        ("FP32", [None], "not all numbers"),
        ("BOOL", [1], "not all BOOL"),
        ("UINT8", [True], "not all UINT8"),
        ("UINT8", [[1], 2], "unevenly"),
        ("FP32", [[1.0], 2.0], "unevenly"),
        ("FP16", [1.0], "binary"),
        ("BF16", [1.0], "binary"),
        ("BYTES", [5], "JSON string"),
        ("FP32", 5, "JSON list"),
        ("FP32", [1.0, 2.0], "2 elements, but 1"),
        ("STRING", ["a"], "known are BOOL"),
    ],
)
def test_wrong_json_is_told(datatype: str, data: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        from_json("x", datatype, [1], data)


def test_json_beyond_float32_becomes_infinity() -> None:
    tensor = from_json("x", "FP32", [2], [1e39, 1.0])
    assert isinstance(tensor.data, np.ndarray)
    assert tensor.data.tolist() == [np.inf, 1.0]


def test_what_json_cannot_hold_is_refused_on_the_way_out() -> None:
    with pytest.raises(InvalidRequest, match="binary"):
        to_json(Tensor("x", "FP16", (1,), np.ones(1, np.float16)))
    with pytest.raises(InvalidRequest, match="not text"):
        to_json(Tensor("x", "BYTES", (1,), [b"\xff"]))
