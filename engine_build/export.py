"""torch -> ONNX, the exchange format that OpenVINO engines are built from."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch

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
                verbose=False,
            )
        onnx.checker.check_model(str(part))
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


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
