"""Value types that cross a border inside the service, and the array types with their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]
"""One preprocessed picture: uint8, shape (height, width, 3), RGB, ready for the engine."""

Tensor: TypeAlias = NDArray[np.float32]
"""One picture that a client preprocessed: float32, shape (3, height, width), RGB, normalised as the engine's manifest
says."""

Input: TypeAlias = bytes | Tensor
"""What a client may send of a picture: the file, or the tensor that it made of it."""

Pictures: TypeAlias = NDArray[np.uint8]
"""Several of them: uint8, shape (n, height, width, 3), C-contiguous."""

Logits: TypeAlias = NDArray[np.float32]
"""Engine output before softmax: float32, shape (n, classes), or (classes,) for one picture."""

InferencePrecision: TypeAlias = Literal["auto", "fp32", "bf16"]
"""What an engine stored in fp32 computes in; `auto` leaves it to the runtime."""


Priority: TypeAlias = Literal["interactive", "batch"]
"""Interactive pictures go before batch ones, which are not starved: see `queueing`."""

SentBecause: TypeAlias = Literal["full", "deadline", "idle"]
"""Why a batch was sent: it could hold no more, it had waited long enough, or nothing more was there to wait for."""


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
class Chunk:
    """Pictures that one sender hands to a classifier together, and what it tells of the demand behind them.

    Attributes:
        pictures: uint8 (n, height, width, 3).
        remaining_s: float32 (n,), seconds each of them still has; not a time of day, since clocks differ.
        behind_pictures: this chunk's share of the pictures that wait at the sender because its chunks are in flight.
        offered_pictures: pictures that came to the sender since its last chunk, those it refused among them.
        sender: names the replica it comes from.
        traceparents: of those pictures whose traces are recorded; see `tracing`.
    """

    pictures: Pictures
    remaining_s: NDArray[np.float32]
    behind_pictures: float = 0.0
    offered_pictures: int = 0
    sender: str = ""
    traceparents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkScores:
    """What a classifier returns for one chunk of n pictures.

    Attributes:
        logits: float32 (n, classes), row i belongs to picture i of the chunk; of a late picture it means nothing.
        inference_ms: time inside the engine for the batch the chunk was part of.
        batch_size: how many pictures that batch had.
        late: bool (n,), pictures whose time was up before the engine ran; None where there were none.
        max_batch_size: most pictures the classifier takes at once at present, None where it does not say.
        replica: names the classifier replica that ran it.
        senders: how many senders that replica hears of late.
        version: of the engine.
    """

    logits: Logits
    inference_ms: float
    batch_size: int
    late: NDArray[np.bool_] | None = None
    max_batch_size: int | None = None
    replica: str = ""
    senders: int = 1
    version: int = 1


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a picture spent by stage; `queue` is all waiting, before decode and before the engine."""

    queue: float
    preprocess: float
    inference: float


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """Milliseconds of one batch on the GPU, by the GPU's own clock; `pictures` of `batch_size` were not padding."""

    pictures: int
    batch_size: int
    copy_in_ms: float
    run_ms: float
    copy_out_ms: float


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes: taken by this engine for buffers and for work space, and free and total on the whole GPU."""

    buffers: int
    engine: int
    free: int
    total: int
