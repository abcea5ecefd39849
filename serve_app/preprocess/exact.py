"""`exact`: what torchvision's `weights.transforms()` holds before it goes to float, bit for bit."""

from __future__ import annotations

import numpy as np
from PIL import Image

from serve_app.manifest import InputSpec
from serve_app.preprocess.decode import load_rgb, open_picture, refusing_broken
from serve_app.preprocess.resample import geometry, resample_window
from serve_app.types import Picture

FULL_RESIZE_PIXELS = 4 * 2**20
"""Up to this many pixels the whole resized picture is computed by Pillow, beyond only its crop. A shorter side of 256
reaches it at an aspect of 64:1; a picture of 1 x 1,000,000 pixels would need 67 GB."""

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess_exact(body: bytes, spec: InputSpec, *, max_pixels: int) -> Picture:
    """Decodes, sets upright, converts to RGB, resizes the shorter side and cuts out the centre.

    From the RGB picture on, equal to torchvision's preset on every bit, also where the resized picture would be too
    large to hold. Thread-safe; the decoding and resizing run without the GIL.

    Args:
        body: a whole image file.
        max_pixels: limit of width x height, checked before decoding.

    Returns:
        uint8 (spec.height, spec.width, 3), RGB, C-contiguous, writable.

    Raises:
        RequestError: InvalidRequest, UnsupportedFormat, BrokenPicture or PayloadTooLarge; nothing else, whatever
            the bytes.
    """
    image = load_rgb(open_picture(body, max_pixels))
    with refusing_broken():
        return resize_crop(image, spec)


def resize_crop(image: Image.Image, spec: InputSpec) -> Picture:
    """torchvision's resize (antialiased) and centre crop of an RGB picture, padded with black where it is smaller."""
    where = geometry(image.width, image.height, spec)
    if where.width * where.height > FULL_RESIZE_PIXELS:
        return resample_window(image, where, spec)
    resized = image.resize((where.width, where.height), _RESAMPLING[spec.interpolation])
    return np.array(resized.crop((where.left, where.top, where.left + spec.width, where.top + spec.height)))
