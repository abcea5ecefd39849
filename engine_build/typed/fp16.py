"""float32 -> float16, by onnxruntime's converter."""

from __future__ import annotations

from engine_build.export import quiet
from engine_build.typed.graph import Model, with_types


def halve(model: Model) -> Model:
    """Everything that was float32 in float16, but for the graph's output; scales of Q/DQ pairs too.

    Pixels are whole numbers up to 255, which float16 holds exactly, so that normalisation may be float16 as well.
    """
    with quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # An empty list of operators to leave alone: those of the default list that classifiers have (Max, Min) do
        # exist in float16.
        halved = convert_float_to_float16(model, keep_io_types=True, op_block_list=[])
    return with_types(halved)
