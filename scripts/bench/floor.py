"""The floor: what decoding and the engine cost alone, on one core, and with every core busy at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from scripts.bench.peers._decode import MAX_PIXELS
from scripts.bench.peers._decode import decode as decode_own
from serve_app.manifest import read_manifest
from serve_app.preprocess import make_preprocess
from serve_app.runtime import load_runtime

SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Pieces:
    """CPU milliseconds per picture on one core; medians.

    Attributes:
        decode_ms: by decoder: `exact`, `fast`, and the peers' own.
        inference_ms: by batch size, one thread.
        together_per_s: pictures a second of `cores` processes that only decode (`fast`) and infer, by batch size.
    """

    cores: int
    decode_ms: dict[str, float]
    inference_ms: dict[int, float]
    together_per_s: dict[int, float]

    def floor_ms(self, mode: str = "fast") -> float:
        """Core-milliseconds per picture: decoding and the best batch size, each alone."""
        return self.decode_ms[mode] + min(self.inference_ms.values())

    def floor_per_s(self, mode: str = "fast") -> float:
        """Pictures per second if all cores did nothing else, and did not disturb each other."""
        return self.cores * 1e3 / self.floor_ms(mode)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "floor_ms": self.floor_ms(), "floor_per_s": self.floor_per_s()}


def measure(engine_dir: Path, picture: bytes, cores: int | None = None, seconds: float = 2.0) -> Pieces:
    """Measures for about a minute.

    Args:
        engine_dir: an OpenVINO engine.
        picture: a JPEG file.
        cores: processes of the measurement together; all by default.
        seconds: of each measurement.
    """
    cores = cores or os.cpu_count() or 1
    manifest = read_manifest(engine_dir)
    decoders: dict[str, Callable[[bytes], Any]] = {
        mode: make_preprocess(mode, manifest.input, MAX_PIXELS) for mode in ("exact", "fast")
    }
    decoders["peers' own"] = decode_own
    runtime = load_runtime(engine_dir, manifest, threads=1, inference_precision="auto")
    shape = (manifest.input.height, manifest.input.width, 3)
    pictures = np.random.default_rng(0).integers(0, 256, (max(SIZES), *shape), np.uint8)
    return Pieces(
        cores,
        {name: _cpu_ms(partial(decode, picture), seconds) for name, decode in decoders.items()},
        {size: _cpu_ms(partial(runtime.infer, pictures[:size]), seconds) / size for size in SIZES},
        {size: _together(engine_dir, picture, cores, size, seconds) for size in SIZES},
    )


def _cpu_ms(work: Callable[[], object], seconds: float) -> float:
    for _ in range(3):
        work()
    spent_ms = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        began_s = time.process_time()
        work()
        spent_ms.append((time.process_time() - began_s) * 1e3)
    return median(spent_ms)


_once: Callable[[], object]
"""In a child: decodes and infers one batch."""


def _together(engine_dir: Path, picture: bytes, cores: int, size: int, seconds: float) -> float:
    with ProcessPoolExecutor(
        cores, get_context("spawn"), initializer=_prepare, initargs=(engine_dir, picture, size)
    ) as pool:
        list(pool.map(_batches_between, [0.0] * cores, [0.0] * cores))  # every child is up
        begin_s = time.time() + 3.0  # all wait for it: loading an engine beside another takes its time
        counts = pool.map(_batches_between, [begin_s] * cores, [begin_s + seconds] * cores)
        return sum(count * size / taken_s for count, taken_s in counts)


def _prepare(engine_dir: Path, picture: bytes, size: int) -> None:
    global _once
    manifest = read_manifest(engine_dir)
    runtime = load_runtime(engine_dir, manifest, threads=1, inference_precision="auto")
    decode = make_preprocess("fast", manifest.input, MAX_PIXELS)
    batch = np.empty((size, manifest.input.height, manifest.input.width, 3), np.uint8)

    def once() -> None:
        for slot in batch:
            slot[:] = decode(picture)
        runtime.infer(batch)

    once()
    _once = once


def _batches_between(begin_s: float, end_s: float) -> tuple[int, float]:
    time.sleep(max(0.0, begin_s - time.time()))
    began_s, done = time.time(), 0
    while time.time() < end_s:
        _once()
        done += 1
    return done, max(time.time() - began_s, 1e-9)
