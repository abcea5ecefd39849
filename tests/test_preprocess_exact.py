"""`exact` is torchvision's preset bit for bit, for every kind of picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.models import ResNet18_Weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf
from torchvision.transforms._presets import ImageClassification

from serve_app.manifest import InputSpec
from serve_app.preprocess import FORMATS, make_preprocess, preprocess_exact
from serve_app.preprocess.exact import FULL_RESIZE_PIXELS, resize_crop
from serve_app.preprocess.resample import geometry, resample_window
from serve_app.types import Picture

MAX_PIXELS = 50_000_000
BILINEAR = InputSpec()
BICUBIC = InputSpec(interpolation="bicubic", mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))
SPECS = [
    pytest.param(BILINEAR, id="bilinear"),
    pytest.param(BICUBIC, id="bicubic"),
    pytest.param(InputSpec(resize_size=232), id="resize-232"),
    pytest.param(InputSpec(resize_size=200, height=224, width=187), id="resize-below-crop"),
    pytest.param(InputSpec(height=97, width=160, interpolation="bicubic"), id="oblong"),
]
SIZES = [
    (500, 375),
    (375, 500),
    (333, 517),
    (300, 900),  # Pillow 13 resizes rows before columns here
    (256, 256),
    (257, 255),
    (224, 224),
    (100, 90),
    (2, 3),
    (1, 1),
    (1, 300),
    (300, 1),
    (5000, 40),
    (40, 5000),
]
AVIF = pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow was built without AVIF")
IMAGES_DIR = Path(os.environ.get("IMAGES_DIR", Path(__file__).parent.parent / "../shared/images"))


def noise(width: int, height: int, channels: int = 3) -> Picture:
    """Random pixels: any difference in taps, weights or rounding shows."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng([width, height]).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def torchvision_uint8(image: Image.Image, spec: InputSpec) -> Picture:
    """The preset up to where it goes to float: uint8 (height, width, 3)."""
    resized = tvf.resize(image, [spec.resize_size], InterpolationMode(spec.interpolation), antialias=True)
    cropped = tvf.center_crop(resized, [spec.height, spec.width])
    return np.asarray(tvf.pil_to_tensor(cropped).permute(1, 2, 0))


def as_torchvision_loads(body: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(BytesIO(body))).convert("RGB")


def normalised(picture: Picture, spec: InputSpec) -> np.ndarray[Any, Any]:
    """float32 (3, height, width), in single precision as torch does it."""
    scaled = picture.astype(np.float32) / np.float32(255)
    return ((scaled - np.float32(spec.mean)) / np.float32(spec.std)).transpose(2, 0, 1)


def check(body: bytes, spec: InputSpec = BILINEAR) -> None:
    ours = preprocess_exact(body, spec, max_pixels=MAX_PIXELS)
    assert (ours.dtype, ours.shape) == (np.uint8, (spec.height, spec.width, 3))
    np.testing.assert_array_equal(ours, torchvision_uint8(as_torchvision_loads(body), spec))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sizes(width: int, height: int, spec: InputSpec) -> None:
    check(encode(Image.fromarray(noise(width, height)), "BMP"), spec)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_whole_preset_of_the_official_weights(width: int, height: int) -> None:
    body = encode(Image.fromarray(noise(width, height)), "BMP")
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    ours = preprocess_exact(body, BILINEAR, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(normalised(ours, BILINEAR), preset(as_torchvision_loads(body)).numpy())


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_whole_bicubic_preset(width: int, height: int) -> None:
    body = encode(Image.fromarray(noise(width, height)), "BMP")
    preset = ImageClassification(
        crop_size=224, resize_size=256, mean=BICUBIC.mean, std=BICUBIC.std, interpolation=InterpolationMode.BICUBIC
    )
    ours = preprocess_exact(body, BICUBIC, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(normalised(ours, BICUBIC), preset(as_torchvision_loads(body)).numpy())


def palette() -> Image.Image:
    return Image.fromarray(noise(301, 240)).quantize(64)


def palette_with_transparent_colour() -> bytes:
    return encode(palette(), "PNG", transparency=3)


def palette_with_alpha_table() -> bytes:
    return encode(palette(), "PNG", transparency=bytes(range(64)))


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(noise(width, 200)).crop((0, 0, 280, 200)) for width in (280, 281, 282)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)


def with_mode(mode: str) -> Image.Image:
    return Image.fromarray(noise(301, 240)).convert(mode)


def with_alpha(mode: str) -> Image.Image:
    image = with_mode(mode)
    image.putalpha(Image.fromarray(noise(301, 240, 1)))
    return image


KINDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(with_mode("RGB"), "JPEG", quality=90),
    "jpeg-progressive": lambda: encode(with_mode("RGB"), "JPEG", progressive=True),
    "jpeg-grey": lambda: encode(with_mode("L"), "JPEG"),
    "jpeg-cmyk": lambda: encode(with_mode("CMYK"), "JPEG"),
    "png-grey": lambda: encode(with_mode("L"), "PNG"),
    "png-1-bit": lambda: encode(with_mode("1"), "PNG"),
    "png-palette": lambda: encode(palette(), "PNG"),
    "png-palette-transparent-colour": palette_with_transparent_colour,
    "png-palette-alpha-table": palette_with_alpha_table,
    "png-rgba": lambda: encode(with_alpha("RGB"), "PNG"),
    "png-la": lambda: encode(with_alpha("L"), "PNG"),
    "png-rgb-transparent-colour": lambda: encode(with_mode("RGB"), "PNG", transparency=(1, 2, 3)),
    "webp": lambda: encode(with_mode("RGB"), "WEBP"),
    "webp-rgba": lambda: encode(with_alpha("RGB"), "WEBP", lossless=True),
    "webp-animated": lambda: animated("WEBP"),
    "gif": lambda: encode(palette(), "GIF"),
    "gif-animated": lambda: animated("GIF"),
    "png-animated": lambda: animated("PNG"),
    "bmp": lambda: encode(with_mode("RGB"), "BMP"),
    "tiff": lambda: encode(with_mode("RGB"), "TIFF"),
    "tiff-lzw": lambda: encode(with_mode("RGB"), "TIFF", compression="tiff_lzw"),
    "tiff-cmyk": lambda: encode(with_mode("CMYK"), "TIFF"),
    "tiff-lab": lambda: encode(Image.fromarray(noise(301, 240), "LAB"), "TIFF"),
    "tiff-rgba": lambda: encode(with_alpha("RGB"), "TIFF"),
    "tiff-pages": lambda: animated("TIFF"),
    "avif": lambda: encode(with_mode("RGB"), "AVIF"),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # from torchvision's way to RGB
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=AVIF) if kind == "avif" else kind for kind in KINDS])
def test_kinds(kind: str) -> None:
    body = KINDS[kind]()
    check(body)
    check(body, BICUBIC)


def test_transparency_is_dropped_without_a_warning() -> None:
    assert preprocess_exact(palette_with_alpha_table(), BILINEAR, max_pixels=MAX_PIXELS).shape == (224, 224, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=AVIF)])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(noise(310, 240))
    body = encode(image, kind, exif=exif)
    check(body)
    upright = preprocess_exact(encode(image, kind), BILINEAR, max_pixels=MAX_PIXELS)
    assert (orientation == 1) == np.array_equal(preprocess_exact(body, BILINEAR, max_pixels=MAX_PIXELS), upright)


def test_orientation_of_a_compressed_tiff_is_applied_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    check(encode(Image.fromarray(noise(310, 240)), "TIFF", exif=exif, compression="tiff_lzw"))


def test_unreadable_exif_leaves_the_picture_upright() -> None:
    image = Image.fromarray(noise(310, 240))
    plain = preprocess_exact(encode(image, "JPEG"), BILINEAR, max_pixels=MAX_PIXELS)
    body = encode(image, "JPEG", exif=b"Exif\0\0not a TIFF header at all")
    np.testing.assert_array_equal(preprocess_exact(body, BILINEAR, max_pixels=MAX_PIXELS), plain)


def grey16() -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(16).integers(0, 2**16, (240, 301), dtype=np.uint16)


def big_endian_tiff() -> bytes:
    """Pillow writes I;16B as a big-endian TIFF only when it was read as one."""
    image = Image.frombytes("I;16B", (301, 240), grey16().astype(">u2").tobytes())
    return encode(image, "TIFF")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: encode(Image.fromarray(grey16()), "PNG"), id="png"),
        pytest.param(lambda: encode(Image.fromarray(grey16()), "TIFF"), id="tiff"),
        pytest.param(big_endian_tiff, id="tiff-big-endian"),
        pytest.param(lambda: encode(Image.fromarray(grey16().astype(np.int32)), "TIFF"), id="tiff-32-bit"),
    ],
)
def test_16_bit_grey_keeps_its_high_byte(make: Callable[[], bytes]) -> None:
    eight_bit = Image.fromarray((grey16() // 256).astype(np.uint8)).convert("RGB")
    ours = preprocess_exact(make(), BILINEAR, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(ours, torchvision_uint8(eight_bit, BILINEAR))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_window_is_what_pillow_has_there(width: int, height: int, spec: InputSpec) -> None:
    image = Image.fromarray(noise(width, height))
    window = resample_window(image, geometry(width, height, spec), spec)
    np.testing.assert_array_equal(window, torchvision_uint8(image, spec))


@pytest.mark.parametrize("spec", [BILINEAR, BICUBIC])
@pytest.mark.parametrize(("width", "height"), [(1, 400), (400, 1), (6, 600), (270, 18_000), (18_000, 270)])
def test_panoramas_whose_resized_picture_still_fits(width: int, height: int, spec: InputSpec) -> None:
    where = geometry(width, height, spec)
    assert where.width * where.height > FULL_RESIZE_PIXELS
    check(encode(Image.fromarray(noise(width, height)), "BMP"), spec)


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (30_000_001, 1)])
def test_panoramas_that_torchvision_cannot_hold(size: tuple[int, int]) -> None:
    """Their middle is that of a shorter picture with the same pixels there: one pixel becomes 256 x 256 in both."""
    width, height = size
    image = Image.new("RGB", size, (10, 20, 30))
    middle = (max(width // 2 - 9, 0), max(height // 2 - 9, 0))
    stripe = Image.fromarray(noise(min(width, 19), min(height, 19)))
    image.paste(stripe, middle)
    part = image.crop((*middle, *(start + extent for start, extent in zip(middle, stripe.size, strict=True))))
    # An even length has its middle between two pixels, an odd one in the midst of one.
    length = 18 if max(size) % 2 == 0 else 19
    part = part.crop((0, 0, min(width, length), min(height, length)))
    np.testing.assert_array_equal(resize_crop(image, BILINEAR), torchvision_uint8(part, BILINEAR))


def test_the_result_is_writable_and_contiguous() -> None:
    ours = preprocess_exact(encode(with_mode("RGB"), "PNG"), BILINEAR, max_pixels=MAX_PIXELS)
    assert ours.flags.c_contiguous
    assert ours.flags.writeable
    assert torch.from_numpy(ours).shape == (224, 224, 3)


def test_make_preprocess_fills_in_the_rest() -> None:
    body = encode(with_mode("RGB"), "JPEG")
    exact, fast = (make_preprocess(mode, BICUBIC, MAX_PIXELS)(body) for mode in ("exact", "fast"))
    np.testing.assert_array_equal(exact, preprocess_exact(body, BICUBIC, max_pixels=MAX_PIXELS))
    assert exact.shape == fast.shape
    assert not np.array_equal(exact, fast)


@pytest.mark.skipif(not IMAGES_DIR.is_dir(), reason="no photographs; set IMAGES_DIR")
@pytest.mark.parametrize("spec", [BILINEAR, BICUBIC])
def test_photographs(spec: InputSpec) -> None:
    paths = sorted(IMAGES_DIR.glob("*.JPEG"))[::6]
    assert paths
    for path in paths:
        check(path.read_bytes(), spec)
