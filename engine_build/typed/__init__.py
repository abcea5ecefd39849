"""Typed ONNX for TensorRT 11, whose networks compute in the types that the ONNX names.

`to_fp32`, `to_fp16` and `to_int8` make it from the exported float32 ONNX; no GPU is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx

from engine_build.errors import PicturesUnusable
from engine_build.typed.checks import check_typed
from engine_build.typed.fp16 import halve
from engine_build.typed.graph import Model, load
from engine_build.typed.input_cast import cast_first
from engine_build.typed.int8 import quantise
from serve_app.manifest import Precision
from serve_app.types import Picture

__all__ = ["Precision", "check_typed", "to_fp16", "to_fp32", "to_int8"]


def to_fp32(source: Path, target: Path) -> None:
    """The exported ONNX `source` as TensorRT takes it: uint8 input into a Cast. Appears whole or not at all.

    Raises:
        BuildError: the graph cannot be made into what `check_typed` asks for.
    """
    _save(cast_first(load(source)), target, "fp32")


def to_fp16(source: Path, target: Path) -> None:
    """The exported ONNX `source` with weights and arithmetic in float16; float32 logits. As `to_fp32` otherwise."""
    _save(halve(cast_first(load(source))), target, "fp16")


def to_int8(source: Path, target: Path, pictures: Sequence[Picture]) -> None:
    """The exported ONNX `source` with convolutions in int8, the rest in float16. As `to_fp32` otherwise.

    Args:
        pictures: uint8 (height, width, 3) to calibrate with, some hundred photographs.

    Raises:
        PicturesUnusable: there are none.
    """
    if not pictures:
        raise PicturesUnusable("int8 needs pictures to calibrate with; pass some hundred photographs")
    _save(halve(quantise(cast_first(load(source)), pictures)), target, "int8")


def _save(model: Model, target: Path, precision: Precision) -> None:
    onnx.checker.check_model(model, full_check=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        onnx.save(model, str(part))
        check_typed(onnx.load(str(part)), precision)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
