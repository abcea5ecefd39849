"""From the normalised tensor that a client made of a picture, back to the bytes of the picture."""

from __future__ import annotations

import numpy as np

from serve_app.errors import BrokenPicture
from serve_app.manifest import InputSpec
from serve_app.types import Picture, Tensor


def from_tensor(tensor: Tensor, spec: InputSpec) -> Picture:
    """Undoes torchvision's `ToTensor` and `Normalize`: engines normalise by themselves, from bytes.

    Exact for every tensor that was made of 8-bit pixels; values between two of them are rounded, values beyond black
    and white are clipped.

    Args:
        tensor: float32 (3, height, width), RGB, (pixel / 255 - mean) / std.
        spec: mean, std and size.

    Returns:
        uint8 (height, width, 3).

    Raises:
        BrokenPicture: another shape, or values that are not numbers.
    """
    if tensor.shape != (3, spec.height, spec.width):
        raise BrokenPicture(f"a tensor of shape {tensor.shape}; send (3, {spec.height}, {spec.width})")
    scale = np.asarray(spec.std, np.float32)[:, None, None] * np.float32(255)
    offset = np.asarray(spec.mean, np.float32)[:, None, None] * np.float32(255)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told below
        pixels = tensor * scale
        pixels += offset
    if not np.isfinite(pixels).all():
        raise BrokenPicture("the tensor holds values that are not finite numbers; check how it was normalised")
    np.rint(pixels, out=pixels)
    np.clip(pixels, 0, 255, out=pixels)
    return np.ascontiguousarray(pixels.astype(np.uint8).transpose(1, 2, 0))
