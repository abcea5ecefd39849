"""`check_typed` finds every way in which typed ONNX can be wrong: good graphs, broken once each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine_build.errors import BuildError
from engine_build.typed import Precision, check_typed
from engine_build.typed.graph import Wiring, is_grouped, replace_nodes
from engine_build.typed.residual import residual_adds
from tests.test_engine_typed import PRECISIONS, exported, typed

Graph = Any
Node = Any


def of(graph: Graph, op_type: str, which: int = 0) -> Node:
    return [node for node in graph.node if node.op_type == op_type][which]


def pair_on(graph: Graph, node: Node, index: int) -> None:
    """Puts a new Q/DQ pair in front of an input."""
    graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float16), "new_scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "new_zero"))
    quantize = helper.make_node("QuantizeLinear", [node.input[index], "new_scale", "new_zero"], ["new_q"], name="new_q")
    dequantize = helper.make_node("DequantizeLinear", ["new_q", "new_scale", "new_zero"], ["new_dq"], name="new_dq")
    node.input[index] = "new_dq"
    at = [one.name for one in graph.node].index(node.name)
    replace_nodes(graph, [*graph.node[:at], quantize, dequantize, *graph.node[at:]])


def bare(graph: Graph, node: Node, index: int) -> None:
    """Takes an input from behind its pair."""
    node.input[index] = Wiring(graph).unquantised(node.input[index])


def quantised_conv(graph: Graph) -> Node:
    return next(
        node for node in graph.node if node.op_type == "Conv" and node.input[1].endswith("DequantizeLinear_Output")
    )


def zero_of(graph: Graph, node: Node) -> Any:
    return Wiring(graph).initializers[node.input[2]]


def nonzero_zero_point(graph: Graph) -> None:
    tensor = zero_of(graph, of(graph, "QuantizeLinear"))
    tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), 3, np.int8), tensor.name))


def unsigned(graph: Graph) -> None:
    tensor = zero_of(graph, of(graph, "QuantizeLinear"))
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.uint8), tensor.name))


def no_zero_point(graph: Graph) -> None:
    del of(graph, "QuantizeLinear").input[2:]
    del of(graph, "DequantizeLinear").input[2:]


def dead_scale(graph: Graph) -> None:
    tensor = Wiring(graph).initializers[of(graph, "QuantizeLinear").input[1]]
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float16), tensor.name))


def batch_norm(graph: Graph) -> None:
    relu = of(graph, "Relu")
    for name in ("s", "b", "m", "v"):
        graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float16), name))
    norm = helper.make_node("BatchNormalization", [relu.input[0], "s", "b", "m", "v"], ["normed"], name="norm")
    relu.input[0] = "normed"
    at = [one.name for one in graph.node].index(relu.name)
    replace_nodes(graph, [*graph.node[:at], norm, *graph.node[at:]])


def quantised_bias(graph: Graph) -> None:
    pair_on(graph, quantised_conv(graph), 2)


def transposed_input(graph: Graph) -> None:
    """As the exporter writes it."""
    cast, transpose = of(graph, "Cast"), of(graph, "Transpose")
    transpose.input[0], cast.input[0] = "image", transpose.output[0]
    for node in graph.node:
        if node.name != cast.name:
            node.input[:] = [cast.output[0] if name == transpose.output[0] else name for name in node.input]
    rest = [node for node in graph.node if node.name not in (cast.name, transpose.name)]
    replace_nodes(graph, [transpose, cast, *rest])


def bare_activation(graph: Graph) -> None:
    bare(graph, quantised_conv(graph), 0)


def bare_weight(graph: Graph) -> None:
    bare(graph, quantised_conv(graph), 1)


def weight_of_another_axis(graph: Graph) -> None:
    conv, wiring = quantised_conv(graph), Wiring(graph)
    for node in (wiring.producers[conv.input[1]], wiring.producers[wiring.producers[conv.input[1]].input[0]]):
        next(one for one in node.attribute if one.name == "axis").i = 1


def bare_skip(graph: Graph) -> None:
    residual = next(iter(residual_adds(graph).values()))
    bare(graph, next(node for node in graph.node if node.name == residual.add), residual.skip)


def quantised_main(graph: Graph) -> None:
    residual = list(residual_adds(graph).values())[1]
    pair_on(graph, next(node for node in graph.node if node.name == residual.add), residual.main)


def quantised_depthwise(graph: Graph) -> None:
    pair_on(graph, next(node for node in graph.node if node.op_type == "Conv" and is_grouped(node)), 0)


def quantised_depthwise_weight(graph: Graph) -> None:
    pair_on(graph, next(node for node in graph.node if node.op_type == "Conv" and is_grouped(node)), 1)


def quantised_classifier(graph: Graph) -> None:
    pair_on(graph, of(graph, "Gemm"), 0)


def second_pair(graph: Graph) -> None:
    """Two readers of one tensor, each with its own."""
    residual = next(iter(residual_adds(graph).values()))
    bare_skip(graph)
    pair_on(graph, next(node for node in graph.node if node.name == residual.add), residual.skip)


def pair_with_two_scales(graph: Graph) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float16), "other_scale"))
    Wiring(graph).producers[quantised_conv(graph).input[0]].input[1] = "other_scale"


BROKEN_PAIRS: list[tuple[Callable[[Graph], None], str]] = [
    (nonzero_zero_point, r"QuantizeLinear '.*': its zero point is not 0"),
    (unsigned, r"QuantizeLinear '.*': must have a constant zero point of type int8"),
    (no_zero_point, r"QuantizeLinear '.*': must have a constant zero point of type int8"),
    (dead_scale, r"QuantizeLinear '.*': must have a constant scale above 0"),
    (quantised_bias, r"Conv '.*': its bias is computed or quantised"),
    (bare_activation, r"Conv '.*': input 0 .* needs a Q/DQ pair"),
    (bare_weight, r"Conv '.*': input 1 .* needs a Q/DQ pair"),
    (weight_of_another_axis, r"DequantizeLinear '.*': weights need one scale per output channel"),
    (bare_skip, r"Add '.*': input 1 .* needs a Q/DQ pair"),
    (quantised_main, r"Add '.*': input 1 .* must not be behind a Q/DQ pair"),
    (quantised_depthwise, r"Conv '.*': input 0 .* must not be behind"),
    (quantised_depthwise_weight, r"Conv '.*': input 1 .* must not be behind"),
    (quantised_classifier, r"Gemm '.*': input 0 .* must not be behind"),
    (second_pair, r"QuantizeLinear '.*': .* has a pair already"),
    (pair_with_two_scales, r"QuantizeLinear '.*': must be read by one DequantizeLinear with the same scale"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN_PAIRS, ids=[spoil.__name__ for spoil, _ in BROKEN_PAIRS])
def test_wrong_pairs_are_found(spoil: Callable[[Graph], None], message: str) -> None:
    model = onnx.load(str(typed("int8")))
    spoil(model.graph)
    with pytest.raises(BuildError, match=message):
        check_typed(model, "int8")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_transposed_input_is_found(precision: Precision) -> None:
    model = onnx.load(str(typed(precision)))
    transposed_input(model.graph)
    with pytest.raises(BuildError, match=r"Transpose '.*': reads the uint8 input"):
        check_typed(model, precision)


def test_the_exporters_own_graph_is_refused() -> None:
    with pytest.raises(BuildError, match=r"Transpose .* Cast nodes only; make it anew"):
        check_typed(onnx.load(str(exported())), "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batch_normalisation_is_found(precision: Precision) -> None:
    model = onnx.load(str(typed(precision)))
    batch_norm(model.graph)
    with pytest.raises(BuildError, match=r"BatchNormalization 'norm': not folded"):
        check_typed(model, precision)


@pytest.mark.parametrize(("built", "asked"), [("fp32", "fp16"), ("fp32", "int8"), ("fp16", "fp32"), ("fp16", "int8")])
def test_another_precision_is_refused(built: Precision, asked: Precision) -> None:
    with pytest.raises(BuildError, match=r"(Conv '.*': reads .* instead of)|(needs a Q/DQ pair)"):
        check_typed(onnx.load(str(typed(built))), asked)


@pytest.mark.parametrize("asked", ["fp32", "fp16"])
def test_pairs_in_a_float_model_are_refused(asked: Precision) -> None:
    with pytest.raises(BuildError, match=f"QuantizeLinear .* does not belong in an {asked} model"):
        check_typed(onnx.load(str(typed("int8"))), asked)


def test_one_convolution_left_in_float32_is_found() -> None:
    model = onnx.load(str(typed("fp16")))
    conv = of(model.graph, "Conv", 3)
    wanted = conv.output[0]
    casts = [
        helper.make_node("Cast", [name], [f"{name}_32"], name=f"up_{index}", to=TensorProto.FLOAT)
        for index, name in enumerate(conv.input)
    ]
    conv.input[:] = [f"{name}_32" for name in conv.input]
    conv.output[0] = "conv_32"
    back = helper.make_node("Cast", ["conv_32"], [wanted], name="down", to=TensorProto.FLOAT16)
    at = [one.name for one in model.graph.node].index(conv.name)
    nodes = list(model.graph.node)
    replace_nodes(model.graph, [*nodes[:at], *casts, nodes[at], back, *nodes[at + 1 :]])
    del model.graph.value_info[:]
    with pytest.raises(BuildError, match=rf"Conv '{conv.name}': reads .* as float instead of float16"):
        check_typed(model, "fp16")


@pytest.mark.parametrize(
    ("which", "dimension", "value", "message"),
    [
        ("input", 0, 4, "'image': must have 4 dimensions of which the first alone"),
        ("input", 1, None, "'image': must have 4 dimensions of which the first alone"),
        ("output", 0, 4, "'logits': must have 2 dimensions of which the first alone"),
    ],
)
def test_another_dynamic_axis_is_found(which: str, dimension: int, value: int | None, message: str) -> None:
    model = onnx.load(str(typed("fp32")))
    one = getattr(model.graph, which)[0].type.tensor_type.shape.dim[dimension]
    if value is None:
        one.dim_param = "height"
    else:
        one.dim_value = value
    with pytest.raises(BuildError, match=message):
        check_typed(model, "fp32")


@pytest.mark.parametrize(("which", "element"), [("input", TensorProto.FLOAT), ("output", TensorProto.FLOAT16)])
def test_other_input_and_output_types_are_found(which: str, element: int) -> None:
    model = onnx.load(str(typed("fp16")))
    value = getattr(model.graph, which)[0]
    value.type.tensor_type.elem_type = element
    with pytest.raises(BuildError, match=rf"'{value.name}': .* instead of"):
        check_typed(model, "fp16")


def test_an_opset_that_is_too_old_is_found() -> None:
    model = onnx.load(str(typed("int8")))
    model.opset_import[0].version = 18
    with pytest.raises(BuildError, match=r"opset: ai\.onnx 18, where 19 to 21"):
        check_typed(model, "int8")
