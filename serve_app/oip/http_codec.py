"""Infer requests and answers as REST carries them: JSON, and tensors as bytes behind it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import orjson

from serve_app.errors import InvalidRequest, Unsupported
from serve_app.oip.metadata import TensorSpec
from serve_app.oip.refusals import no_shared_memory
from serve_app.oip.tensors import from_binary, from_json, to_binary, to_json
from serve_app.oip.values import BYTES, InferRequest, InferResponse, Parameters, RequestedOutput, Tensor

HEADER_LENGTH = "inference-header-content-length"
"""The header that says how long the JSON in front of the tensors is."""
Encoding: TypeAlias = Literal["identity", "gzip", "deflate"]
INFLATED_PIECE_BYTES = 64 * 1024
_AUTOMATIC = 32 + zlib.MAX_WBITS
"""For zlib: either header, gzip's or its own."""
_WBITS: Mapping[Encoding, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_FAST = 1
"""Answers are numbers that hardly shrink; more effort would only cost time."""
_BASE64 = "base64"


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer; `json_bytes` of `body` are JSON and tensors follow, or None where all of it is JSON."""

    body: bytes
    json_bytes: int | None


class Inflater:
    """Undoes Content-Encoding piece by piece, and never has more of it than `INFLATED_PIECE_BYTES`: what reads the
    pieces can stop where they become too many."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(_AUTOMATIC)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """What `piece` inflates to.

        Raises:
            InvalidRequest: it is not compressed data, or more than that.
        """
        while piece:
            if self._zlib.eof:
                raise InvalidRequest("the compressed body goes on after its end; send one compressed stream")
            try:
                yield self._zlib.decompress(piece, INFLATED_PIECE_BYTES)
            except zlib.error:
                raise InvalidRequest(
                    "the body is not what its Content-Encoding says; compress all of it, or leave the header out"
                ) from None
            piece = self._zlib.unconsumed_tail or self._zlib.unused_data

    def finish(self) -> None:
        """To be called once all pieces were fed.

        Raises:
            InvalidRequest: the end is missing.
        """
        if not self._zlib.eof:
            raise InvalidRequest("the compressed body ends too early; send all of it")


def content_encoding(header: str | None) -> Encoding:
    """Of a request.

    Raises:
        Unsupported: one that is not known.
    """
    name = (header or "identity").strip().lower()
    for known in ("identity", "gzip", "deflate"):
        if name == known:
            return known
    raise Unsupported(f"Content-Encoding {name[:20]!r} is not supported; use gzip or deflate")


def accepted_encoding(header: str | None) -> Encoding:
    """The one that an Accept-Encoding header likes best; the first of equals."""
    best: Encoding = "identity"
    best_weight = 0.0
    for item in (header or "").lower().split(","):
        name, _, weight = item.partition(";")
        for known in ("identity", "gzip", "deflate"):
            if name.strip() == known and _weight(weight) > best_weight:
                best, best_weight = known, _weight(weight)
    return best


def compressed(body: bytes, encoding: Encoding) -> bytes:
    """For Content-Encoding `encoding`."""
    return body if encoding == "identity" else zlib.compress(body, _FAST, wbits=_WBITS[encoding])


def json_length(header: str | None, body_bytes: int) -> int | None:
    """Of `HEADER_LENGTH`; None where there is none, which means that all of the body is JSON.

    Raises:
        InvalidRequest: not a number, or more than the body has.
    """
    if header is None:
        return None
    if not (header.isascii() and header.isdigit() and len(header) <= 12 and int(header) <= body_bytes):
        raise InvalidRequest(
            f"Inference-Header-Content-Length must be a whole number from 0 to {body_bytes}, the bytes of this body, "
            f"not {header[:20]!r}"
        )
    return int(header)


def raw_request(model: str, version: str, spec: TensorSpec, body: bytes) -> InferRequest:
    """The request whose body is nothing but the input: `HEADER_LENGTH` is 0.

    Args:
        spec: of the model's input.
        body: one file; or whole tensors one behind the other.

    Raises:
        InvalidRequest: empty, or not a whole number of tensors.
    """
    if spec.datatype == BYTES:
        if not body:
            raise InvalidRequest("the body is empty; send a picture file (curl --data-binary @photo.jpg)")
        tensor = Tensor(spec.name, BYTES, (1, 1), [body])
    else:
        pictures, rest = divmod(len(body), spec.bytes_per_picture())
        if rest or not pictures:
            raise InvalidRequest(
                f"the body has {len(body)} bytes, but a tensor of {list(spec.shape[1:])} {spec.datatype} has "
                f"{spec.bytes_per_picture()}; send one or several whole ones"
            )
        tensor = from_binary(spec.name, spec.datatype, (pictures, *spec.shape[1:]), body)
    return InferRequest(model, version, "", (tensor,), parameters={"binary_data_output": True})


def decode_request(model: str, version: str, body: bytes, json_bytes: int | None) -> InferRequest:
    """An infer request.

    Args:
        json_bytes: from `json_length`, above 0.

    Raises:
        InvalidRequest: not JSON, not an infer request, or tensors that are not what it says of them.
        Unsupported: it names shared memory.
    """
    view = memoryview(body)
    document = _document(view if json_bytes is None else view[:json_bytes])
    identity = document.get("id", "")
    if not isinstance(identity, str):
        raise InvalidRequest("the id must be a string")
    parameters = _parameters(document, "the request")
    binary = _flag(parameters, "binary_data_output", default=False)
    inputs = _inputs(document, b"" if json_bytes is None else view[json_bytes:])
    outputs = tuple(_requested(one, binary) for one in _objects(document, "outputs"))
    return InferRequest(model, version, identity, inputs, outputs, parameters)


def encode_response(response: InferResponse, request: InferRequest) -> Encoded:
    """The answer, with each output as `request` wants it.

    Raises:
        InvalidRequest: JSON cannot hold what is wanted in JSON.
    """
    binary = {one.name: one.binary for one in request.outputs}
    default = request.parameters.get("binary_data_output") is True
    outputs: list[dict[str, Any]] = []
    buffers: list[bytes] = []
    for tensor in response.outputs:
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary.get(tensor.name, default):
            buffers.append(to_binary(tensor))
            described["parameters"] = {"binary_data_size": len(buffers[-1])}
        else:
            described["data"] = to_json(tensor)
        outputs.append(described)
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document |= {"model_name": response.model, "model_version": response.version, "outputs": outputs}
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Encoded(b"".join([head, *buffers]), len(head)) if buffers else Encoded(head, None)


def _weight(text: str) -> float:
    name, _, value = text.strip().partition("=")
    if not name:
        return 1.0
    try:
        return float(value) if name == "q" else 0.0
    except ValueError:
        return 0.0


def _document(text: memoryview) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error}; send an infer request, or a file alone with "
            "Inference-Header-Content-Length: 0"
        ) from None
    if not isinstance(document, dict):
        raise InvalidRequest('the body is not a JSON object; send {"inputs": [...]}')
    return document


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = document.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidRequest(f"{key!r} must be a list of objects")
    return items


def _parameters(owner: Mapping[str, Any], whose: str) -> Parameters:
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"the parameters of {whose} must be an object")
    for name, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest(f"parameter {name[:40]!r} of {whose} must be a number, a boolean or a string")
    if "shared_memory_region" in parameters:
        raise no_shared_memory()
    return parameters


def _flag(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"the parameter {name} must be true or false")
    return value


def _text(owner: Mapping[str, Any], key: str, whose: str) -> str:
    value = owner.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"{whose} has no {key!r}, which must be a string")
    return value


def _count(parameters: Parameters, name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidRequest(f"the parameter {name} must be a whole number, 0 or above")
    return value


def _inputs(document: Mapping[str, Any], buffers: bytes | memoryview) -> tuple[Tensor, ...]:
    """The tensors; those that are bytes take them from `buffers`, in order, and leave none."""
    tensors: list[Tensor] = []
    place = 0
    for item in _objects(document, "inputs"):
        name = _text(item, "name", "an input")
        parameters = _parameters(item, f"input {name[:40]!r}")
        datatype, shape = _text(item, "datatype", f"input {name[:40]!r}"), item.get("shape")
        if not isinstance(shape, list):
            raise InvalidRequest(f"input {name[:40]!r} has no 'shape', which must be a list of whole numbers")
        if ("data" in item) == ("binary_data_size" in parameters):
            raise InvalidRequest(f"input {name[:40]!r} must have either 'data' or the parameter 'binary_data_size'")
        if "data" in item:
            tensors.append(_plain(from_json(name, datatype, shape, item["data"]), parameters))
            continue
        size = _count(parameters, "binary_data_size")
        if size > len(buffers) - place:
            raise InvalidRequest(
                f"input {name[:40]!r} has {size} bytes by its 'binary_data_size', but the body has only "
                f"{len(buffers) - place} more; check Inference-Header-Content-Length, which is the length of the JSON"
            )
        tensors.append(from_binary(name, datatype, shape, buffers[place : place + size]))
        place += size
    if place != len(buffers):
        raise InvalidRequest(f"the body has {len(buffers) - place} bytes that no input claims; leave them out")
    return tuple(tensors)


def _plain(tensor: Tensor, parameters: Parameters) -> Tensor:
    """Files have no place in JSON as they are: `content_type` "base64" says how they were written."""
    if not isinstance(tensor.data, list) or parameters.get("content_type") != _BASE64:
        return tensor
    try:
        files = [base64.b64decode(text, validate=True) for text in tensor.data]
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"an element of input {tensor.name[:40]!r} is not valid base64 (standard alphabet, no line breaks)"
        ) from None
    return Tensor(tensor.name, tensor.datatype, tensor.shape, files)


def _requested(item: Mapping[str, Any], binary: bool) -> RequestedOutput:
    name = _text(item, "name", "an output")
    parameters = _parameters(item, f"output {name[:40]!r}")
    return RequestedOutput(name, _count(parameters, "classification"), _flag(parameters, "binary_data", default=binary))
