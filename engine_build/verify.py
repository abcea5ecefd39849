"""Holds an engine against torch eager on real pictures, through the code that serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine_build.errors import PicturesUnusable, VerificationFailed
from engine_build.pictures import Item, PictureSet
from engine_build.progress import bar
from engine_build.reference import Reference
from serve_app.latency import measure_latency, table_sizes
from serve_app.manifest import LEAST_AGREEMENT, Accuracy, Manifest, Verification
from serve_app.runtime import Runtime, available_cores, load_runtime
from serve_app.types import InferencePrecision, Logits, Picture

BATCH = 8
FP32_TOLERANCE = 1e-2
"""Largest logit error of an fp32 engine, as a share of the largest logit (of 1, where that is larger)."""
TIE = 1e-4
"""Two logits of the reference that differ by less, on the same scale, have no order: fp32 sums differ by as much."""


@dataclass(slots=True)
class Comparison:
    """Running totals over batches of reference and engine logits."""

    pictures: int = 0
    agreed: int = 0
    disagreed_clearly: int = 0
    max_error: float = 0.0
    max_logit: float = 0.0
    labelled: int = 0
    top1: int = 0
    top3: int = 0
    reference_top1: int = 0
    unreadable: list[str] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        return self.agreed / self.pictures

    @property
    def scale(self) -> float:
        """What errors are measured against."""
        return max(1.0, self.max_logit)

    def add(self, expected: Logits, actual: Logits, class_ids: list[int | None]) -> None:
        """One batch; logits (n, classes)."""
        rows = np.arange(len(expected))
        first, actual_first = expected.argmax(1), actual.argmax(1)
        gap = expected[rows, first] - expected[rows, actual_first]
        self.max_logit = max(self.max_logit, float(np.abs(expected).max()))
        # np.maximum keeps a NaN of the engine, which max() would drop.
        self.max_error = float(np.maximum(self.max_error, np.abs(expected - actual).max()))
        self.pictures += len(expected)
        self.agreed += int((first == actual_first).sum())
        self.disagreed_clearly += int((gap > TIE * self.scale).sum())
        self._score(expected, actual, class_ids)

    def accuracy(self) -> Accuracy | None:
        """None without labelled pictures."""
        if not self.labelled:
            return None
        return Accuracy(
            pictures=self.labelled,
            top1=self.top1 / self.labelled,
            top3=self.top3 / self.labelled,
            reference_top1=self.reference_top1 / self.labelled,
        )

    def _score(self, expected: Logits, actual: Logits, class_ids: list[int | None]) -> None:
        for row, class_id in enumerate(class_ids):
            if class_id is not None:
                best: NDArray[np.intp] = np.argsort(-actual[row], kind="stable")[:3]
                self.labelled += 1
                self.top1 += int(best[0] == class_id)
                self.top3 += int(class_id in best)
                self.reference_top1 += int(expected[row].argmax() == class_id)


def verify(
    folder: Path,
    manifest: Manifest,
    reference: Reference,
    pictures: PictureSet,
    *,
    max_batch: int,
    runtime: Runtime | None = None,
) -> Verification:
    """Compares the engine in `folder` with the reference and measures its latency.

    Args:
        max_batch: largest batch size of the latency table.
        runtime: runs the engine instead of what serves it, which this machine lacks; its latency tells nothing then.

    Raises:
        VerificationFailed: the engine disagrees.
        EngineError: it does not load.
    """
    threads = available_cores()
    precision: InferencePrecision = "fp32" if manifest.precision == "fp32" else "auto"
    serving = runtime or load_runtime(folder, manifest, threads=threads, inference_precision=precision)
    latency_ms: dict[int, float] = {}
    try:
        comparison = compare(reference, serving, pictures, manifest)
        check(comparison, manifest)
        shape = (manifest.input.height, manifest.input.width, 3)
        if runtime is None:
            latency_ms = measure_latency(serving.infer, shape, table_sizes(max_batch), repeats=5).as_dict()
    finally:
        serving.close()
    return Verification(
        pictures=comparison.pictures,
        picture_source=pictures.description,
        top1_agreement=comparison.agreement,
        max_logit_error=comparison.max_error,
        accuracy=comparison.accuracy(),
        latency_ms={size: round(batch_ms, 3) for size, batch_ms in latency_ms.items()},
        threads=threads,
    )


def compare(reference: Reference, runtime: Runtime, pictures: PictureSet, manifest: Manifest) -> Comparison:
    """Runs both over all pictures.

    Raises:
        PicturesUnusable: none can be read.
        VerificationFailed: the engine's output is not one logit per label.
    """
    comparison = Comparison()
    batch: list[tuple[Item, Picture]] = []
    for item, picture in bar(pictures.read(manifest.input), total=len(pictures), title="comparing"):
        if picture is None:
            comparison.unreadable.append(item.path.name)
        else:
            batch.append((item, picture))
        if len(batch) == BATCH:
            _compare_batch(comparison, reference, runtime, batch, manifest)
            batch = []
    if batch:
        _compare_batch(comparison, reference, runtime, batch, manifest)
    if not comparison.pictures:
        raise PicturesUnusable(f"none of the pictures in {pictures.description} can be read; pass --pictures DIR")
    return comparison


def check(comparison: Comparison, manifest: Manifest) -> None:
    """Passes, or says by how much the engine disagrees.

    fp32 must give every picture the class that torch eager gives it, but for ties; fp16 and int8 of trained weights
    must do so for most; of random weights it is only reported.

    Raises:
        VerificationFailed: it does not.
    """
    if manifest.precision == "fp32":
        limit = FP32_TOLERANCE * comparison.scale
        # `not <=`: a NaN error must fail.
        fails = comparison.disagreed_clearly > 0 or not comparison.max_error <= limit
        wanted = f"every picture and a logit error of at most {limit:.2g}"
    else:
        least = LEAST_AGREEMENT[manifest.precision]
        fails = (manifest.trained and comparison.agreement < least) or not np.isfinite(comparison.max_error)
        wanted = f"at least {least:.0%} of the pictures"
    if fails:
        raise VerificationFailed(
            f"engine {manifest.engine_name} disagrees with torch eager: same first class for {comparison.agreed} of "
            f"{comparison.pictures} pictures, largest logit error {comparison.max_error:.2g}; wanted {wanted}; "
            "build another backend or precision, or calibrate int8 with more pictures"
        )


def _compare_batch(
    comparison: Comparison,
    reference: Reference,
    runtime: Runtime,
    batch: list[tuple[Item, Picture]],
    manifest: Manifest,
) -> None:
    pictures = np.stack([picture for _, picture in batch])
    expected, actual = reference.infer(pictures), runtime.infer(pictures)
    if actual.shape != (len(batch), manifest.num_classes):
        raise VerificationFailed(
            f"engine {manifest.engine_name} answers with shape {actual.shape} where {len(batch)} pictures of "
            f"{manifest.num_classes} classes are expected; check --arch and --labels"
        )
    comparison.add(expected, actual, [item.class_id for item, _ in batch])
