"""Typed ONNX on the CPU, to measure what its arithmetic costs in accuracy before a GPU is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engine_build.typed.graph import DEQUANTIZE, FLOAT, FLOAT16, QUANTIZE, Graph, replace_nodes
from serve_app.runtime import RuntimeInfo
from serve_app.types import Logits, Pictures

_PRECISIONS = {FLOAT: "fp32", FLOAT16: "fp16"}


class OnnxCpuRuntime:
    """onnxruntime's CPU provider, behind `Runtime`. Meant for numbers, not for speed.

    float16 nodes compute in float32, and the result of each is rounded to float16: TensorRT does so where it does not
    fuse, and rounds less often where it does. Q/DQ pairs round to int8 steps; the products between them are summed up
    in float32.

    Args:
        path: ONNX, uint8 NHWC in, float32 logits out, dynamic batch.
        threads: inference threads.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        model = onnx.load(str(path))
        precision = _precision(model.graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if precision != "fp32":
            # Optimised, onnxruntime 1.32 ruins int8: its WeightBiasQuantization makes biases int32, whose scale, the
            # product of two, is below what float16 holds (efficientnet_lite0's top-1 falls from 0.84 to 0.01 on a
            # hundred photographs; with float32 scales to 0.73, some of it in kernels that add in 16 bits where the CPU
            # has no VNNI). TensorRT adds in 32 bits and leaves biases alone. Pairs run as written do just that, but
            # for the rounding of sums in float32.
            _hold_half_results(model.graph)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.info = RuntimeInfo("onnxruntime", precision, threads)
        self._input_name: str = session.get_inputs()[0].name
        self._session: Any = session

    def infer(self, pictures: Pictures) -> Logits:
        if self._session is None:
            raise RuntimeError("the engine was closed")
        (logits,) = self._session.run(None, {self._input_name: np.ascontiguousarray(pictures)})
        return np.asarray(logits, dtype=np.float32)

    def close(self) -> None:
        self._session = None


def _precision(graph: Graph) -> str:
    """Read off the graph: int8 if it has Q/DQ pairs, else what its weights are stored in."""
    if any(node.op_type == QUANTIZE for node in graph.node):
        return "int8"
    weights = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    stored = {weights[node.input[1]] for node in graph.node if node.op_type == "Conv"}
    return _PRECISIONS[stored.pop()] if len(stored) == 1 else "mixed"


def _hold_half_results(graph: Graph) -> None:
    """Puts an Identity behind every node.

    onnxruntime has few float16 kernels for CPUs. It puts casts around the other nodes, and then removes each cast to
    float16 that is followed by one back, whatever the level of optimisation: of the rounding nothing would be left but
    that of the weights. An Identity between the two keeps them.
    """
    outputs = {output.name for output in graph.output}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if node.op_type not in (QUANTIZE, DEQUANTIZE) and name not in outputs:
                node.output[index] = f"{name}_unheld"
                nodes.append(onnx.helper.make_node("Identity", [node.output[index]], [name], name=f"hold_{name}"))
    del graph.value_info[:]
    replace_nodes(graph, nodes)
