"""Pictures whose logits are known: what an engine must answer before it may serve.

`engine-build` runs the engine's ONNX on a CPU and keeps pictures and logits beside it. Whatever runs later, on
whatever GPU, is held against them when it starts.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.errors import EngineError
from serve_app.latency import Infer
from serve_app.manifest import Precision
from serve_app.types import Logits, Pictures

GOLDEN_NAME = "golden.npz"
MEAN_ERROR = {"fp32": 2e-3, "fp16": 1e-2, "int8": 5e-2}
"""Largest mean difference of a logit, as a share of the largest logit: kernels differ in the order of their sums, and
int8 ones may round a value to the next step."""
AGREEMENT = {"fp32": 1.0, "fp16": 1.0, "int8": 0.8}
"""Smallest share of pictures with the same first class; a class whose logit is nearly the first one's counts as it."""
TIE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2}
"""How near that is, as a share of the largest logit."""


@dataclass(frozen=True, slots=True)
class Golden:
    """uint8 (n, height, width, 3), and the float32 (n, classes) that belong to them."""

    pictures: Pictures
    logits: Logits


@dataclass(frozen=True, slots=True)
class Difference:
    """How far logits are from the golden ones.

    Attributes:
        agreement: share (0..1) of pictures with the same first class, ties included.
        mean_error, max_error: of a logit; `scale` is the largest golden logit, at least 1.
    """

    agreement: float
    mean_error: float
    max_error: float
    scale: float


def write_golden(folder: Path, golden: Golden) -> None:
    """Writes `golden.npz` into `folder`."""
    np.savez_compressed(folder / GOLDEN_NAME, pictures=golden.pictures, logits=golden.logits)


def read_golden(folder: Path) -> Golden:
    """`golden.npz` of an engine folder.

    Raises:
        EngineError: it is missing, or not such a file.
    """
    path = folder / GOLDEN_NAME
    try:
        # Opened here: numpy leaves its own file open where the archive is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return Golden(content["pictures"], content["logits"])
    # What numpy raises for what is no archive, for one cut short, and for a lone array.
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise EngineError(f"{path} cannot be read ({error}); build the engine again") from None


def measured(golden: Golden, infer: Infer, precision: Precision, max_batch_size: int) -> Difference:
    """Of an engine that takes at most `max_batch_size` pictures at once.

    Raises:
        ValueError: it answers in another shape than the golden logits.
    """
    starts = range(0, len(golden.pictures), max_batch_size)
    logits = np.concatenate([infer(golden.pictures[at : at + max_batch_size]) for at in starts])
    return difference(golden, logits, precision)


def difference(golden: Golden, logits: Logits, precision: Precision) -> Difference:
    """Of `logits` (n, classes), row i of which belongs to golden picture i.

    Raises:
        ValueError: they are of another shape than the golden ones.
    """
    expected = golden.logits
    if logits.shape != expected.shape:
        raise ValueError(f"it answers in shape {logits.shape}, and {GOLDEN_NAME} says {expected.shape}")
    rows = np.arange(len(expected))
    scale = max(1.0, float(np.abs(expected).max()))
    with np.errstate(invalid="ignore"):  # what is not a number is for `problem` to say
        gap = expected.max(axis=1) - expected[rows, logits.argmax(axis=1)]
        error = np.abs(expected - logits)
    agreement = float((gap <= TIE[precision] * scale).mean())
    return Difference(agreement, float(error.mean()), float(error.max()), scale)


def problem(found: Difference, precision: Precision) -> str | None:
    """What is wrong with an engine that differs so; None where nothing is."""
    most = MEAN_ERROR[precision] * found.scale
    # `not <`: NaN must fail, and so must infinity, which golden logits themselves may hold.
    if not found.mean_error <= most < math.inf:
        return f"its logits differ from the ONNX's by {found.mean_error:.3g} on average, at most {most:.3g} is allowed"
    if found.agreement < AGREEMENT[precision]:
        return (
            f"its first class is the ONNX's for {found.agreement:.0%} of the pictures, not {AGREEMENT[precision]:.0%}"
        )
    return None
