"""Stand-ins with programmable behaviour, for tests of what surrounds an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from serve_app.batching import Gatherer
from serve_app.manifest import InputSpec, Manifest, Weights
from serve_app.split import DecodePool, Split
from serve_app.types import Chunk, ChunkScores, Picture, Pictures

SHAPE = (4, 4, 3)
CLASSES = 5


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def scores_of(pictures: Pictures, classes: int = CLASSES) -> np.ndarray:
    """What the fakes answer: the class of a picture is its first byte, modulo the classes."""
    logits = np.zeros((len(pictures), classes), np.float32)
    logits[np.arange(len(pictures)), pictures.reshape(len(pictures), -1)[:, 0] % classes] = 9.0
    return logits


class FakeClassifier:
    """Answers by `scores_of`; while `gate` is closed, chunks wait. `errors` are raised first, one per chunk."""

    def __init__(self, errors: Sequence[Exception] = ()) -> None:
        self.chunks: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors = list(errors)
        self.told: list[Chunk] = []
        self.sent: list[list[int]] = []
        self.late: np.ndarray | None = None
        self.max_batch_size: int | None = None
        self.replicas = ["c1"]
        self.senders = 1

    async def classify(self, chunk: Chunk) -> ChunkScores:
        self.chunks.append(len(chunk.pictures))
        self.told.append(chunk)
        self.sent.append([int(one.flat[0]) for one in chunk.pictures])
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        scores = scores_of(chunk.pictures)
        replica = self.replicas[len(self.chunks) % len(self.replicas)]
        return ChunkScores(scores, 1.5, len(scores), self.late, self.max_batch_size, replica, self.senders)


def split(
    classifier: FakeClassifier, decode: Callable[[bytes], Picture], *, threads: int = 2, max_chunk: int = 4
) -> Split:
    """The stages of split placement, in front of a fake classifier of 4x4 pictures."""
    return Split(DecodePool(decode, threads), Gatherer(classifier, SHAPE, max_chunk=max_chunk, max_in_flight=1))


def picture(value: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.full(shape, value, np.uint8)


def manifest(**changes: object) -> Manifest:
    """A valid manifest of five classes and 4x4 pictures."""
    fields: dict[str, object] = {
        "model": "fake",
        "architecture": "fake",
        "backend": "openvino",
        "precision": "fp32",
        "trained": True,
        "labels": tuple(f"label {index}" for index in range(CLASSES)),
        "input": InputSpec(height=4, width=4, resize_size=4),
        "weights": Weights(source="file", name="fake.pt", sha256="0" * 64),
        "artifact": "model.xml",
        "files": {"model.xml": "0" * 64},
        "tools": {},
        "created_utc": "2026-01-01T00:00:00Z",
    }
    return Manifest.model_validate(fields | changes)
