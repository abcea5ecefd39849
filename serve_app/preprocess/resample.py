"""torchvision's resize and centre crop: the sizes and offsets, and Pillow's resampling for one window of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from serve_app.manifest import InputSpec, Interpolation
from serve_app.types import Picture

Integers: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

WEIGHT_BITS = 22
"""Pillow's 8-bit resampling sums integer weights with this many fractional bits."""

_PILLOW_MAJOR = int(PIL.__version__.split(".")[0])
_SUPPORT: dict[Interpolation, float] = {"bilinear": 1.0, "bicubic": 2.0}


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the engine's input lies in the resized picture, in pixels.

    Attributes:
        width, height: of the picture after the resize.
        left, top: of the crop; negative where the resized picture is smaller than the crop, and padded with black.
    """

    width: int
    height: int
    left: int
    top: int


def geometry(width: int, height: int, spec: InputSpec) -> Geometry:
    """What torchvision's `resize` and `center_crop` compute for a picture of `width` x `height`."""
    short, long = min(width, height), max(width, height)
    new_long = int(spec.resize_size * long / short)
    new_width, new_height = (spec.resize_size, new_long) if width <= height else (new_long, spec.resize_size)
    return Geometry(new_width, new_height, _crop_offset(new_width, spec.width), _crop_offset(new_height, spec.height))


def resample_window(image: Image.Image, where: Geometry, spec: InputSpec) -> Picture:
    """Only the crop of `image` (RGB) resized to `where`; bit for bit Pillow's result, at a cost that does not depend
    on the size of the resized picture. Slower than Pillow where that is of ordinary size.

    Returns:
        uint8 (spec.height, spec.width, 3), C-contiguous.
    """
    columns = range(max(where.left, 0), min(where.left + spec.width, where.width))
    rows = range(max(where.top, 0), min(where.top + spec.height, where.height))
    x_taps, x_weights = _weights(image.width, where.width, columns, spec.interpolation)
    y_taps, y_weights = _weights(image.height, where.height, rows, spec.interpolation)
    left, top = int(x_taps.min()), int(y_taps.min())
    source = np.asarray(image.crop((left, top, int(x_taps.max()) + 1, int(y_taps.max()) + 1)))
    x_taps, y_taps = x_taps - left, y_taps - top
    if _rows_first(image, where):
        resampled = _across(_down(source, y_taps, y_weights), x_taps, x_weights)
    else:
        resampled = _down(_across(source, x_taps, x_weights), y_taps, y_weights)
    window = np.zeros((spec.height, spec.width, 3), np.uint8)
    y0, x0 = rows.start - where.top, columns.start - where.left
    window[y0 : y0 + len(rows), x0 : x0 + len(columns)] = resampled
    return window


def _crop_offset(size: int, crop: int) -> int:
    if crop > size:
        return -((crop - size) // 2)
    return round((size - crop) / 2.0)  # to even at .5, as torchvision does


def _weights(in_size: int, out_size: int, wanted: range, interpolation: Interpolation) -> tuple[Integers, Integers]:
    """Input pixels and their integer weights, both (len(wanted), taps), for `wanted` of `out_size` output pixels."""
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    centre = (np.arange(wanted.start, wanted.stop)[:, None] + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), in_size)
    taps = first + np.arange(int((end - first).max()))
    weights = np.where(taps < end, _kernel((taps - centre + 0.5) * (1.0 / stretch), interpolation), 0.0)
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]  # summed one by one, as in C; np.sum adds in pairs
    fixed = np.copysign(0.5, weights) + weights * (1 << WEIGHT_BITS)
    return np.minimum(taps, in_size - 1), fixed.astype(np.int64)


def _kernel(x: Floats, interpolation: Interpolation) -> Floats:
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _rows_first(image: Image.Image, where: Geometry) -> bool:
    """Which pass Pillow runs first; each rounds to 8 bits, so the order shows in the result."""
    fewer_rows = image.height - where.height
    return _PILLOW_MAJOR >= 13 and fewer_rows > 0 and fewer_rows > (image.width - where.width) * 2


def _across(pixels: Picture, taps: Integers, weights: Integers) -> Picture:
    """Resamples columns: uint8 (m, n, 3) to uint8 (m, len(taps), 3)."""
    return _down(pixels.transpose(1, 0, 2), taps, weights).transpose(1, 0, 2)


def _down(pixels: Picture, taps: Integers, weights: Integers) -> Picture:
    """Resamples rows: uint8 (n, m, 3) to uint8 (len(taps), m, 3)."""
    total = np.full((len(taps), *pixels.shape[1:]), 1 << (WEIGHT_BITS - 1), np.int64)
    for tap, weight in zip(taps.T, weights.T, strict=True):
        total += pixels[tap] * weight[:, None, None]
    rounded: Picture = np.clip(total >> WEIGHT_BITS, 0, 255).astype(np.uint8)
    return rounded
