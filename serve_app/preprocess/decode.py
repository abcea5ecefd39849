"""From the bytes of a file to an upright RGB picture, or to a refusal that says what to do.

What becomes of each kind of picture; `convert` is Pillow's `convert("RGB")`, which torchvision's own loader uses:

| stored as                               | becomes                                                               |
|-----------------------------------------|-----------------------------------------------------------------------|
| RGB, 8 or 16 bits a channel             | as is (Pillow keeps the high byte)                                    |
| grey, 1-bit, palette, CMYK, YCbCr, LAB  | `convert`                                                             |
| with alpha (RGBA, LA, PA, transparency) | `convert`: alpha is dropped, as it was when the models were trained   |
| 16-bit grey (I;16, I;16B)               | high byte, as for 16-bit RGB; `convert` would clip all but black to white |
| 32-bit integer grey (I)                 | as 16-bit grey if all values are in 0..65535, else UnsupportedFormat  |
| floating point (F), premultiplied grey  | UnsupportedFormat: no white point is defined                          |
| EXIF (or XMP) orientation               | applied first: phones store pictures sideways; unreadable EXIF: upright |
| several frames or pages                 | the first                                                             |
| ICC profile                             | ignored, as torchvision does                                          |
| cut off                                 | BrokenPicture, unless all pixels of the first frame are there         |
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np

# Plugins are imported by name: Pillow would otherwise load all of its forty at the first unusual file.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from serve_app.errors import BrokenPicture, InvalidRequest, PayloadTooLarge, RequestError, UnsupportedFormat

FORMATS: tuple[str, ...] = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    GifImagePlugin.GifImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
    *((AvifImagePlugin.AvifImageFile.format,) if AvifImagePlugin.SUPPORTED else ()),
)
"""Names, as Pillow spells them, of the formats that are opened at all; the likeliest first."""

UPRIGHT = 1
TRANSPOSES: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what sets the picture upright; 1 needs nothing."""

# Pillow warns about odd metadata with texts that hold numbers from the file: every such file would print a line and
# grow Python's registry of seen warnings. What matters is an exception or a refusal below.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_picture(body: bytes, max_pixels: int) -> Image.Image:
    """Reads the header only; the pixels are decoded by `load_rgb`.

    Raises:
        InvalidRequest: `body` is empty.
        UnsupportedFormat: none of `FORMATS`.
        BrokenPicture: begins like one of them, but the header does not parse.
        PayloadTooLarge: width x height is above `max_pixels`.
    """
    if not body:
        raise InvalidRequest("the picture is empty; send the bytes of an image file")
    _raise_pillow_limit(max_pixels)
    with refusing_broken():
        try:
            image = Image.open(BytesIO(body), formats=FORMATS)
        except UnidentifiedImageError:
            raise _unidentified(body) from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PayloadTooLarge(f"{error}; the limit here is {max_pixels} pixels, send a smaller picture") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise BrokenPicture(f"the picture is {width} x {height} pixels; send one with at least one pixel")
    if width * height > max_pixels:
        raise PayloadTooLarge(
            f"the picture has {width} x {height} = {width * height} pixels, the limit is {max_pixels}; "
            "send a smaller one"
        )
    return image


def load_rgb(image: Image.Image) -> Image.Image:
    """Decodes what `open_picture` opened: upright, mode RGB.

    Raises:
        BrokenPicture: truncated or damaged.
        UnsupportedFormat: a pixel type without a defined conversion.
    """
    with refusing_broken():
        image.load()
    method = TRANSPOSES.get(orientation_of(image))
    return to_rgb(image if method is None else image.transpose(method))


def to_rgb(image: Image.Image) -> Image.Image:
    """Mode RGB by the table above; `image` is loaded and upright.

    Raises:
        UnsupportedFormat: a pixel type without a defined conversion.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        image = _high_byte(image)
    # Pillow warns about a palette's transparency, which is about to be dropped with the alpha.
    image.info.pop("transparency", None)
    try:
        if image.mode in ("F", "La"):
            raise ValueError("no white point is defined")
        return image.convert("RGB")
    except ValueError as error:
        raise UnsupportedFormat(
            f"pixels of type {image.mode} are not served ({error}); save the picture as 8-bit RGB or grey"
        ) from None


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8 from the metadata read so far; 1 where there is none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # EXIF is a TIFF file inside the file; its parser can raise anything, and the pixels are fine
        return UPRIGHT
    return value if isinstance(value, int) and value in TRANSPOSES else UPRIGHT


@contextmanager
def refusing_broken() -> Iterator[None]:
    """Turns whatever a decoder or resampler raises into a RequestError: bytes of a client never end in a 500."""
    try:
        yield
    except RequestError:
        raise
    except MemoryError as error:
        raise PayloadTooLarge("the picture needs more memory than there is; send a smaller one") from error
    except Exception as error:  # struct.error, SyntaxError, KeyError, ...: parsers of hostile bytes raise anything
        reason = (str(error) or type(error).__name__)[:200]
        raise BrokenPicture(
            f"the picture is truncated or damaged ({reason}); check the file and send it again"
        ) from error


def _high_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
        raise UnsupportedFormat("32-bit grey is served for values 0..65535 only; save the picture as 8 or 16-bit grey")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _raise_pillow_limit(max_pixels: int) -> None:
    """Keeps Pillow's own limit, which also guards sizes found later in a file, from undercutting a higher one here."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def _unidentified(body: bytes) -> RequestError:
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    if any(accept is not None and accept(body[:16]) is True for accept in accepts):
        return BrokenPicture("the picture's header is truncated or damaged; check the file and send it again")
    return UnsupportedFormat(f"not a picture format that is served; send one of {', '.join(FORMATS)}")
