"""`fast`: libjpeg-turbo decodes JPEG at reduced scale, OpenCV resizes little more than the crop. Close to `exact`, not
equal; it refuses the same files: headers, faulty JPEGs and every other format go through the same code, Pillow's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

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

_MAX_SMOOTHED_REDUCTION = 2.0
"""Up to here three taps are enough of a low-pass; beyond, and that is rare after a reduced decode, OpenCV's area."""

_KERNELS: dict[Interpolation, int] = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
# What each EXIF orientation takes to be upright: exchange the axes first, then flip.
_SWAP_AXES, _FLIP_ROWS, _FLIP_COLUMNS = {5, 6, 7, 8}, {3, 4, 7, 8}, {2, 3, 6, 7}


def preprocess_fast(body: bytes, spec: InputSpec, *, max_pixels: int) -> Picture:
    """`preprocess_exact` for less time and a small loss: same arguments, same result type, same refusals."""
    plain = _is_plain_jpeg(body, max_pixels)
    if plain and (pixels := _decode_reduced(body, spec)) is not None:
        with refusing_broken():
            return _resize_crop(pixels, spec)
    image = open_picture(body, max_pixels)
    with refusing_broken():
        # What is plain and came here is faulty: libjpeg-turbo has refused it once.
        reduced = _decode_reduced(body, spec) if not plain and _is_jpeg(image) else None
        if reduced is None:
            return _resize_crop(np.asarray(load_rgb(image)), spec)
        return _resize_crop(_upright(reduced, orientation_of(image)), spec)


def _is_plain_jpeg(body: bytes, max_pixels: int) -> bool:
    """Whether a JPEG needs nothing of Pillow, which takes longer to open it than the resize does.

    Where an orientation may be stored, or anything is out of the ordinary, Pillow decides.
    """
    if not body.startswith(b"\xff\xd8\xff") or b"Exif\0\0" in body or b"tiff:Orientation" in body:
        return False
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(body)
    except ValueError:
        return False
    return colour_space in ("YCbCr", "Gray") and 0 < width * height <= max_pixels


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")


def _decode_reduced(body: bytes, spec: InputSpec) -> Picture | None:
    """RGB pixels, not yet upright, both sides at least `resize_size` or as stored; None: Pillow has to decode it."""
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
    plan = _plan(height, width, spec)
    return _enlarge(pixels, plan.where, spec) if plan.enlarges else _reduce(pixels, plan, spec)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a picture's size says about its resize. `where` is the whole resized picture, `rows` and `columns` the
    part of it that is computed, `source` what lies under that; sigmas are those of the blur, None for no blur."""

    where: Geometry
    enlarges: bool
    rows: range
    columns: range
    source: tuple[slice, slice]
    sigmas: tuple[float, float] | None


@lru_cache(maxsize=1024)  # of many pictures, most share a few sizes
def _plan(height: int, width: int, spec: InputSpec) -> _Plan:
    where = geometry(width, height, spec)
    x_scale, y_scale = width / where.width, height / where.height
    columns = _aligned(_wanted(where.left, spec.width, where.width), x_scale, where.width)
    rows = _aligned(_wanted(where.top, spec.height, where.height), y_scale, where.height)
    smoothed = min(x_scale, y_scale) > 1 and max(x_scale, y_scale) <= _MAX_SMOOTHED_REDUCTION
    return _Plan(
        where,
        enlarges=width <= where.width,
        rows=rows,
        columns=columns,
        source=(_source(rows, y_scale), _source(columns, x_scale)),
        sigmas=(_sigma(x_scale), _sigma(y_scale)) if smoothed else None,
    )


def _reduce(pixels: Picture, plan: _Plan, spec: InputSpec) -> Picture:
    """Pillow's kernels grow with the reduction, OpenCV's do not, so what grows is put in front of them: a blur."""
    part = pixels[plan.source]
    if pixels.strides[0] < 0 or pixels.strides[1] != 3:
        part = np.ascontiguousarray(part)  # turned or mirrored, which OpenCV does not read
    interpolation = cv2.INTER_AREA
    if plan.sigmas is not None:
        x_sigma, y_sigma = plan.sigmas
        part = cv2.GaussianBlur(part, (3, 3), x_sigma, sigmaY=y_sigma, borderType=cv2.BORDER_REPLICATE)
        interpolation = _KERNELS[spec.interpolation]
    small = cv2.resize(part, (len(plan.columns), len(plan.rows)), interpolation=interpolation)
    return _place(small, plan.rows.start - plan.where.top, plan.columns.start - plan.where.left, spec)


def _sigma(scale: float) -> float:
    """Of the three taps that widen a kernel as antialiasing by `scale` in 1..2 does.

    A triangle of half-width `scale` has variance scale^2 / 6, one of half-width 1 has 1 / 6: the taps (a, 1 - 2a, a)
    bring the difference 2a. At 2 they are 1/4, 1/2, 1/4 and the triangle is met exactly.
    """
    side = (scale * scale - 1) / 12
    return math.sqrt(-0.5 / math.log(side / (1 - 2 * side)))


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
        flags=_KERNELS[spec.interpolation] | cv2.WARP_INVERSE_MAP,
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
        return small
    window = np.zeros((spec.height, spec.width, 3), np.uint8)
    window[top : top + small.shape[0], left : left + small.shape[1]] = small
    return window
