"""What a request and an answer of the Open Inference Protocol say, whichever way they came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from numpy.typing import NDArray

TensorData: TypeAlias = NDArray[Any] | list[bytes]
"""An array of the tensor's shape; of a BYTES tensor its elements in row-major order."""
Parameters: TypeAlias = Mapping[str, bool | int | float | str]

BYTES = "BYTES"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor.

    Attributes:
        datatype: the protocol's name: BOOL, UINT8 ... INT64, FP16, FP32, FP64, BF16 or BYTES.
        shape: holds as many elements as `data` has.
        data: of BF16 the float32 that it stands for, since NumPy has no such type.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: TensorData


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a client asks for.

    Attributes:
        classification: that many best classes as text in place of the scores; 0 is the scores.
        binary: of REST: as bytes behind the JSON, not in it. Of gRPC it has no meaning.
    """

    name: str
    classification: int = 0
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One call of infer.

    Attributes:
        model: the name it is published under.
        version: "" is the one that is served.
        id: given back with the answer; "" where there was none.
        outputs: empty means all of them.
        parameters: of the request as a whole.
    """

    model: str
    version: str
    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferResponse:
    """Its answer; `outputs` in the order they were asked for, `version` of the engine that answered."""

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]
