"""Decode and resize for the peers, from DECODE: `own` is what one would write for speed, `ours` is this project's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

cv2.setNumThreads(1)  # every core has a worker of its own

SIDE, RESIZED = 224, 256
MAX_PIXELS = 50_000_000
"""Of `ours`; the service's default."""


def decode(body: bytes) -> NDArray[np.uint8]:
    """A JPEG file -> uint8 (224, 224, 3) RGB: libjpeg-turbo's scaled decode, the cheapest settings, one resize."""
    image = simplejpeg.decode_jpeg(body, "RGB", fastdct=True, fastupsample=True, min_height=RESIZED, min_width=RESIZED)
    height, width = image.shape[:2]
    scale = min(width, height) / RESIZED
    side = int(SIDE * scale)
    left, top = (width - side) // 2, (height - side) // 2
    how = cv2.INTER_AREA if scale > 1.5 else cv2.INTER_LINEAR
    small: NDArray[np.uint8] = cv2.resize(image[top : top + side, left : left + side], (SIDE, SIDE), interpolation=how)
    return small


def make_decode(engine_dir: Path) -> Callable[[bytes], NDArray[np.uint8]]:
    """The function that DECODE names; `ours` reads the input spec from the engine's manifest, as the service does."""
    how = os.environ.get("DECODE", "own")
    if how == "own":
        return decode
    if how != "ours":
        raise SystemExit(f"DECODE={how} is neither own nor ours")
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from serve_app.manifest import read_manifest
    from serve_app.preprocess import make_preprocess

    preprocess: Any = make_preprocess("fast", read_manifest(engine_dir).input, MAX_PIXELS)
    return preprocess  # type: ignore[no-any-return]
