"""`fast`: libjpeg-turbo decodes JPEG at reduced scale, OpenCV resizes little more than the crop. Close to `exact`, not
equal; it refuses the same files: headers, faulty JPEGs and every other format go through the same code, Pillow's.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from serve_app.manifest import InputSpec, Interpolation
from serve_app.preprocess.decode import load_rgb, open_picture, orientation_of, refusing_broken
from serve_app.preprocess.resample import Geometry, geometry
from serve_app.types import Picture

# Pictures are decoded on every core at once already; a pool inside OpenCV would only get in their way.
cv2.setNumThreads(1)

MIN_REDUCTION = 2.0
"""libjpeg-turbo decodes at half scale or less, or in full: between the two it has no SIMD code, is no faster, and was
twice as far from `exact` on photographs of 500 x 375."""

_ALIGN_REACH = 8
"""How many more pixels are resized on each side to find an edge that falls on whole source pixels."""

_KERNEL_REACH = 3
"""Source pixels around the crop that an enlarging kernel reads, with one to spare."""

_ENLARGING: dict[Interpolation, int] = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
# What each EXIF orientation takes to be upright: exchange the axes first, then flip.
_SWAP_AXES, _FLIP_ROWS, _FLIP_COLUMNS = {5, 6, 7, 8}, {3, 4, 7, 8}, {2, 3, 6, 7}


def preprocess_fast(body: bytes, spec: InputSpec, *, max_pixels: int) -> Picture:
    """`preprocess_exact` for less time and a small loss: same arguments, same result type, same refusals."""
    image = open_picture(body, max_pixels)
    with refusing_broken():
        reduced = _decode_reduced(body, image, spec)
        if reduced is None:
            return _resize_crop(np.asarray(load_rgb(image)), spec)
        return _resize_crop(_upright(reduced, orientation_of(image)), spec)


def _decode_reduced(body: bytes, image: Image.Image, spec: InputSpec) -> Picture | None:
    """RGB pixels, not yet upright, both sides at least `resize_size` or as stored; None: Pillow has to decode it."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    least = spec.resize_size
    try:
        pixels: Picture = simplejpeg.decode_jpeg(
            body, "RGB", min_height=least, min_width=least, min_factor=MIN_REDUCTION
        )
    except ValueError:
        # Any fault at all: Pillow tolerates some and refuses others, and `exact` goes by Pillow.
        return None
    return pixels


def _upright(pixels: Picture, orientation: int) -> Picture:
    """A view of `pixels`, turned; what is copied later is the crop only."""
    if orientation in _SWAP_AXES:
        pixels = pixels.transpose(1, 0, 2)
    row_step = -1 if orientation in _FLIP_ROWS else 1
    column_step = -1 if orientation in _FLIP_COLUMNS else 1
    return pixels[::row_step, ::column_step]


def _resize_crop(pixels: Picture, spec: InputSpec) -> Picture:
    """The crop of uint8 (h, w, 3) `pixels` resized as `geometry` says; black where there is nothing."""
    height, width = pixels.shape[:2]
    where = geometry(width, height, spec)
    if width > where.width:
        return _reduce(pixels, where, spec)
    return _enlarge(pixels, where, spec)


def _reduce(pixels: Picture, where: Geometry, spec: InputSpec) -> Picture:
    """By area: OpenCV's only kernel that grows with the reduction, as all of Pillow's do."""
    height, width = pixels.shape[:2]
    columns = _aligned(_wanted(where.left, spec.width, where.width), width / where.width, where.width)
    rows = _aligned(_wanted(where.top, spec.height, where.height), height / where.height, where.height)
    part = pixels[_source(rows, height / where.height), _source(columns, width / where.width)]
    small = cv2.resize(np.ascontiguousarray(part), (len(columns), len(rows)), interpolation=cv2.INTER_AREA)
    return _place(small, rows.start - where.top, columns.start - where.left, spec)


def _enlarge(pixels: Picture, where: Geometry, spec: InputSpec) -> Picture:
    """By the kernel of `spec`, with pixel edges placed as in a resize of the whole picture."""
    height, width = pixels.shape[:2]
    x_scale, y_scale = width / where.width, height / where.height
    columns = _wanted(where.left, spec.width, where.width)
    rows = _wanted(where.top, spec.height, where.height)
    x_source, y_source = _source(columns, x_scale, _KERNEL_REACH), _source(rows, y_scale, _KERNEL_REACH)
    inverse = np.array(
        [
            [x_scale, 0.0, (columns.start + 0.5) * x_scale - 0.5 - x_source.start],
            [0.0, y_scale, (rows.start + 0.5) * y_scale - 0.5 - y_source.start],
        ]
    )
    small = cv2.warpAffine(
        np.ascontiguousarray(pixels[y_source, x_source]),  # a part: OpenCV stops at 32767 pixels a side
        inverse,
        (len(columns), len(rows)),
        flags=_ENLARGING[spec.interpolation] | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return _place(small, rows.start - where.top, columns.start - where.left, spec)


def _wanted(offset: int, crop: int, out_size: int) -> range:
    """The resized pixels of one axis that the crop shows."""
    return range(max(offset, 0), min(offset + crop, out_size))


def _aligned(wanted: range, scale: float, out_size: int) -> range:
    """`wanted`, or a few pixels more, so that both ends come near the edge of a source pixel."""

    def misfit(edge: int) -> float:
        return abs(edge * scale - round(edge * scale))

    start = min(range(wanted.start, max(wanted.start - _ALIGN_REACH, 0) - 1, -1), key=misfit)
    return range(start, min(range(wanted.stop, min(wanted.stop + _ALIGN_REACH, out_size) + 1), key=misfit))


def _source(resized: range, scale: float, margin: int = 0) -> slice:
    """The source pixels under `resized`; at least one. A slice may end beyond the picture."""
    start = max(round(resized.start * scale) - margin, 0)
    return slice(start, max(round(resized.stop * scale) + margin, start + 1))


def _place(small: Picture, top: int, left: int, spec: InputSpec) -> Picture:
    """`small` with its corner at (top, left) of the crop: what lies outside is cut off, what is missing is black."""
    small = small[max(-top, 0) :, max(-left, 0) :]
    top, left = max(top, 0), max(left, 0)
    small = small[: spec.height - top, : spec.width - left]
    if small.shape[:2] == (spec.height, spec.width):
        return np.ascontiguousarray(small)
    window = np.zeros((spec.height, spec.width, 3), np.uint8)
    window[top : top + small.shape[0], left : left + small.shape[1]] = small
    return window
