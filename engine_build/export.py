"""torch -> ONNX, the exchange format that OpenVINO and TensorRT engines are built from."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset20

from engine_build.errors import BuildError
from engine_build.reference import Reference
from serve_app.manifest import InputSpec

INPUT_NAME = "image"
OUTPUT_NAME = "logits"


def export_onnx(reference: Reference, spec: InputSpec, target: Path) -> None:
    """Writes `target`: uint8 NHWC `image` in, float32 `logits` out, dynamic batch. It appears whole or not at all."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with quiet():
            torch.onnx.export(
                reference,
                (example_input(spec),),
                str(part),
                dynamo=True,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                external_data=False,
                custom_translation_table={torch.ops.aten.adaptive_avg_pool2d.default: global_pool},
                verbose=False,
            )
        onnx.checker.check_model(str(part))
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def global_pool(features: Any, output_size: Sequence[int]) -> Any:
    """`adaptive_avg_pool2d` to one value per channel, as the one operator that it is in ONNX.

    Left to itself the exporter takes it apart into a mean and an `as_strided` that depends on the batch: Shape, Range,
    Gather and five more nodes in front of the classifier, none of which changes a number.

    Raises:
        BuildError: a pooling to another size.
    """
    if list(output_size) != [1, 1]:
        raise BuildError(f"a pooling to {list(output_size)} cannot be exported; choose a net that pools to 1 x 1")
    return opset20.GlobalAveragePool(features)


def example_input(spec: InputSpec, count: int = 2) -> torch.Tensor:
    """uint8 (count, height, width, 3); two, since exporters take a batch of one for a constant."""
    return torch.zeros(count, spec.height, spec.width, 3, dtype=torch.uint8)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps exporters' chatter away: warnings, log lines and prints, none of which the user can act on."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
