"""How long the engine takes for each batch size: measured when it is warmed, read when waits are estimated."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from serve_app.types import Logits, Pictures

Infer = Callable[[Pictures], Logits]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Median milliseconds per batch, for some batch sizes in ascending order."""

    sizes: tuple[int, ...]
    batch_ms: tuple[float, ...]

    @classmethod
    def of(cls, latency_ms: Mapping[int, float]) -> LatencyTable:
        """From batch size -> milliseconds per batch; at least one entry."""
        if not latency_ms:
            raise ValueError("a latency table needs at least one batch size")
        sizes = tuple(sorted(latency_ms))
        return cls(sizes, tuple(latency_ms[size] for size in sizes))

    def as_dict(self) -> dict[int, float]:
        return dict(zip(self.sizes, self.batch_ms, strict=True))

    def estimate_ms(self, batch_size: int) -> float:
        """Milliseconds for a batch of `batch_size`: between measured sizes on the line, beyond them in proportion."""
        at = bisect_left(self.sizes, batch_size)
        if at == len(self.sizes):
            return self.batch_ms[-1] * batch_size / self.sizes[-1]
        if self.sizes[at] == batch_size or at == 0:
            return self.batch_ms[at]
        low, high = self.sizes[at - 1], self.sizes[at]
        share = (batch_size - low) / (high - low)
        return self.batch_ms[at - 1] + share * (self.batch_ms[at] - self.batch_ms[at - 1])

    def best_pictures_per_s(self) -> float:
        """Highest rate of any measured batch size."""
        return max(1e3 * size / ms for size, ms in zip(self.sizes, self.batch_ms, strict=True))

    def knee(self, tolerance: float = 0.08) -> int:
        """Smallest measured batch size whose time per picture is within `tolerance` of the best: larger batches
        make every picture in them wait longer for almost nothing."""
        per_picture_ms = {size: ms / size for size, ms in zip(self.sizes, self.batch_ms, strict=True)}
        bound_ms = min(per_picture_ms.values()) * (1 + tolerance)
        return next(size for size, ms in per_picture_ms.items() if ms <= bound_ms)


def table_sizes(max_batch_size: int) -> list[int]:
    """Batch sizes worth measuring: powers of two up to and always including the largest."""
    sizes = [1 << power for power in range(max_batch_size.bit_length()) if 1 << power <= max_batch_size]
    return sizes if sizes[-1] == max_batch_size else [*sizes, max_batch_size]


def warm_up(infer: Infer, shape: tuple[int, int, int], max_batch_size: int) -> None:
    """Runs every batch size from the largest down to 1 once, so that no request is the first of its size.

    Engines prepare kernels and memory for a shape when they first see it. The largest goes first, so that memory
    is reserved once.
    """
    pictures = np.zeros((max_batch_size, *shape), np.uint8)
    for size in range(max_batch_size, 0, -1):
        infer(pictures[:size])


def measure_latency(
    infer: Infer,
    shape: tuple[int, int, int],
    sizes: Iterable[int],
    *,
    repeats: int = 3,
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """Median of `repeats` runs of each size, after one that does not count; pictures are seeded noise.

    Args:
        infer: uint8 (n, *shape) -> logits.
        shape: height, width, channels of one picture.
    """
    sizes = sorted(sizes)
    pictures = np.random.default_rng(0).integers(0, 256, (sizes[-1], *shape), np.uint8)
    return LatencyTable.of({size: _median_ms(infer, pictures[:size], repeats, clock) for size in sizes})


def _median_ms(infer: Infer, pictures: Pictures, repeats: int, clock: Clock) -> float:
    infer(pictures)
    times_ms = []
    for _ in range(repeats):
        started_s = clock()
        infer(pictures)
        times_ms.append((clock() - started_s) * 1e3)
    return median(times_ms)


def padded_sizes(table: LatencyTable, max_batch_size: int, gain: float = 0.1) -> list[int]:
    """The batch size that n pictures should run in, for n from 0 to `max_batch_size`: n itself, or a measured larger
    size that takes less time by `gain`. Engines are tuned for some sizes, and may be slower at odd ones in between.
    """
    sizes = list(range(max_batch_size + 1))
    for n in range(1, max_batch_size + 1):
        larger = [(ms, size) for size, ms in table.as_dict().items() if n < size <= max_batch_size]
        if larger and min(larger)[0] < table.estimate_ms(n) * (1 - gain):
            sizes[n] = min(larger)[1]
    return sizes
