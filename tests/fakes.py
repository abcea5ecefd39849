"""Stand-ins with programmable behaviour, for tests of what surrounds an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serve_app.batching import Gatherer
from serve_app.errors import fault_of_codes
from serve_app.manifest import InputSpec, Manifest, Weights
from serve_app.metrics import NoMetrics
from serve_app.pipeline import Pipeline, Serving
from serve_app.preprocess import make_preprocess
from serve_app.request_log import RequestLog
from serve_app.settings import parse_settings
from serve_app.split import DecodePool, Split
from serve_app.tally import ModelReport, ModelTotals, ReplicaReport, Replicas, Tally, live_view, totals_of
from serve_app.types import Chunk, ChunkScores, Input, Picture, Pictures, Timing

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


class FakeService:
    """What the routes need of a replica, in front of a fake classifier; its models are `names`, all alike.

    Args:
        classifier: answers.
        names: public names, the default first.
        limits: of `settings.LimitSettings`.
    """

    def __init__(self, classifier: FakeClassifier, names: Sequence[str] = ("fake",), **limits: int) -> None:
        self.is_ready = True
        self.request_log = RequestLog("none")
        self.metrics = {name: TallyMetrics() for name in names}
        settings = parse_settings({"limits": {"max_body_bytes": 5000, "max_pixels": 10_000, **limits}})
        decode = make_preprocess("exact", manifest().input, 10_000)
        self.models = {
            name: Pipeline(
                name,
                settings,
                Serving(manifest(trained=False), split(classifier, decode, threads=1), engine_pictures_per_s=100),
                metrics=self.metrics[name],
            )
            for name in names
        }

    async def ready(self, model: str | None = None) -> bool:
        return self.is_ready

    def describe(self) -> list[dict[str, Any]]:
        return [{"name": name} for name in self.models]

    async def totals(self) -> Mapping[str, ModelTotals]:
        return totals_of([self._report()])

    async def live(self) -> dict[str, Any]:
        return live_view([self._report()], {"Preprocessor": Replicas(1, 1)}, fault_of_codes(), 0.0)

    async def metrics_addresses(self) -> list[str]:
        return []

    def _report(self) -> ReplicaReport:
        models = {
            name: ModelReport(one.tally.totals(), one.tally.recent(), version=1) for name, one in self.metrics.items()
        }
        return ReplicaReport("Preprocessor", 0.0, models)


class TallyMetrics(NoMetrics):
    """Keeps a tally, and tells nobody."""

    def __init__(self) -> None:
        self.tally = Tally()

    def answered(self, timing: Timing) -> None:
        self.tally.answered(timing)

    def refused(self, code: str) -> None:
        self.tally.failed(code)


def split(
    classifier: FakeClassifier, decode: Callable[[Input], Picture], *, threads: int = 2, max_chunk: int = 4
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
