"""Finds the engine that the settings name, opens it and warms it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serve_app.errors import EngineError
from serve_app.latency import LatencyTable, measure_latency, table_sizes, warm_up
from serve_app.manifest import MANIFEST_NAME, Manifest, read_manifest
from serve_app.runtime import Runtime, load_runtime
from serve_app.settings import EngineSettings
from serve_app.types import InferencePrecision, Logits, Pictures

AUTO_MODELS = ("resnet18", "efficientnet_lite0")
"""What `model: auto` means: the first of these that was built, and is not a seeded stand-in."""


def find_engine(settings: EngineSettings) -> tuple[Path, Manifest]:
    """The engine folder that the settings name, its files checked against their hashes.

    Raises:
        EngineError: there is none, or it does not fit its manifest; names it and says how to build it.
    """
    variant = f"{settings.backend}-{settings.precision}"
    if settings.model != "auto":
        folder = settings.engines_dir / settings.model / variant
        return folder, _fitting(folder, settings)
    for model in AUTO_MODELS:
        folder = settings.engines_dir / model / variant
        if (folder / MANIFEST_NAME).is_file() and (manifest := _fitting(folder, settings)).trained:
            return folder, manifest
    raise EngineError(
        f"no {variant} engine of {' or '.join(AUTO_MODELS)} in {settings.engines_dir.absolute()}; build one with: "
        f"engine-build build --model auto --backend {settings.backend} --precision {settings.precision}"
    )


def _fitting(folder: Path, settings: EngineSettings) -> Manifest:
    manifest = read_manifest(folder)
    asked = f"{settings.backend}-{settings.precision}"
    if f"{manifest.backend}-{manifest.precision}" != asked or manifest.model != folder.parent.name:
        raise EngineError(
            f"engine folder {folder} holds {manifest.engine_name}, not what its path says; build it again with: "
            f"engine-build build --model {folder.parent.name} --backend {settings.backend} "
            f"--precision {settings.precision} --force"
        )
    return manifest


@dataclass(frozen=True, slots=True)
class Engine:
    """A warmed engine: every batch size up to `max_batch_size` was run in each of `runtimes`.

    Attributes:
        runtimes: copies of the same engine; each serves one caller at a time.
        latency: of one copy while the others rest.
    """

    manifest: Manifest
    runtimes: tuple[Runtime, ...]
    latency: LatencyTable
    max_batch_size: int

    def best_pictures_per_s(self) -> float:
        """Of all copies together."""
        return len(self.runtimes) * self.latency.best_pictures_per_s()


def open_engine(
    settings: EngineSettings,
    *,
    threads: int,
    max_batch_size: int,
    inference_precision: InferencePrecision,
    copies: int = 1,
) -> Engine:
    """Opens, checks and warms the engine that the settings name. Blocks for seconds.

    Args:
        threads: of each copy.
        copies: how many callers run it side by side.

    Raises:
        EngineError: it is missing, does not fit its manifest, does not load, or answers in the wrong shape.
    """
    folder, manifest = find_engine(settings)
    shape = (manifest.input.height, manifest.input.width, 3)

    def checked(runtime: Runtime, pictures: Pictures) -> Logits:
        logits = runtime.infer(pictures)
        if logits.shape != (len(pictures), manifest.num_classes):
            raise EngineError(
                f"engine {manifest.engine_name} at {folder} answers in shape {logits.shape} where its manifest says "
                f"{(len(pictures), manifest.num_classes)}; build it again"
            )
        return logits

    try:
        runtimes = []
        for _ in range(copies):
            runtimes.append(load_runtime(folder, manifest, threads=threads, inference_precision=inference_precision))
            warm_up(partial(checked, runtimes[-1]), shape, max_batch_size)
        latency = measure_latency(partial(checked, runtimes[0]), shape, table_sizes(max_batch_size), repeats=3)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"engine {manifest.engine_name} at {folder} does not run: {error}; build it again") from error
    return Engine(manifest, tuple(runtimes), latency, max_batch_size)


class EngineThread:
    """One runtime behind a thread of its own, so that the event loop goes on while it runs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="inference")

    async def run(self, pictures: Pictures) -> tuple[Logits, float]:
        """uint8 (n, height, width, 3) -> float32 (n, classes), and milliseconds in the engine.

        Shielded: a cancelled caller does not take the buffer from a running engine.
        """
        work = asyncio.get_running_loop().run_in_executor(self._executor, self._timed, pictures)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    def _timed(self, pictures: Pictures) -> tuple[Logits, float]:
        started_s = time.perf_counter()
        logits = self._runtime.infer(pictures)
        return logits, (time.perf_counter() - started_s) * 1e3

    def close(self) -> None:
        """Waits for a running batch, then frees the engine."""
        self._executor.shutdown(wait=True)
        self._runtime.close()
