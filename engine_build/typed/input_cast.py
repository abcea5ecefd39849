"""Puts the cast of the uint8 input first.

TensorRT takes uint8 inputs in Cast nodes only, not even in a Transpose:
https://github.com/NVIDIA/TensorRT/issues/3985
"""

from __future__ import annotations

from onnx import helper

from engine_build.typed.graph import FLOAT, Model, Node, attribute, element_types, replace_nodes, with_types


def cast_first(model: Model) -> Model:
    """The same numbers, with one Cast to float32 that alone reads the input, and without the casts that it replaces."""
    graph = model.graph
    image = graph.input[0].name
    if all(node.op_type == "Cast" for node in graph.node if image in node.input):
        return with_types(model)
    cast = helper.make_node("Cast", [image], [f"{image}_float"], name=f"cast_{image}", to=FLOAT)
    for node in graph.node:
        _rewire(node, image, cast.output[0])
    replace_nodes(graph, [cast, *graph.node])
    return _without_idle_casts(with_types(model))


def _without_idle_casts(model: Model) -> Model:
    """Casts from float32 to float32 go."""
    types, graph = element_types(model), model.graph
    idle = [
        node
        for node in graph.node
        if node.op_type == "Cast" and attribute(node, "to", 0) == FLOAT and types[node.input[0]] == FLOAT
    ]
    for cast in idle:
        for node in graph.node:
            _rewire(node, cast.output[0], cast.input[0])
    gone = {cast.name for cast in idle}
    replace_nodes(graph, [node for node in graph.node if node.name not in gone])
    return with_types(model)


def _rewire(node: Node, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new
