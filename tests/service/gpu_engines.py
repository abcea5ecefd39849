"""TensorRT engine folders without a plan, for the stand-in: a small real ONNX, and golden logits by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from serve_app.golden import GOLDEN_NAME, Golden, write_golden
from serve_app.manifest import InputSpec, Manifest, Precision, Weights, sha256_of, write_manifest

SIDE, CLASSES, CHANNELS, PATCH = 112, 10, 16, 8
MODEL = "small"


def onnx_model() -> onnx.ModelProto:
    """uint8 (n, 112, 112, 3) -> float32 (n, 10): patches of 8 x 8, each weighted by its own, so every pixel counts."""
    random = np.random.default_rng(11)
    patches = (SIDE // PATCH) ** 2
    kernel = random.normal(size=(CHANNELS, 3, PATCH, PATCH)).astype(np.float32) / (64 * PATCH)
    weights = random.normal(size=(CHANNELS * patches, CLASSES)).astype(np.float32) / 4
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["patches"], strides=[PATCH, PATCH]),
        helper.make_node("Relu", ["patches"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_gpu_engine(engines_dir: Path, precision: Precision = "fp16") -> Path:
    """Writes `engines_dir/small/tensorrt-<precision>`."""
    folder = engines_dir / MODEL / f"tensorrt-{precision}"
    folder.mkdir(parents=True)
    model = onnx_model()
    onnx.save(model, folder / "model.onnx")
    pictures = np.random.default_rng(5).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    write_golden(folder, Golden(pictures, session.run(None, {"image": pictures})[0]))
    files = {name: sha256_of(folder / name) for name in ("model.onnx", GOLDEN_NAME)}
    manifest = Manifest(
        model=MODEL,
        architecture=MODEL,
        backend="tensorrt",
        precision=precision,
        trained=False,
        labels=tuple(f"class {number}" for number in range(CLASSES)),
        input=InputSpec(height=SIDE, width=SIDE, resize_size=128),
        weights=Weights(source="untrained", name="none", sha256=files["model.onnx"]),
        artifact="model.onnx",
        files=files,
        tools={},
        created_utc="2026-01-01T00:00:00+00:00",
    )
    write_manifest(folder, manifest)
    return folder
