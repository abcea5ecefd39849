"""Values of the protocol from and to protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import InvalidRequest
from serve_app.oip.messages import MESSAGES
from serve_app.oip.refusals import no_shared_memory
from serve_app.oip.tensors import DTYPES, element_count, from_binary, to_binary
from serve_app.oip.values import BYTES, InferRequest, InferResponse, Parameters, RequestedOutput, Tensor

_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Where `InferTensorContents` holds the elements of a datatype."""
_SHARED_MEMORY = "shared_memory_region"
_CLASSIFICATION = "classification"


def request_of(message: Any) -> InferRequest:
    """A request from its `ModelInferRequest`.

    Raises:
        InvalidRequest: tensors that are not what they say, or parameters that say nothing.
        Unsupported: a tensor in shared memory.
    """
    return InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        _inputs(message),
        tuple(map(_requested, message.outputs)),
        parameters_of(message.parameters),
    )


def response_message(response: InferResponse) -> Any:
    """A `ModelInferResponse`, its tensors as raw bytes, as Triton's are."""
    message = MESSAGES["ModelInferResponse"](model_name=response.model, model_version=response.version, id=response.id)
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(to_binary(tensor))
    return message


def trace_settings_message(settings: Mapping[str, str | list[str]]) -> Any:
    """A `TraceSettingResponse`."""
    values = {name: {"value": [value] if isinstance(value, str) else value} for name, value in settings.items()}
    return MESSAGES["TraceSettingResponse"](settings=values)


def log_settings_message(settings: Mapping[str, bool | int | str]) -> Any:
    """A `LogSettingsResponse`."""
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    values = {name: {kinds[type(value)]: value} for name, value in settings.items()}
    return MESSAGES["LogSettingsResponse"](settings=values)


def parameters_of(parameters: Mapping[str, Any]) -> Parameters:
    """Of a map of `InferParameter`.

    Raises:
        InvalidRequest: one without a value.
    """
    return {name: _value(name, parameter) for name, parameter in parameters.items()}


def _value(name: str, parameter: Any) -> bool | int | float | str:
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequest(f"the parameter {name[:60]!r} has no value; give it one, or leave it out")
    value: bool | int | float | str = getattr(parameter, choice)
    return value


def _inputs(message: Any) -> tuple[Tensor, ...]:
    for tensor in message.inputs:
        _refuse_shared_memory(tensor)
    raw = message.raw_input_contents
    if not raw:
        return tuple(map(_from_contents, message.inputs))
    if len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs; send one for each, in their order"
        )
    return tuple(_from_raw(tensor, data) for tensor, data in zip(message.inputs, raw, strict=True))


def _from_raw(tensor: Any, data: bytes) -> Tensor:
    if tensor.HasField("contents"):
        raise InvalidRequest(f"tensor {tensor.name[:40]!r} has contents beside raw_input_contents; send one of the two")
    return from_binary(tensor.name, tensor.datatype, _shape(tensor), data)


def _from_contents(tensor: Any) -> Tensor:
    name, shape, datatype = tensor.name, _shape(tensor), tensor.datatype
    if datatype not in _CONTENTS:
        known = ", ".join(_CONTENTS)
        raise InvalidRequest(
            f"tensor {name[:40]!r} is {datatype[:20]!r}, which contents cannot hold, but {known}; send one of these, "
            "or raw_input_contents"
        )
    elements = list(getattr(tensor.contents, _CONTENTS[datatype]))
    count = element_count(name, shape)
    if len(elements) != count:
        raise InvalidRequest(
            f"tensor {name[:40]!r} has {len(elements)} elements in {_CONTENTS[datatype]}, but {count} by its shape; "
            "make them agree"
        )
    return Tensor(name, datatype, tuple(shape), elements if datatype == BYTES else _array(tensor, elements))


def _array(tensor: Any, elements: list[Any]) -> NDArray[Any]:
    """Protobuf has no numbers of less than 32 bits, so that some may be too large."""
    try:
        return np.array(elements, DTYPES[tensor.datatype]).reshape(_shape(tensor))
    except OverflowError:
        raise InvalidRequest(
            f"tensor {tensor.name[:40]!r} has numbers beyond {tensor.datatype}; send smaller ones"
        ) from None


def _shape(tensor: Any) -> Sequence[int]:
    return list(tensor.shape)


def _requested(output: Any) -> RequestedOutput:
    _refuse_shared_memory(output)
    classes = parameters_of(output.parameters).get(_CLASSIFICATION, 0)
    if type(classes) is not int or classes < 0:
        raise InvalidRequest(f"the classification of output {output.name[:40]!r} must be a number of classes")
    return RequestedOutput(output.name, classes, binary=True)


def _refuse_shared_memory(tensor: Any) -> None:
    if _SHARED_MEMORY in tensor.parameters:
        raise no_shared_memory()
