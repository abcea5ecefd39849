"""Residual additions: which input is the skip, and which the convolution that TensorRT fuses the addition into."""

from __future__ import annotations

from dataclasses import dataclass

from engine_build.typed.graph import Graph, Node, Wiring, conv_depths, is_grouped


@dataclass(frozen=True, slots=True)
class Residual:
    """An Add that can become a part of the convolution before it.

    Attributes:
        add: name of the node.
        main: index of the input that this convolution makes.
        skip: index of the other input.
    """

    add: str
    main: int
    skip: int


def residual_adds(graph: Graph) -> dict[str, Residual]:
    """Every Add of two branches of which one ends in a convolution that int8 is meant for, by the Add's name.

    Where both do (a block that makes its picture smaller has a 1x1 convolution on the skip), the main branch is the
    one with more convolutions on it. An Add whose main branch ends in something else cannot be fused, and is none.
    Q/DQ pairs that are there already are looked through.
    """
    wiring, depths = Wiring(graph), conv_depths(graph)
    found = {}
    for node in graph.node:
        mains = _mains(node, wiring) if _adds_branches(node, depths) else []
        if mains:
            main = max(mains, key=lambda index: depths[node.input[index]])
            found[node.name] = Residual(node.name, main, 1 - main)
    return found


def _adds_branches(node: Node, depths: dict[str, int]) -> bool:
    """Both inputs come out of convolutions; else one of them is a constant, as in the normalisation."""
    return node.op_type == "Add" and all(depths.get(name, 0) > 0 for name in node.input)


def _mains(add: Node, wiring: Wiring) -> list[int]:
    """Inputs that a convolution makes for this Add alone."""
    found = []
    for index, name in enumerate(add.input):
        source = wiring.unquantised(name)
        conv = wiring.made_by(source, "Conv")
        if conv is not None and not is_grouped(conv) and len(wiring.consumers[source]) == 1:
            found.append(index)
    return found
