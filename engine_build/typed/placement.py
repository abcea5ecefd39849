"""Where Q/DQ pairs belong. int8.py builds by this rule, checks.py holds the result against it."""

from __future__ import annotations

from dataclasses import dataclass

from engine_build.typed.graph import Graph, Node, is_grouped
from engine_build.typed.residual import Residual, residual_adds


@dataclass(frozen=True, slots=True)
class Placement:
    """Names of the convolutions that compute in int8, and the residual additions by name."""

    convs: frozenset[str]
    residuals: dict[str, Residual]

    def is_quantised(self, node: Node, index: int) -> bool:
        """Whether input `index` of the node belongs behind a Q/DQ pair."""
        if node.op_type == "Add":
            return node.name in self.residuals and self.residuals[node.name].skip == index
        return node.name in self.convs and index < 2


def placement(graph: Graph) -> Placement:
    """The rule.

    int8 are all convolutions but the first, which is small, and which TensorRT fuses with the pooling behind it only
    in float16; and but those in groups, where int8 gains nothing. The classifier (Gemm) stays float16: it is a
    thousandth of the work. Of an Add, the skip input. Accuracy does not decide it: with the first convolution in int8
    too, efficientnet_lite0 has the same top-1, and logits a tenth less exact.
    """
    convs = [node for node in graph.node if node.op_type == "Conv"]
    return Placement(frozenset(conv.name for conv in convs[1:] if not is_grouped(conv)), residual_adds(graph))
