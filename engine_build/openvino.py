"""ONNX -> OpenVINO IR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino as ov

ARTIFACT = "model.xml"


def read_onnx(onnx_path: Path) -> Any:
    """The ONNX file as an OpenVINO model with float32 weights."""
    return ov.convert_model(str(onnx_path))


def save_ir(model: Any, folder: Path) -> None:
    """Writes `model.xml` and `model.bin`. Weights stay float32: the runtime picks bf16 where the CPU has it."""
    ov.save_model(model, str(folder / ARTIFACT), compress_to_fp16=False)
