"""From a file's bytes to engine input: uint8 RGB pictures of the size the engine wants. Pure functions, thread-safe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from serve_app.manifest import InputSpec
from serve_app.preprocess.decode import FORMATS
from serve_app.preprocess.exact import preprocess_exact
from serve_app.preprocess.fast import preprocess_fast
from serve_app.preprocess.tensor import from_tensor
from serve_app.types import Input, Picture

Preprocess: TypeAlias = Callable[[Input], Picture]
"""A whole image file, or a tensor made of one -> uint8 (height, width, 3); raises RequestError and nothing else."""

__all__ = ["FORMATS", "Preprocess", "from_tensor", "make_preprocess", "preprocess_exact", "preprocess_fast"]


def make_preprocess(mode: Literal["exact", "fast"], spec: InputSpec, max_pixels: int) -> Preprocess:
    """`preprocess_exact` or `preprocess_fast` with everything but the bytes filled in, and `from_tensor`."""
    function = preprocess_exact if mode == "exact" else preprocess_fast
    return partial(_preprocess, partial(function, spec=spec, max_pixels=max_pixels), spec)


def _preprocess(from_file: Callable[[bytes], Picture], spec: InputSpec, picture: Input) -> Picture:
    return from_file(picture) if isinstance(picture, bytes) else from_tensor(picture, spec)
