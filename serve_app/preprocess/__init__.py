"""From a file's bytes to engine input: uint8 RGB pictures of the size the engine wants. Pure functions, thread-safe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from serve_app.manifest import InputSpec
from serve_app.preprocess.decode import FORMATS
from serve_app.preprocess.exact import preprocess_exact
from serve_app.preprocess.fast import preprocess_fast
from serve_app.types import Picture

Preprocess: TypeAlias = Callable[[bytes], Picture]
"""A whole image file -> uint8 (height, width, 3); raises RequestError and nothing else."""

__all__ = ["FORMATS", "Preprocess", "make_preprocess", "preprocess_exact", "preprocess_fast"]


def make_preprocess(mode: Literal["exact", "fast"], spec: InputSpec, max_pixels: int) -> Preprocess:
    """`preprocess_exact` or `preprocess_fast` with everything but the bytes filled in."""
    function = preprocess_exact if mode == "exact" else preprocess_fast
    return partial(function, spec=spec, max_pixels=max_pixels)
