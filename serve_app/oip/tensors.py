"""Tensors as bytes and as JSON. Everything that is read is checked against its shape: nothing is allocated on the word
of a client."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import InvalidRequest
from serve_app.oip.values import BYTES, Tensor

BF16 = "BF16"
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""NumPy's types of the protocol's; BYTES and BF16 have none."""
BINARY_ONLY = frozenset({"FP16", BF16})
"""JSON has no numbers of these types."""
MAX_DIMENSIONS = 8
_LENGTH = struct.Struct("<I")


def element_count(name: str, shape: Sequence[int]) -> int:
    """Elements of a tensor of that shape.

    Raises:
        InvalidRequest: not a shape, or one that holds nothing.
    """
    if not 0 < len(shape) <= MAX_DIMENSIONS or any(type(size) is not int or size < 1 for size in shape):
        raise InvalidRequest(
            f"tensor {name[:40]!r} has no valid shape; send 1 to {MAX_DIMENSIONS} whole numbers, each 1 or more"
        )
    return math.prod(shape)


def from_binary(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Tensor:
    """A tensor from its little-endian bytes; numbers are not copied, elements of BYTES are.

    Args:
        data: of BYTES, each element behind its length as four bytes.

    Raises:
        InvalidRequest: an unknown datatype, or `data` is not what the shape says.
    """
    count = element_count(name, shape)
    if datatype == BYTES:
        return Tensor(name, BYTES, tuple(shape), _elements(name, count, memoryview(data)))
    dtype = np.dtype("<u2") if datatype == BF16 else _dtype(name, datatype)
    if len(data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"tensor {name[:40]!r} has {len(data)} bytes, but {count * dtype.itemsize} by its shape and datatype; make "
            "them agree"
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    if datatype == BF16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return Tensor(name, datatype, tuple(shape), array)


def to_binary(tensor: Tensor) -> bytes:
    """The reverse of `from_binary`; float32 is cut to BF16, not rounded."""
    if isinstance(tensor.data, list):
        return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in tensor.data))
    if tensor.datatype == BF16:
        return (tensor.data.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return tensor.data.astype(DTYPES[tensor.datatype], copy=False).tobytes()


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """A tensor from a JSON list, nested in any way or flat, row-major.

    Raises:
        InvalidRequest: a datatype that is unknown or has no place in JSON, or `data` is not what datatype and shape
            say.
    """
    count = element_count(name, shape)
    if datatype in BINARY_ONLY:
        raise InvalidRequest(f"tensor {name[:40]!r} is {datatype}, which JSON cannot hold; send it as binary data")
    if not isinstance(data, list):
        raise InvalidRequest(f"the data of tensor {name[:40]!r} is not a JSON list; send one")
    if datatype == BYTES:
        texts = _flat(name, data)
        _check_count(name, count, len(texts))
        return Tensor(name, BYTES, tuple(shape), [_encoded(name, text) for text in texts])
    array = _numbers(name, datatype, data)
    _check_count(name, count, array.size)
    return Tensor(name, datatype, tuple(shape), array.reshape(shape))


def to_json(tensor: Tensor) -> Any:
    """The flat list, for orjson with its option for NumPy arrays.

    Raises:
        InvalidRequest: JSON cannot hold it.
    """
    if tensor.datatype in BINARY_ONLY:
        raise InvalidRequest(
            f"output {tensor.name!r} is {tensor.datatype}, which JSON cannot hold; ask for binary data"
        )
    if isinstance(tensor.data, list):
        try:
            return [element.decode() for element in tensor.data]
        except UnicodeDecodeError:
            raise InvalidRequest(f"output {tensor.name!r} is not text; ask for binary data") from None
    return np.ascontiguousarray(tensor.data).reshape(-1)


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    dtype = DTYPES.get(datatype)
    if dtype is None:
        known = ", ".join([*DTYPES, BF16, BYTES])
        raise InvalidRequest(f"tensor {name[:40]!r} has no known datatype ({str(datatype)[:20]!r}); known are {known}")
    return dtype


def _elements(name: str, count: int, data: memoryview) -> list[bytes]:
    elements: list[bytes] = []
    place = 0
    while place < len(data):
        start = place + _LENGTH.size
        place = start + _LENGTH.unpack_from(data, place)[0] if start <= len(data) else start
        if place > len(data):
            raise InvalidRequest(
                f"tensor {name[:40]!r} ends in the middle of an element; send each element behind its length as 4 bytes"
            )
        elements.append(bytes(data[start:place]))
    _check_count(name, count, len(elements))
    return elements


def _check_count(name: str, wanted: int, count: int) -> None:
    if count != wanted:
        raise InvalidRequest(f"tensor {name[:40]!r} has {count} elements, but {wanted} by its shape; make them agree")


def _flat(name: str, data: list[Any]) -> list[Any]:
    """One level after the other: recursion would end where a client says."""
    while data and isinstance(data[0], list):
        if not all(isinstance(part, list) for part in data):
            raise InvalidRequest(f"the data of tensor {name[:40]!r} is nested unevenly; send a flat list")
        data = list(chain.from_iterable(data))
    return data


def _encoded(name: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest(f"an element of BYTES tensor {name[:40]!r} is not a JSON string; send strings")
    return text.encode()


def _numbers(name: str, datatype: str, data: list[Any]) -> NDArray[Any]:
    dtype = _dtype(name, datatype)
    if dtype.kind == "f":
        return _floats(name, dtype, data)
    flat = _flat(name, data)
    kind = bool if dtype.kind == "b" else int
    if not all(type(value) is kind for value in flat):
        raise InvalidRequest(f"the data of tensor {name[:40]!r} is not all {datatype}; send such numbers only")
    try:
        return np.array(flat, dtype)
    except OverflowError:
        raise InvalidRequest(
            f"the data of tensor {name[:40]!r} has numbers beyond {datatype}; send smaller ones"
        ) from None


def _floats(name: str, dtype: np.dtype[Any], data: list[Any]) -> NDArray[Any]:
    """NumPy finds out by itself how lists are nested, which for pixels is faster than to flatten them first."""
    try:
        array = np.array(data)
    except ValueError:
        raise InvalidRequest(f"the data of tensor {name[:40]!r} is nested unevenly; send a flat list") from None
    if array.size and array.dtype.kind not in "iuf":
        raise InvalidRequest(f"the data of tensor {name[:40]!r} is not all numbers; send numbers only")
    with np.errstate(over="ignore"):  # infinity, which the model refuses
        return array.astype(dtype)
