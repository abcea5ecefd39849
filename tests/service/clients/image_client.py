"""What Triton's `image_client.py` does, without its command line: it knows a model only by what is published of it.

https://github.com/triton-inference-server/client/blob/main/src/python/examples/image_client.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

Scaling = Literal["NONE", "INCEPTION", "VGG"]


@dataclass(frozen=True)
class Parsed:
    """What it found out of a model: names, sizes, layout (FORMAT_NCHW or FORMAT_NHWC) and NumPy's input type."""

    max_batch_size: int
    input_name: str
    output_name: str
    channels: int
    height: int
    width: int
    layout: str
    datatype: str


def parse_model(metadata: dict[str, Any], config: dict[str, Any]) -> Parsed:
    """Refuses what is not an image classifier by its metadata and configuration (both as JSON)."""
    [given], [answered], [configured] = metadata["inputs"], metadata["outputs"], config["input"]
    assert answered["datatype"] == "FP32"
    batched = config["max_batch_size"] > 0
    assert len([size for size in answered["shape"][batched:] if size > 1]) <= 1, "the output is to be a vector"
    sizes = given["shape"][batched:]
    assert len(sizes) == 3, "the input is to have three dimensions"
    assert configured["format"] in ("FORMAT_NCHW", "FORMAT_NHWC")
    if configured["format"] == "FORMAT_NHWC":
        height, width, channels = sizes
    else:
        channels, height, width = sizes
    return Parsed(
        config["max_batch_size"],
        given["name"],
        answered["name"],
        channels,
        height,
        width,
        configured["format"],
        given["datatype"],
    )


def preprocess(picture: Image.Image, model: Parsed, scaling: Scaling) -> np.ndarray:
    """One picture as the model's input, of its size whatever its shape was."""
    picture = picture.convert("L" if model.channels == 1 else "RGB")
    resized = np.array(picture.resize((model.width, model.height), Image.Resampling.BILINEAR))
    typed = resized.reshape(model.height, model.width, model.channels).astype(np.float32)
    if scaling == "INCEPTION":
        typed = typed / 127.5 - 1
    elif scaling == "VGG":
        typed = typed - np.asarray((123, 117, 104), np.float32)
    return typed.transpose(2, 0, 1) if model.layout == "FORMAT_NCHW" else typed


def postprocess(output: np.ndarray, pictures: int) -> list[list[tuple[float, int, str]]]:
    """Score, index and label of each class it was told, by picture."""
    assert len(output) == pictures
    rows = [["".join(chr(byte) for byte in one).split(":") for one in row] for row in output]
    return [[(float(score), int(index), label) for score, index, label in row] for row in rows]
