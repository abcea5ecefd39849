"""Finds the engine that the settings name, opens it and warms it."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from serve_app.errors import EngineError, GpuFailed, InferenceFailed
from serve_app.golden import GOLDEN_NAME, measured, problem, read_golden
from serve_app.latency import Clock, LatencyTable, measure_latency, table_sizes, warm_up
from serve_app.manifest import LEAST_AGREEMENT, MANIFEST_NAME, Accuracy, Manifest, engine_folder, read_manifest
from serve_app.runtime import NO_GPU, GpuOptions, OverlappingRuntime, Runtime, load_runtime
from serve_app.settings import EngineSettings
from serve_app.types import InferencePrecision, Logits, Pictures

AUTO_MODELS = ("resnet18", "efficientnet_lite0")
"""What `model: auto` means: the first of these that was built, and is not a seeded stand-in."""

MOST_ACCURACY_LOST = 0.05
"""Of labelled pictures, what an engine may lose against torch eager; two pictures where that is more."""


def find_engine(settings: EngineSettings, *, check_files: bool = True) -> tuple[Path, Manifest]:
    """The engine folder that the settings name, its files checked against their hashes unless told not to: that reads
    all of them, and who only wants the manifest need not wait for it.

    Raises:
        EngineError: there is none, or it does not fit its manifest; names it and says how to build it.
    """
    variant = f"{settings.backend}-{settings.precision}"
    if settings.model != "auto":
        folder = engine_folder(settings.engines_dir, settings.model, settings.version, variant)
        return folder, _fitting(folder, settings.model, settings, check_files)
    for model in AUTO_MODELS:
        folder = engine_folder(settings.engines_dir, model, settings.version, variant)
        if (folder / MANIFEST_NAME).is_file() and (manifest := _fitting(folder, model, settings, check_files)).trained:
            return folder, manifest
    raise EngineError(
        f"no {variant} engine of {' or '.join(AUTO_MODELS)}{_version(settings)} in "
        f"{settings.engines_dir.absolute()}; build one with: {_build_command('auto', settings)}"
    )


def check_figures(manifest: Manifest) -> None:
    """Whether an engine was compared with torch eager and found to be as good; one that is taken in while the service
    runs must have been. Simulated engines have nothing to compare.

    Raises:
        EngineError: it was never verified, or its figures are bad; names the figure and its bound.
    """
    if manifest.backend == "simulated":
        return
    if wrong := _wrong_figure(manifest):
        raise EngineError(
            f"engine {manifest.engine_name} is not taken in: {wrong}; run engine-build verify "
            f"{manifest.engine_name}, or build it again"
        )


def _wrong_figure(manifest: Manifest) -> str | None:
    figures = manifest.verify
    if figures is None:
        return "it was never verified against torch eager"
    least = LEAST_AGREEMENT[manifest.precision]
    # Of random weights many logits are all but equal: what changes their order says little below fp32.
    counts = manifest.trained or manifest.precision == "fp32"
    # `not >=`: what is not a number is wrong.
    if counts and not figures.top1_agreement >= least:
        return (
            f"it has the first class of torch eager for {figures.top1_agreement:.1%} of pictures, not for {least:.0%}"
        )
    if not math.isfinite(figures.max_logit_error):
        return "its logits are not numbers"
    return _lost_accuracy(figures.accuracy) if figures.accuracy else None


def _lost_accuracy(accuracy: Accuracy) -> str | None:
    most = max(MOST_ACCURACY_LOST, 2 / max(1, accuracy.pictures))
    if accuracy.reference_top1 - accuracy.top1 <= most + 1e-9:
        return None
    return (
        f"its top-1 accuracy is {accuracy.top1:.1%} where torch eager has {accuracy.reference_top1:.1%}, "
        f"on {accuracy.pictures} pictures"
    )


def _fitting(folder: Path, model: str, settings: EngineSettings, check_files: bool) -> Manifest:
    manifest = read_manifest(folder, check_files=check_files)
    asked = (model, settings.version, settings.backend, settings.precision)
    if (manifest.model, manifest.version, manifest.backend, manifest.precision) != asked:
        raise EngineError(
            f"engine folder {folder} holds {manifest.engine_name}, not what its path says; build it again with: "
            f"{_build_command(model, settings)} --force"
        )
    return manifest


def _build_command(model: str, settings: EngineSettings) -> str:
    version = f" --version {settings.version}" if settings.version > 1 else ""
    return f"engine-build build --model {model} --backend {settings.backend} --precision {settings.precision}{version}"


def _version(settings: EngineSettings) -> str:
    return f" of version {settings.version}" if settings.version > 1 else ""


@dataclass(frozen=True, slots=True)
class Engine:
    """A warmed engine: every batch size up to `max_batch_size` was run in each of `runtimes`.

    Attributes:
        runtimes: for each caller a copy of the engine, or for all of them the one that serves several.
        latency: of one copy while the others rest.
    """

    manifest: Manifest
    runtimes: tuple[Runtime, ...]
    latency: LatencyTable
    max_batch_size: int

    def best_pictures_per_s(self) -> float:
        """Of all copies together."""
        return len(set(self.runtimes)) * self.latency.best_pictures_per_s()

    def close(self) -> None:
        """Frees all copies. Blocks; nothing may run in them any more."""
        for runtime in set(self.runtimes):
            runtime.close()


def open_engine(
    settings: EngineSettings,
    *,
    threads: int,
    max_batch_size: int,
    inference_precision: InferencePrecision,
    copies: int = 1,
    gpu: GpuOptions = NO_GPU,
) -> Engine:
    """Opens, checks and warms the engine that the settings name. Blocks for seconds.

    Args:
        threads: of each copy.
        copies: how many callers run it side by side; one engine on a GPU serves them all.
        gpu: for tensorrt engines.

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

    runtimes: list[Runtime] = []
    try:
        while len(runtimes) < copies:
            loaded = load_runtime(folder, manifest, threads=threads, inference_precision=inference_precision, gpu=gpu)
            runtimes += [loaded] * (copies if isinstance(loaded, OverlappingRuntime) else 1)
            if not isinstance(loaded, OverlappingRuntime):  # those are warm when they are there
                warm_up(partial(checked, loaded), shape, max_batch_size)
        latency = measure_latency(partial(checked, runtimes[0]), shape, table_sizes(max_batch_size), repeats=3)
        if GOLDEN_NAME in manifest.files:
            _check_golden(folder, manifest, runtimes[0], max_batch_size)
    except BaseException as error:
        for opened in set(runtimes):
            with suppress(GpuFailed):
                opened.close()
        if not isinstance(error, RuntimeError | ValueError | GpuFailed):
            raise
        raise EngineError(f"engine {manifest.engine_name} at {folder} does not run: {error}; build it again") from error
    return Engine(manifest, tuple(runtimes), latency, max_batch_size)


def _check_golden(folder: Path, manifest: Manifest, runtime: Runtime, max_batch_size: int) -> None:
    found = measured(read_golden(folder), runtime.infer, manifest.precision, max_batch_size)
    if wrong := problem(found, manifest.precision):
        raise EngineError(
            f"engine {manifest.engine_name} at {folder} answers wrongly on {runtime.info.device}: {wrong}; compile it "
            f"here again: engine-build compile {folder.absolute()} --force"
        )


class EngineThread:
    """One runtime behind threads of its own, so that the event loop goes on while it runs: one for each batch that it
    takes at once.

    Args:
        runtime: warm.
        clock: seconds.
    """

    def __init__(self, runtime: Runtime, clock: Clock = time.perf_counter) -> None:
        self._runtime = runtime
        self._clock = clock
        self._overlaps = isinstance(runtime, OverlappingRuntime)
        self.callers = runtime.callers if isinstance(runtime, OverlappingRuntime) else 1
        # One more for health checks where they need not wait for their turn here.
        self._executor = ThreadPoolExecutor(self.callers + self._overlaps, thread_name_prefix="inference")
        self._ended_s = 0.0

    def buffers(self, max_batch_size: int, shape: tuple[int, int, int]) -> list[Pictures]:
        """One for each caller: pictures in them are run without another copy."""
        if isinstance(self._runtime, OverlappingRuntime):
            return list(self._runtime.buffers)
        return [np.empty((max_batch_size, *shape), np.uint8)]

    async def run(self, pictures: Pictures) -> tuple[Logits, float]:
        """uint8 (n, height, width, 3) -> float32 (n, classes), and milliseconds in the engine from its turn on: time
        that the batch before it still took does not count.

        Shielded: a cancelled caller does not take the buffer from a running engine.
        """
        work = asyncio.get_running_loop().run_in_executor(self._executor, self._timed, pictures)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    async def check(self, pictures: Pictures, timeout_s: float) -> None:
        """Runs a few pictures, and wants an answer that was really written.

        Raises:
            InferenceFailed: it failed, or there was none in time.
        """
        runtime = self._runtime
        run = runtime.probe if isinstance(runtime, OverlappingRuntime) else runtime.infer
        work = asyncio.get_running_loop().run_in_executor(self._executor, run, pictures)
        try:
            logits = await asyncio.wait_for(asyncio.shield(work), timeout_s)
        except TimeoutError:
            raise InferenceFailed(f"the engine did not answer within {timeout_s:g} s") from None
        except Exception as error:
            raise InferenceFailed(f"the engine failed: {error}") from error
        if not np.isfinite(logits).all():
            raise InferenceFailed("the engine answers with what is not a number")

    def _timed(self, pictures: Pictures) -> tuple[Logits, float]:
        started_s = self._clock()
        logits = self._runtime.infer(pictures)
        ended_s = self._clock()
        began_s = max(started_s, min(self._ended_s, ended_s))
        self._ended_s = max(self._ended_s, ended_s)
        return logits, (ended_s - began_s) * 1e3

    def close(self) -> None:
        """Waits for running batches, then frees the engine."""
        # One with a queue of its own answers what is in it, and waits no longer for a device that is stuck.
        self._executor.shutdown(wait=not self._overlaps)
        self._runtime.close()
