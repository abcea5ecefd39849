"""Holds typed ONNX against what TensorRT 11 makes good engines of, before a GPU is asked.

Sources: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
and https://github.com/NVIDIA/TensorRT/issues/3985 (uint8 inputs).
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from onnx import TensorProto, numpy_helper

from engine_build.errors import BuildError
from engine_build.typed.graph import (
    DEQUANTIZE,
    FLOAT,
    FLOAT16,
    INT8,
    QUANTIZE,
    UINT8,
    Graph,
    Model,
    Node,
    Wiring,
    attribute,
    element_types,
    with_types,
)
from engine_build.typed.placement import Placement, placement
from serve_app.manifest import Precision

_COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_OPSETS = range(19, 22)


def check_typed(model: Model, precision: Precision) -> None:
    """Passes typed ONNX as `to_fp32`, `to_fp16` and `to_int8` write it.

    Raises:
        BuildError: names the first node that is not as it should be.
    """
    graph, wiring = model.graph, Wiring(model.graph)
    _check_opset(model)
    _check_interface(graph, wiring)
    _check_operators(graph, precision)
    _check_arithmetic(model, FLOAT if precision == "fp32" else FLOAT16)
    _check_biases(graph, wiring)
    if precision == "int8":
        for node in graph.node:
            _check_parameters(node, wiring)
        _check_pairs(graph, wiring)
        _check_placement(graph, wiring, placement(graph))


def _fail(where: str, what: str) -> NoReturn:
    raise BuildError(f"typed ONNX, {where}: {what}; make it anew from the exported float32 ONNX")


def _fail_at(node: Node, what: str) -> NoReturn:
    _fail(f"{node.op_type} {node.name!r}", what)


def _check_opset(model: Model) -> None:
    for opset in model.opset_import:
        if opset.domain or opset.version not in _OPSETS:
            _fail("opset", f"{opset.domain or 'ai.onnx'} {opset.version}, where 19 to 21 of ai.onnx are understood")


def _check_interface(graph: Graph, wiring: Wiring) -> None:
    """uint8 (batch, height, width, 3) into Casts alone, float32 (batch, classes) out."""
    if (len(graph.input), len(graph.output)) != (1, 1):
        _fail("interface", f"{len(graph.input)} inputs and {len(graph.output)} outputs instead of one each")
    for value, element, rank in ((graph.input[0], UINT8, 4), (graph.output[0], FLOAT, 2)):
        tensor = value.type.tensor_type
        if tensor.elem_type != element:
            _fail(repr(value.name), f"{_name(tensor.elem_type)} instead of {_name(element)}")
        dynamic = [not dimension.HasField("dim_value") for dimension in tensor.shape.dim]
        if dynamic != [True] + [False] * (rank - 1):
            _fail(repr(value.name), f"must have {rank} dimensions of which the first alone, the batch, is dynamic")
    for node in wiring.consumers.get(graph.input[0].name, []):
        if node.op_type != "Cast":
            _fail_at(node, "reads the uint8 input, which TensorRT allows in Cast nodes only")


def _name(element: int) -> str:
    return str(TensorProto.DataType.Name(element)).lower()


def _check_operators(graph: Graph, precision: Precision) -> None:
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            _fail_at(node, "not folded into the convolution before it; export the model in eval mode")
        if node.op_type in (QUANTIZE, DEQUANTIZE) and precision != "int8":
            _fail_at(node, f"does not belong in an {precision} model")


def _check_arithmetic(model: Model, element: int) -> None:
    """What multiplies computes in this type, Q/DQ pairs on its inputs included; only output and casts may differ."""
    types = element_types(with_types(model))
    for node in model.graph.node:
        if node.op_type in _COMPUTING:
            for name in node.input:
                if name and types[name] != element:
                    _fail_at(node, f"reads {name!r} as {_name(types[name])} instead of {_name(element)}")


def _check_biases(graph: Graph, wiring: Wiring) -> None:
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2] not in wiring.initializers:
            _fail_at(node, "its bias is computed or quantised; TensorRT adds it in the precision of the model")


def _check_parameters(node: Node, wiring: Wiring) -> None:
    """Symmetric int8, constant scales."""
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    zero_point = wiring.initializers.get(node.input[2]) if len(node.input) > 2 else None
    if zero_point is None or zero_point.data_type != INT8:
        _fail_at(node, "must have a constant zero point of type int8")
    if np.any(numpy_helper.to_array(zero_point)):
        _fail_at(node, "its zero point is not 0")
    scale = wiring.initializers.get(node.input[1])
    if scale is None or not np.all(numpy_helper.to_array(scale) > 0):
        _fail_at(node, "must have a constant scale above 0")


def _check_pairs(graph: Graph, wiring: Wiring) -> None:
    """Q is read by DQ alone, with the same parameters, and no tensor has two pairs."""
    quantised: set[str] = set()
    for node in graph.node:
        if node.op_type == QUANTIZE:
            readers = wiring.consumers.get(node.output[0], [])
            if [reader.op_type for reader in readers] != [DEQUANTIZE] or readers[0].input[1:] != node.input[1:]:
                _fail_at(node, "must be read by one DequantizeLinear with the same scale, and by nothing else")
            if node.input[0] in quantised:
                _fail_at(node, f"{node.input[0]!r} has a pair already, which all its readers are to share")
            quantised.add(node.input[0])
        if node.op_type == DEQUANTIZE and wiring.made_by(node.input[0], QUANTIZE) is None:
            _fail_at(node, "has no QuantizeLinear before it")


def _check_placement(graph: Graph, wiring: Wiring, places: Placement) -> None:
    for node in graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            continue
        for index, name in enumerate(node.input):
            dequantize = wiring.made_by(name, DEQUANTIZE)
            wanted = places.is_quantised(node, index)
            if wanted and dequantize is None:
                _fail_at(node, f"input {index} ({name!r}) needs a Q/DQ pair")
            if not wanted and dequantize is not None:
                _fail_at(node, f"input {index} ({name!r}) must not be behind a Q/DQ pair")
        if node.name in places.convs:
            _check_weight(node, wiring)


def _check_weight(conv: Node, wiring: Wiring) -> None:
    """One scale for each output channel, which is axis 0."""
    dequantize = wiring.producers[conv.input[1]]
    weight = wiring.initializers.get(wiring.unquantised(conv.input[1]))
    if weight is None:
        _fail_at(conv, "its weight is not constant")
    for node in (dequantize, wiring.producers[dequantize.input[0]]):
        if attribute(node, "axis", 1) != 0 or list(wiring.initializers[node.input[1]].dims) != [weight.dims[0]]:
            _fail_at(node, "weights need one scale per output channel, on axis 0")
