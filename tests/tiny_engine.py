"""A real engine that takes milliseconds to make: 4x4 pictures, five classes, one matrix product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serve_app.golden import GOLDEN_NAME, Golden, write_golden
from serve_app.manifest import Manifest, Precision, engine_folder, sha256_of, write_manifest
from tests.fakes import CLASSES, SHAPE, manifest

WEIGHTS = np.random.default_rng(7).normal(size=(int(np.prod(SHAPE)), CLASSES)).astype(np.float32)


def expected(pictures: np.ndarray) -> np.ndarray:
    """What the engine computes, by numpy."""
    return pictures.reshape(len(pictures), -1).astype(np.float32) @ WEIGHTS


def onnx_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_engine(engines_dir: Path, model: str = "fake", **changes: object) -> tuple[Path, Manifest]:
    """Writes `engines_dir/model/onnx-fp32`, or that version of it; `changes` are of its manifest."""
    version = changes.get("version", 1)
    assert isinstance(version, int)
    folder = engine_folder(engines_dir, model, version, "onnx-fp32")
    folder.mkdir(parents=True)
    onnx.save(onnx_model(), folder / "model.onnx")
    files = {"model.onnx": sha256_of(folder / "model.onnx")}
    fields: dict[str, object] = {"model": model, "backend": "onnx", "artifact": "model.onnx", "files": files}
    written = manifest(**(fields | changes))
    write_manifest(folder, written)
    return folder, written


def make_gpu_engine(
    engines_dir: Path, model: str = "fake", precision: Precision = "fp32", **changes: object
) -> tuple[Path, Manifest]:
    """Writes `engines_dir/model/tensorrt-<precision>`, without a plan: the ONNX, and golden pictures with its answers.

    The precision is in the name only.
    """
    folder = engines_dir / model / f"tensorrt-{precision}"
    folder.mkdir(parents=True)
    onnx.save(onnx_model(), folder / "model.onnx")
    pictures = np.random.default_rng(3).integers(0, 256, (5, *SHAPE), np.uint8)
    write_golden(folder, Golden(pictures, expected(pictures)))
    fields: dict[str, object] = {
        "model": model,
        "backend": "tensorrt",
        "precision": precision,
        "artifact": "model.onnx",
        "files": {name: sha256_of(folder / name) for name in ("model.onnx", GOLDEN_NAME)},
    }
    written = manifest(**(fields | changes))
    write_manifest(folder, written)
    return folder, written
