"""`fast` is near `exact`: alignment, orientation and falling back. What it costs in accuracy, a script measures."""

from __future__ import annotations

from io import BytesIO
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFilter

from serve_app.manifest import InputSpec
from serve_app.preprocess import preprocess_exact, preprocess_fast
from serve_app.preprocess.decode import open_picture
from serve_app.types import Picture

MAX_PIXELS = 50_000_000
BILINEAR = InputSpec()
BICUBIC = InputSpec(interpolation="bicubic")
OBLONG = InputSpec(height=97, width=160, resize_size=180)


def scene(width: int, height: int) -> Image.Image:
    """Coloured blobs of many sizes, no side like the other: an offset, a turn or a swapped channel shows at once."""
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((width, height), 3)
    fine = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse, fine.filter(ImageFilter.GaussianBlur(2)), 0.3)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def distance(a: Picture, b: Picture) -> float:
    """Mean absolute difference in levels of 255."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


def both(body: bytes, spec: InputSpec = BILINEAR) -> tuple[Picture, Picture]:
    exact, fast = (function(body, spec, max_pixels=MAX_PIXELS) for function in (preprocess_exact, preprocess_fast))
    assert (fast.dtype, fast.shape) == (np.uint8, (spec.height, spec.width, 3))
    assert fast.flags.writeable
    return exact, fast


@pytest.mark.parametrize("spec", [BILINEAR, BICUBIC, OBLONG], ids=["bilinear", "bicubic", "oblong"])
@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (333, 517), (1600, 1200), (2101, 1403), (256, 256), (240, 300), (90, 70)]
)
def test_near_exact(width: int, height: int, spec: InputSpec) -> None:
    exact, fast = both(encode(scene(width, height), quality=92), spec)
    near = distance(exact, fast)
    assert near < 2.5
    # One pixel aside would be worse, so the crop sits where it should.
    for axis in (0, 1):
        assert near < min(distance(exact, np.roll(fast, step, axis)) for step in (-1, 1))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (3, 2), (5000, 40), (40, 5000), (40_000, 9)])
def test_extreme_shapes(width: int, height: int) -> None:
    exact, fast = both(encode(scene(width, height).filter(ImageFilter.GaussianBlur(3)), "PNG"))
    assert distance(exact, fast) < 2.5


def test_a_plain_jpeg_is_not_opened_by_pillow_and_one_with_an_orientation_is(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def noting(body: bytes, max_pixels: int) -> Image.Image:
        opened.append(len(body))
        return open_picture(body, max_pixels)

    monkeypatch.setattr("serve_app.preprocess.fast.open_picture", noting)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = encode(scene(500, 375)), encode(scene(500, 375), exif=exif)
    for body in (plain, turned, encode(scene(500, 375), "PNG")):
        preprocess_fast(body, BILINEAR, max_pixels=MAX_PIXELS)
    assert len(opened) == 2
    assert len(plain) not in opened


@pytest.mark.parametrize("spec", [BILINEAR, OBLONG], ids=["square", "oblong"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, spec: InputSpec) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact, fast = both(encode(scene(1101, 803), quality=92, exif=exif), spec)
    assert distance(exact, fast) < 2.5


@pytest.mark.parametrize("spec", [InputSpec(resize_size=200, height=224, width=187), InputSpec(resize_size=100)])
def test_padding_is_black_where_exact_is(spec: InputSpec) -> None:
    for size in ((700, 500), (150, 120)):
        exact, fast = both(encode(scene(*size), quality=92), spec)
        assert (exact == 0).all(axis=2).any()
        assert distance(exact, fast) < 2.5
        edge = (exact == 0).all(axis=(1, 2)).sum()
        assert (fast == 0).all(axis=(1, 2)).sum() == edge


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpeg_colours(mode: str) -> None:
    exact, fast = both(encode(scene(800, 600).convert(mode), quality=92))
    assert distance(exact, fast) < 2.5


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_other_formats_take_pillow(kind: str) -> None:
    with patch.object(simplejpeg, "decode_jpeg", side_effect=AssertionError("not a JPEG")):
        exact, fast = both(encode(scene(500, 375), kind))
    assert distance(exact, fast) < 2.5


def test_a_large_jpeg_is_decoded_at_reduced_scale() -> None:
    decode, shapes = simplejpeg.decode_jpeg, []

    def spy(*args: Any, **kwargs: Any) -> Picture:
        pixels: Picture = decode(*args, **kwargs)
        shapes.append(pixels.shape)
        return pixels

    with patch.object(simplejpeg, "decode_jpeg", spy):
        both(encode(scene(2400, 1800)))
    assert shapes == [(450, 600, 3)]


def test_a_fault_that_pillow_tolerates_is_tolerated() -> None:
    body = encode(scene(500, 375))
    scan = body.index(b"\xff\xda")
    faulty = body[:scan] + b"\x00\x11\x22" + body[scan:]  # libjpeg: "extraneous bytes before marker", a warning
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(faulty)
    exact, fast = both(faulty)
    assert distance(exact, fast) < 2.5
