"""The least time that a network can take on a GPU: its arithmetic and its bytes, held against the GPU's peaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from scripts.gpu_check.gpus import Peak
from serve_app.manifest import Precision

_BYTES = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT8: 1, TensorProto.UINT8: 1, TensorProto.INT64: 8}
_PRECISIONS: dict[int, Precision] = {2: "fp16", 1: "int8"}
_PASSED_BY = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose", "Reshape")


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or matrix product, for one picture.

    Attributes:
        precision: what its inputs are multiplied in.
        macs: multiplications with an addition each.
        weight_bytes: read once a batch.
        activation_bytes: its input and its output.
    """

    name: str
    op_type: str
    precision: Precision
    macs: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class Network:
    """Layers that compute, and bytes of one picture and of its answer."""

    layers: tuple[Layer, ...]
    picture_bytes: int
    answer_bytes: int

    @property
    def macs(self) -> int:
        """Of one picture."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Of one picture, if every layer reads its input from memory and writes its output there."""
        return sum(layer.activation_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds of one batch.

    Attributes:
        compute_ms: all arithmetic at the GPU's peak.
        memory_ms: weights, pictures and answers through the GPU's memory once; activations may stay in its cache.
        layered_ms: each layer for itself, with its activations through memory: what an engine takes that keeps nothing
            in the cache. Not a floor.
    """

    compute_ms: float
    memory_ms: float
    layered_ms: float

    @property
    def floor_ms(self) -> float:
        """No engine can be faster."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> str:
        """Which of the two it is."""
        return "arithmetic" if self.compute_ms >= self.memory_ms else "memory"


def floor(network: Network, peak: Peak, batch: int) -> Floor | None:
    """Of a batch; None where the table lacks a precision that the network computes in."""
    per_s = {layer.precision: peak.operations_per_s(layer.precision) for layer in network.layers}
    known = {precision: rate for precision, rate in per_s.items() if rate is not None}
    if len(known) < len(per_s):
        return None
    memory_per_s = peak.memory_gb_s * 1e9
    compute_s = {id(layer): 2 * layer.macs * batch / known[layer.precision] for layer in network.layers}
    once_bytes = network.weight_bytes + batch * (network.picture_bytes + network.answer_bytes)
    layered_s = sum(
        max(compute_s[id(layer)], (layer.weight_bytes + batch * layer.activation_bytes) / memory_per_s)
        for layer in network.layers
    )
    return Floor(sum(compute_s.values()) * 1e3, once_bytes / memory_per_s * 1e3, layered_s * 1e3)


def read_network(path: Path) -> Network:
    """Counts the convolutions, Gemms and matrix products of an ONNX file whose first input is a batch of pictures.

    Raises:
        ValueError: a layer whose shape cannot be inferred.
    """
    model = onnx.load(str(path))
    graph = model.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    tensors = _Tensors(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    counted = ("Conv", "Gemm", "MatMul")
    layers = tuple(tensors.layer(node) for node in graph.node if node.op_type in counted)
    return Network(layers, tensors.nbytes(graph.input[0].name), tensors.nbytes(graph.output[0].name))


class _Tensors:
    """Shapes, types and neighbours in a graph of known shapes."""

    def __init__(self, graph: Any) -> None:
        self._initializers = {one.name: one for one in graph.initializer}
        self._types = {one.name: (one.data_type, tuple(one.dims)) for one in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self._types[value.name] = (tensor.elem_type, tuple(one.dim_value for one in tensor.shape.dim))
        self._producers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def layer(self, node: Any) -> Layer:
        """What a node computes and moves, at a batch of one."""
        source, weight, target = node.input[0], self._weight(node.input[1]), node.output[0]
        shape = self._shape(weight)
        if node.op_type == "Conv":
            macs = prod(self._shape(target)) * prod(shape[1:])
        else:  # (k, n) or, of a Gemm with transB, (n, k): as many products either way
            macs = prod(self._shape(target)[:-1]) * prod(shape)
        size = self._size(source)
        if self._made_by(source, "DequantizeLinear"):
            size = 1
        activations = self.nbytes(source) + self.nbytes(target)
        return Layer(node.name, node.op_type, _PRECISIONS.get(size, "fp32"), macs, prod(shape) * size, activations)

    def nbytes(self, name: str) -> int:
        """Of a tensor as an engine keeps it: int8 between Q and DQ."""
        readers = self._readers.get(name, [])
        kept = self._made_by(name, "DequantizeLinear") or (
            bool(readers) and all(node.op_type == "QuantizeLinear" for node in readers)
        )
        return prod(self._shape(name)) * (1 if kept else self._size(name))

    def _made_by(self, name: str, op_type: str) -> bool:
        return name in self._producers and self._producers[name].op_type == op_type

    def _size(self, name: str) -> int:
        return _BYTES.get(self._types[name][0], 4) if name in self._types else 4

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._types.get(name, (0, (0,)))[1]
        if len(shape) > 1 and not shape[0]:
            shape = (1, *shape[1:])  # a batch, as computed from the input's shape at run time
        if not all(shape):
            raise ValueError(f"the shape of {name} cannot be inferred ({shape}); export the network again")
        return shape

    def _weight(self, name: str) -> str:
        """The initializer behind casts and Q/DQ pairs."""
        while name not in self._initializers:
            node = self._producers.get(name)
            if node is None or node.op_type not in _PASSED_BY:
                break
            name = node.input[0]
        return name


def as_dict(network: Network) -> Mapping[str, Any]:
    """For the raw report."""
    by_precision: dict[str, int] = {}
    for layer in network.layers:
        by_precision[layer.precision] = by_precision.get(layer.precision, 0) + layer.macs
    return {
        "macs": network.macs,
        "macs_by_precision": by_precision,
        "weight_bytes": network.weight_bytes,
        "activation_bytes": network.activation_bytes,
        "picture_bytes": network.picture_bytes,
        "layers": len(network.layers),
    }
