"""Value types that cross a border inside the service, and the array types with their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]
"""One preprocessed picture: uint8, shape (height, width, 3), RGB, ready for the engine."""

Pictures: TypeAlias = NDArray[np.uint8]
"""Several of them: uint8, shape (n, height, width, 3), C-contiguous."""

Logits: TypeAlias = NDArray[np.float32]
"""Engine output before softmax: float32, shape (n, classes), or (classes,) for one picture."""

InferencePrecision: TypeAlias = Literal["auto", "fp32", "bf16"]
"""What an engine stored in fp32 computes in; `auto` leaves it to the runtime."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of a top-k answer; `score` is the softmax probability in 0..1."""

    class_id: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """The likeliest classes of one picture, best first, and their softmax probabilities."""

    class_ids: list[int]
    scores: list[float]


@dataclass(frozen=True, slots=True)
class ChunkScores:
    """What a classifier returns for one chunk of n pictures.

    Attributes:
        logits: float32 (n, classes), row i belongs to picture i of the chunk.
        inference_ms: time inside the engine for the batch the chunk was part of.
        batch_size: how many pictures that batch had.
    """

    logits: Logits
    inference_ms: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a picture spent by stage; `queue` is all waiting, before decode and before the engine."""

    queue: float
    preprocess: float
    inference: float
