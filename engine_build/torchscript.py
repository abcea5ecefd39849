"""torch -> frozen TorchScript, for comparison and for models that no other backend converts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from engine_build.export import example_input, quiet
from engine_build.reference import Reference
from serve_app.manifest import InputSpec

ARTIFACT = "model.pt"


def save_torchscript(reference: Reference, spec: InputSpec, folder: Path) -> None:
    """Traces with a batch of two, freezes, writes `model.pt`; any batch size runs.

    `quiet`, since torch marks torch.jit deprecated on every call; it is still the one torch format that loads
    without the model's code.
    """
    jit: Any = torch.jit  # its functions carry no annotations
    with quiet(), torch.inference_mode():
        frozen = jit.freeze(jit.trace(reference, example_input(spec)))
        # Through memory: on a full disk torch's own file writer takes the whole process down.
        content = io.BytesIO()
        jit.save(frozen, content)
    (folder / ARTIFACT).write_bytes(content.getbuffer())
