"""What is refused, and that nothing but a refusal or a picture comes back, whatever the bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.errors import BrokenPicture, InvalidRequest, PayloadTooLarge, RequestError, UnsupportedFormat
from serve_app.manifest import InputSpec
from serve_app.preprocess import FORMATS, preprocess_exact, preprocess_fast
from serve_app.preprocess.decode import orientation_of, refusing_broken
from serve_app.types import Picture

SPEC = InputSpec()
MAX_PIXELS = 4_000_000
BOTH = pytest.mark.parametrize("preprocess", [preprocess_exact, preprocess_fast], ids=["exact", "fast"])

# Damaged metadata makes Pillow warn; the service's own filter is not in place here, where pytest sets its filters anew.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")


def encode(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).resize((120, 80)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    result = Image.Exif()
    result[0x0112] = orientation
    return result


VALID: dict[str, bytes] = {
    "jpeg": encode("JPEG", quality=90, exif=exif(6)),
    "jpeg-progressive": encode("JPEG", progressive=True),
    "jpeg-grey": encode("JPEG", "L"),
    "jpeg-cmyk": encode("JPEG", "CMYK"),
    "png": encode("PNG", exif=exif(3)),
    "png-palette": encode("PNG", "P", transparency=bytes(range(200))),
    "webp": encode("WEBP"),
    "gif": encode("GIF", "P"),
    "bmp": encode("BMP"),
    "tiff": encode("TIFF", compression="tiff_lzw"),
}


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size in 67 bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@BOTH
def test_empty(preprocess: Callable[..., Picture]) -> None:
    with pytest.raises(InvalidRequest, match="empty; send"):
        preprocess(b"", SPEC, max_pixels=MAX_PIXELS)


@BOTH
@pytest.mark.parametrize(
    "body", [b"GET / HTTP/1.1", b"\0" * 100, b"%PDF-1.7", b"{}", b"x", encode("PPM"), encode("ICO"), encode("TGA")]
)
def test_unknown_format(preprocess: Callable[..., Picture], body: bytes) -> None:
    with pytest.raises(UnsupportedFormat) as refusal:
        preprocess(body, SPEC, max_pixels=MAX_PIXELS)
    assert all(name in str(refusal.value) for name in FORMATS)


@BOTH
@pytest.mark.parametrize("kind", VALID)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 0.95])
def test_truncated(preprocess: Callable[..., Picture], kind: str, share: float) -> None:
    body = VALID[kind][: int(len(VALID[kind]) * share)]
    with pytest.raises(BrokenPicture, match="truncated or damaged"):
        preprocess(body, SPEC, max_pixels=MAX_PIXELS)


@BOTH
@pytest.mark.parametrize("missing", [8, 40])
def test_the_last_bytes_of_a_jpeg_count(preprocess: Callable[..., Picture], missing: int) -> None:
    with pytest.raises(BrokenPicture, match="truncated"):
        preprocess(VALID["jpeg"][:-missing], SPEC, max_pixels=MAX_PIXELS)


@BOTH
def test_damaged_pixels(preprocess: Callable[..., Picture]) -> None:
    body = bytearray(VALID["png"])
    body[len(body) // 2] ^= 0xFF
    with pytest.raises(BrokenPicture, match="send it again"):
        preprocess(bytes(body), SPEC, max_pixels=MAX_PIXELS)


@BOTH
@pytest.mark.parametrize(("width", "height"), [(2001, 2000), (1, 4_000_001), (20_000, 9_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_by_the_header(preprocess: Callable[..., Picture], width: int, height: int) -> None:
    """The pixels are not in the file: had they been looked for, it would be broken."""
    with pytest.raises(PayloadTooLarge) as refusal:
        preprocess(png_header(width, height), SPEC, max_pixels=MAX_PIXELS)
    assert str(MAX_PIXELS) in str(refusal.value)
    assert str(width * height) in str(refusal.value)


@BOTH
def test_the_limit_itself_is_allowed(preprocess: Callable[..., Picture]) -> None:
    assert preprocess(VALID["png"], SPEC, max_pixels=120 * 80).shape == (224, 224, 3)
    with pytest.raises(PayloadTooLarge, match="120 x 80 = 9600 pixels, the limit is 9599"):
        preprocess(VALID["png"], SPEC, max_pixels=120 * 80 - 1)


def test_a_higher_limit_than_pillows_own_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert preprocess_exact(VALID["png"], SPEC, max_pixels=60_000).shape == (224, 224, 3)


def test_an_ordinary_limit_leaves_pillows_own_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    preprocess_exact(VALID["png"], SPEC, max_pixels=120 * 80)
    assert before == Image.MAX_IMAGE_PIXELS


@BOTH
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.full((4, 4), 0.5, np.float32), id="float"),
        pytest.param(np.full((4, 4), 2**16, np.int32), id="beyond-16-bit"),
        pytest.param(np.full((4, 4), -1, np.int32), id="negative"),
    ],
)
def test_pixels_without_a_white_point(preprocess: Callable[..., Picture], values: np.ndarray[Any, Any]) -> None:
    file = BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    with pytest.raises(UnsupportedFormat, match="save the picture as"):
        preprocess(file.getvalue(), SPEC, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    "error", [OSError("x"), SyntaxError("x"), struct.error("x"), KeyError(12), ZeroDivisionError()]
)
def test_whatever_a_decoder_raises_is_a_broken_picture(error: Exception) -> None:
    with pytest.raises(BrokenPicture) as refusal, refusing_broken():
        raise error
    assert refusal.value.__cause__ is error


def test_no_memory_is_not_the_fault_of_the_file() -> None:
    with pytest.raises(PayloadTooLarge, match="memory"), refusing_broken():
        raise MemoryError


def test_exif_that_cannot_be_parsed_is_no_orientation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> Image.Exif:
        raise struct.error("damaged")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert orientation_of(Image.new("RGB", (1, 1))) == 1


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    body = encode("PNG", exif=exif(orientation))
    upright = preprocess_exact(encode("PNG"), SPEC, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(preprocess_exact(body, SPEC, max_pixels=MAX_PIXELS), upright)


def verdict(preprocess: Callable[..., Picture], body: bytes) -> type[Exception] | None:
    """The class of the refusal, None for a picture; fails on anything else."""
    try:
        picture = preprocess(body, SPEC, max_pixels=MAX_PIXELS)
    except RequestError as refusal:
        return type(refusal)
    assert (picture.dtype, picture.shape) == (np.uint8, (224, 224, 3))
    return None


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file with bytes changed, removed or inserted, or cut short."""
    body = bytearray(VALID[draw(st.sampled_from(sorted(VALID)))])
    for _ in range(draw(st.integers(0, 4))):
        # Headers are where parsers go wrong, so half of the damage is near the beginning.
        at = draw(st.one_of(st.integers(0, min(300, len(body))), st.integers(0, len(body))))
        body[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(body[: len(body) - draw(st.one_of(st.just(0), st.integers(0, len(body))))])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_damaged_files_are_refused_or_served_and_both_modes_agree(body: bytes) -> None:
    assert verdict(preprocess_exact, body) is verdict(preprocess_fast, body)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF"]), st.binary())
def test_random_bytes_are_refused(magic: bytes, body: bytes) -> None:
    for preprocess in (preprocess_exact, preprocess_fast):
        assert verdict(preprocess, magic + body) is not None


def test_threads_do_not_disturb_each_other() -> None:
    def alone() -> Iterator[Picture]:
        return (function(VALID[kind], SPEC, max_pixels=MAX_PIXELS) for kind in VALID for function in functions)

    functions = (preprocess_exact, preprocess_fast)
    expected = list(alone())
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: list(alone()), range(16)):
            for ours, theirs in zip(results, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
