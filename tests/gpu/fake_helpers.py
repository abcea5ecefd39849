"""A model small enough to see through, on its way through the fake TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.gpu.fake_tensorrt import FakeTensorRT

CLASSES, SHAPE = 5, (4, 4, 3)


def write_onnx(path: Path) -> None:
    """uint8 (n, 4, 4, 3) -> float32 (n, 5), with one Gemm in fp16."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["input"], ["cast"], to=TensorProto.FLOAT16),
            helper.make_node("Flatten", ["cast"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight"], ["half"], name="fc"),
            helper.make_node("Cast", ["half"], ["logits"], to=TensorProto.FLOAT),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, ["n", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [onnx.numpy_helper.from_array(np.zeros((48, CLASSES), np.float16), "weight")],
    )
    onnx.save(helper.make_model(graph), path)


def network(
    *,
    image: int = TensorProto.UINT8,
    logits: int = TensorProto.FLOAT,
    shape: tuple[int | str, ...] = ("n", 4, 4, 3),
    answer: tuple[int | str, ...] = ("n", 5),
    outputs: int = 1,
) -> onnx.ModelProto:
    """Of these inputs and outputs; it computes nothing that could be checked."""
    names = [f"logits{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input"], [name], to=logits) for name in names],
        "network",
        [helper.make_tensor_value_info("input", image, shape)],
        [helper.make_tensor_value_info(name, logits, answer) for name in names],
    )
    return helper.make_model(graph)


class Built:
    """The way from an ONNX file to an execution context, with a logger that collects errors."""

    def __init__(self, fake: FakeTensorRT, path: Path) -> None:
        trt: Any = fake.module
        lines: list[str] = []

        class Log(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity == trt.ILogger.Severity.ERROR:
                    lines.append(msg)

        self.fake, self.trt, self.path, self.lines, self.log = fake, trt, path, lines, Log()
        self.builder = trt.Builder(self.log)
        self.network = self.builder.create_network(0)
        self.parser = trt.OnnxParser(self.network, self.log)
        self.config = self.builder.create_builder_config()
        self.profile = self.builder.create_optimization_profile()

    def profiled(self) -> int:
        self.profile.set_shape("input", (1, *SHAPE), (2, *SHAPE), (8, *SHAPE))
        return int(self.config.add_optimization_profile(self.profile))

    def plan(self) -> bytes:
        assert self.parser.parse_from_file(str(self.path))
        assert self.profiled() == 0
        self.config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        memory = self.builder.build_serialized_network(self.network, self.config)
        assert memory is not None, self.lines
        return bytes(memory)

    def engine(self) -> Any:
        return self.trt.Runtime(self.log).deserialize_cuda_engine(self.plan())


def plan_of(fake: FakeTensorRT, folder: Path, batches: tuple[int, int, int]) -> Path:
    """Writes the plan of `folder`'s ONNX beside it, whatever our own build would say of it.

    Args:
        batches: of its profile, smallest, best and largest.
    """
    way = Built(fake, folder / "model.onnx")
    assert way.parser.parse_from_file(str(way.path))
    sizes = [size if size > 0 else 4 for size in tuple(way.network.get_input(0).shape)[1:]]
    way.profile.set_shape("input", *((n, *sizes) for n in batches))
    way.config.add_optimization_profile(way.profile)
    (folder / "some.plan").write_bytes(bytes(way.builder.build_serialized_network(way.network, way.config)))
    return folder / "some.plan"


def aligned(shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    """At a multiple of 256 bytes, as memory of a GPU is."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def ready(built: Built) -> tuple[Any, NDArray[Any], NDArray[Any]]:
    """A context with a shape and addresses, its pictures, and its logits, poisoned."""
    context = built.engine().create_execution_context()
    pictures, logits = aligned((2, *SHAPE), np.uint8), aligned((2, CLASSES), np.float32)
    logits[:] = np.nan
    context.set_input_shape("input", (2, *SHAPE))
    context.set_tensor_address("input", pictures.ctypes.data)
    context.set_tensor_address("logits", logits.ctypes.data)
    return context, pictures, logits
