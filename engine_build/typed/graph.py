"""What the other modules ask of an ONNX graph: who makes a tensor, who reads it, how deep it lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from onnx import TensorProto

# onnx ships no usable annotations; the names say what each is.
Model: TypeAlias = Any
Graph: TypeAlias = Any
Node: TypeAlias = Any
Tensor: TypeAlias = Any

FLOAT, FLOAT16, INT8, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class Wiring:
    """Who makes and who reads each tensor, as the graph was when this was made.

    Attributes:
        producers: the node that makes a tensor; graph inputs and initializers have none.
        consumers: the nodes that read a tensor, once for each time they do.
        initializers: constants by name.
    """

    def __init__(self, graph: Graph) -> None:
        self.producers: dict[str, Node] = {name: node for node in graph.node for name in node.output}
        self.initializers: dict[str, Tensor] = {tensor.name: tensor for tensor in graph.initializer}
        self.consumers: dict[str, list[Node]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def made_by(self, tensor: str, op_type: str) -> Node | None:
        """The node that makes the tensor, if it is of that kind."""
        node = self.producers.get(tensor)
        return node if node is not None and node.op_type == op_type else None

    def unquantised(self, tensor: str) -> str:
        """The tensor that a pair of QuantizeLinear and DequantizeLinear was put on; itself where there is none."""
        dequantize = self.made_by(tensor, DEQUANTIZE)
        quantize = self.made_by(dequantize.input[0], QUANTIZE) if dequantize is not None else None
        return tensor if quantize is None else str(quantize.input[0])


def load(path: Path) -> Model:
    """The model, with a name for every node and without the exporter's notes, which carry paths of its machine."""
    model = onnx.load(str(path))
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
    return model


def with_types(model: Model) -> Model:
    """The model with the type of every tensor inferred anew.

    Raises:
        onnx.shape_inference.InferenceError: types that do not fit each other.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)


def element_types(model: Model) -> dict[str, int]:
    """TensorProto.DataType of every tensor that has one in the graph."""
    graph = model.graph
    types = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = int(value.type.tensor_type.elem_type)
    return types


def attribute(node: Node, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def is_grouped(conv: Node) -> bool:
    """Depthwise, or in groups: each output sees a part of the input channels."""
    return attribute(conv, "group", 1) > 1


def conv_depths(graph: Graph) -> dict[str, int]:
    """For every tensor that a node makes, the convolutions on the longest way to it."""
    depths: dict[str, int] = {}
    for node in graph.node:  # ONNX lists nodes after what they read
        deepest = max((depths.get(name, 0) for name in node.input), default=0)
        depths.update(dict.fromkeys(node.output, deepest + (node.op_type == "Conv")))
    return depths


def replace_nodes(graph: Graph, nodes: Iterable[Node]) -> None:
    """Puts `nodes` in place of the graph's."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)
