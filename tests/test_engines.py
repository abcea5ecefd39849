from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serve_app.engines import EngineThread, find_engine, open_engine
from serve_app.errors import EngineError, GpuFailed, InferenceFailed
from serve_app.golden import Golden, write_golden
from serve_app.manifest import MANIFEST_NAME, Manifest, sha256_of, write_manifest
from serve_app.runtime import GpuOptions, OverlappingRuntime, RuntimeInfo
from serve_app.settings import EngineSettings
from serve_app.types import GpuMemory, GpuTimes
from tests.fakes import SHAPE, FakeClock, picture, scores_of
from tests.tiny_engine import expected, make_engine, make_gpu_engine


def wanted(engines_dir: Path, model: str = "auto") -> EngineSettings:
    return EngineSettings(engines_dir=engines_dir, model=model, backend="onnx", precision="fp32")


def test_auto_prefers_the_flagship_and_never_a_stand_in(tmp_path: Path) -> None:
    make_engine(tmp_path, "efficientnet_lite0")
    make_engine(tmp_path, "resnet18", trained=False)
    assert find_engine(wanted(tmp_path))[1].model == "efficientnet_lite0"
    assert find_engine(wanted(tmp_path, "resnet18"))[1].trained is False


def test_auto_takes_a_trained_flagship(tmp_path: Path) -> None:
    make_engine(tmp_path, "efficientnet_lite0")
    make_engine(tmp_path, "resnet18")
    assert find_engine(wanted(tmp_path))[1].model == "resnet18"


def test_no_engine_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="engine-build build --model auto --backend onnx --precision fp32"):
        find_engine(wanted(tmp_path))
    with pytest.raises(EngineError, match=str(tmp_path / "mine")):
        find_engine(wanted(tmp_path, "mine"))


@pytest.mark.parametrize("change", [{"model": "other"}, {"precision": "int8"}, {"version": 2}])
def test_an_engine_in_the_wrong_folder_is_refused_by_name(tmp_path: Path, change: dict[str, str]) -> None:
    folder, _ = make_engine(tmp_path, "mine")
    document = json.loads((folder / MANIFEST_NAME).read_text()) | change
    (folder / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(EngineError, match="not what its path says"):
        find_engine(wanted(tmp_path, "mine"))


def test_each_version_is_found_where_it_is(tmp_path: Path) -> None:
    for version in (1, 2):
        make_engine(tmp_path, "mine", version=version)
        make_engine(tmp_path, "efficientnet_lite0", version=version)
    for model in ("mine", "auto"):
        for version in (1, 2):
            settings = wanted(tmp_path, model).model_copy(update={"version": version})
            folder, found = find_engine(settings)
            assert found.version == version
            assert (folder.parent.name == "2") == (version == 2)
        third = wanted(tmp_path, model).model_copy(update={"version": 3})
        with pytest.raises(EngineError, match="mine/3/onnx-fp32" if model == "mine" else "--version 3"):
            find_engine(third)


def test_a_version_in_the_folder_of_another_is_refused(tmp_path: Path) -> None:
    folder, written = make_engine(tmp_path, "mine", version=2)
    write_manifest(folder, written.model_copy(update={"version": 1}))
    settings = wanted(tmp_path, "mine").model_copy(update={"version": 2})
    with pytest.raises(EngineError, match=r"holds mine/onnx-fp32, not what its path says; .* --version 2 --force"):
        find_engine(settings)


def test_open_warms_and_measures(tmp_path: Path) -> None:
    make_engine(tmp_path)
    engine = open_engine(wanted(tmp_path, "fake"), threads=1, max_batch_size=6, inference_precision="fp32")
    assert engine.latency.sizes == (1, 2, 4, 6)
    assert engine.latency.best_pictures_per_s() > 0


def test_copies_give_the_same_answers_and_add_up(tmp_path: Path) -> None:
    make_engine(tmp_path)
    engine = open_engine(wanted(tmp_path, "fake"), threads=1, max_batch_size=2, inference_precision="fp32", copies=3)
    pictures = np.stack([picture(3), picture(9)])
    first, second, third = (runtime.infer(pictures) for runtime in engine.runtimes)
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    assert engine.best_pictures_per_s() == 3 * engine.latency.best_pictures_per_s()


def test_an_engine_with_other_classes_than_its_manifest_is_refused(tmp_path: Path) -> None:
    make_engine(tmp_path, labels=("only", "two"))
    with pytest.raises(EngineError, match=r"\(2, 5\) where its manifest says \(2, 2\)"):
        open_engine(wanted(tmp_path, "fake"), threads=1, max_batch_size=2, inference_precision="fp32")


async def test_an_engine_thread_runs_the_engine(tmp_path: Path) -> None:
    make_engine(tmp_path)
    engine = open_engine(wanted(tmp_path, "fake"), threads=1, max_batch_size=2, inference_precision="fp32")
    thread = EngineThread(engine.runtimes[0])
    pictures = np.stack([picture(3), picture(9)])
    logits, inference_ms = await thread.run(pictures)
    np.testing.assert_allclose(logits, expected(pictures), rtol=1e-4, atol=1e-2)
    assert inference_ms > 0
    thread.close()


class SlowRuntime:
    """Waits for `release`, and counts how many run at once."""

    info = RuntimeInfo("slow", "fp32", 1)

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = threading.Event()
        self.running = self.most = 0

    def infer(self, pictures: np.ndarray) -> np.ndarray:
        self.running += 1
        self.most = max(self.most, self.running)
        self.entered.set()
        self.release.wait(10)
        scores = scores_of(pictures)
        self.running -= 1
        return scores

    def close(self) -> None:
        pass


async def test_a_cancelled_call_keeps_its_buffer_until_the_engine_is_done() -> None:
    runtime = SlowRuntime()
    thread = EngineThread(runtime)
    pictures = np.zeros((1, *SHAPE), np.uint8)
    gone = asyncio.create_task(thread.run(pictures))
    await asyncio.to_thread(runtime.entered.wait, 10)
    gone.cancel()
    await asyncio.sleep(0.02)
    assert not gone.done()
    runtime.release.set()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert runtime.running == 0
    logits, _ = await thread.run(pictures)
    assert len(logits) == 1
    assert runtime.most == 1
    thread.close()


def on_gpu(engines_dir: Path) -> EngineSettings:
    return EngineSettings(engines_dir=engines_dir, model="fake", backend="tensorrt", precision="fp32")


def gpu_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gpu"]


def test_one_engine_on_a_gpu_serves_all_callers(tmp_path: Path) -> None:
    make_gpu_engine(tmp_path)
    seen: list[GpuTimes] = []
    engine = open_engine(
        on_gpu(tmp_path),
        threads=1,
        max_batch_size=3,
        inference_precision="auto",
        copies=4,
        gpu=GpuOptions(3, "stand_in", observe=seen.append),
    )
    assert len(gpu_threads()) == 1
    assert len(engine.runtimes) == 4
    assert len(set(engine.runtimes)) == 1
    # Four callers share it: it is no faster for that.
    assert engine.best_pictures_per_s() == engine.latency.best_pictures_per_s()
    assert {times.pictures for times in seen} == {1, 2, 3}
    pictures = np.stack([picture(3), picture(9)])
    np.testing.assert_allclose(engine.runtimes[3].infer(pictures), expected(pictures), rtol=1e-4, atol=1e-2)
    for runtime in engine.runtimes:
        runtime.close()
    assert gpu_threads() == []


def golden_off_by(folder: Path, manifest: Manifest, logits: Callable[[np.ndarray], np.ndarray]) -> None:
    pictures = np.random.default_rng(3).integers(0, 256, (5, *SHAPE), np.uint8)
    write_golden(folder, Golden(pictures, logits(expected(pictures))))
    files = dict(manifest.files) | {"golden.npz": sha256_of(folder / "golden.npz")}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


@pytest.mark.parametrize("wrong", ["other logits", "too few classes", "too few labels"])
def test_an_engine_that_answers_wrongly_is_refused_and_gone(tmp_path: Path, wrong: str) -> None:
    labels = ("only", "two") if wrong == "too few labels" else tuple(f"label {index}" for index in range(5))
    folder, manifest = make_gpu_engine(tmp_path, labels=labels)
    if wrong != "too few labels":
        golden_off_by(folder, manifest, lambda logits: logits[:, :4] if wrong == "too few classes" else logits + 50)
    what = {
        "other logits": r"answers wrongly on CPU in place of a GPU: its logits differ .* compile \S+ --force",
        "too few classes": r"does not run: it answers in shape \(5, 5\), and golden.npz says \(5, 4\); build it again",
        "too few labels": "does not run on the CPU in place of a GPU: .*; build it again",
    }[wrong]
    with pytest.raises(EngineError, match=what):
        open_engine(
            on_gpu(tmp_path),
            threads=1,
            max_batch_size=3,
            inference_precision="auto",
            gpu=GpuOptions(3, "stand_in"),
        )
    assert gpu_threads() == []


class Overlapping:
    """Takes several callers; what each call does is scripted."""

    info = RuntimeInfo("fake", "fp32", 1)
    callers = 2

    def __init__(self, infer: Callable[[np.ndarray], np.ndarray] = scores_of) -> None:
        self.buffers = [np.zeros((4, *SHAPE), np.uint8) for _ in range(self.callers)]
        self._infer = infer
        self.probed: list[int] = []
        self.closed = False

    def infer(self, pictures: np.ndarray) -> np.ndarray:
        return self._infer(pictures)

    def probe(self, pictures: np.ndarray) -> np.ndarray:
        self.probed.append(len(pictures))
        return self._infer(pictures)

    def memory(self) -> GpuMemory:
        return GpuMemory(1, 2, 3, 4)

    def close(self) -> None:
        self.closed = True


ONE = np.zeros((1, *SHAPE), np.uint8)


async def test_what_a_batch_waited_behind_another_is_not_its_own_time() -> None:
    clock = FakeClock()
    gates = {1: threading.Event(), 2: threading.Event()}
    entered = threading.Semaphore(0)

    def infer(pictures: np.ndarray) -> np.ndarray:
        entered.release()
        assert gates[len(pictures)].wait(10)
        return scores_of(pictures)

    runtime = Overlapping(infer)
    assert isinstance(runtime, OverlappingRuntime)
    thread = EngineThread(runtime, clock)
    assert thread.callers == 2
    first = asyncio.create_task(thread.run(ONE))
    await asyncio.to_thread(entered.acquire, timeout=10)
    second = asyncio.create_task(thread.run(np.zeros((2, *SHAPE), np.uint8)))
    await asyncio.to_thread(entered.acquire, timeout=10)  # both began at the same moment
    clock.advance(9)
    gates[1].set()
    assert (await first)[1] == 9000
    clock.advance(1)
    gates[2].set()
    assert (await second)[1] == 1000
    clock.advance(5)  # idle, which is nobody's time
    clock_of_third = asyncio.create_task(thread.run(ONE))
    assert (await clock_of_third)[1] == 0
    thread.close()


def test_times_that_come_in_another_order_are_never_negative_and_not_counted_twice() -> None:
    """Threads may read the clock in one order, and note the end of their batch in the other."""
    clock = FakeClock(0.0)
    thread = EngineThread(Overlapping(), clock)
    readings = iter([0.0, 10.0, 1.0, 8.0, 2.0, 12.0])
    thread._clock = lambda: next(readings)
    assert [thread._timed(ONE)[1] for _ in range(3)] == [10_000, 0, 2000]
    thread.close()


async def test_a_check_probes_beside_as_many_callers_as_there_are() -> None:
    gate, entered = threading.Event(), threading.Semaphore(0)

    def infer(pictures: np.ndarray) -> np.ndarray:
        if len(pictures) == 2:
            entered.release()
            gate.wait(10)
        return scores_of(pictures)

    runtime = Overlapping(infer)
    thread = EngineThread(runtime)
    running = [asyncio.create_task(thread.run(np.zeros((2, *SHAPE), np.uint8))) for _ in range(2)]
    for _ in range(2):
        await asyncio.to_thread(entered.acquire, timeout=10)
    await thread.check(ONE, 10)
    assert runtime.probed == [1]
    assert not any(one.done() for one in running)
    gate.set()
    await asyncio.gather(*running)
    thread.close()
    assert runtime.closed


async def test_a_check_of_a_simple_engine_waits_for_its_turn_and_runs_it() -> None:
    runtime = SlowRuntime()
    thread = EngineThread(runtime)
    running = asyncio.create_task(thread.run(ONE))
    await asyncio.to_thread(runtime.entered.wait, 10)
    check = asyncio.create_task(thread.check(ONE, 10))
    await asyncio.sleep(0)
    assert not check.done()
    runtime.release.set()
    await asyncio.gather(check, running)
    assert runtime.most == 1
    thread.close()


async def test_a_check_fails_when_there_is_no_answer_in_time() -> None:
    runtime = SlowRuntime()
    thread = EngineThread(runtime)
    with pytest.raises(InferenceFailed, match=r"did not answer within 0\.01 s"):
        await thread.check(ONE, 0.01)
    runtime.release.set()
    await thread.check(ONE, 10)
    thread.close()


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        (lambda pictures: 1 / 0, "the engine failed: division by zero"),
        (lambda pictures: scores_of(pictures) * np.nan, "not a number"),
        (lambda pictures: scores_of(pictures) + np.inf, "not a number"),
    ],
)
async def test_a_check_fails_on_an_error_and_on_what_is_no_number(
    infer: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    thread = EngineThread(Overlapping(infer))
    with pytest.raises(InferenceFailed, match=message):
        await thread.check(ONE, 10)
    thread.close()


def test_buffers_are_the_engines_own_where_it_has_some() -> None:
    runtime = Overlapping()
    thread = EngineThread(runtime)
    assert [id(buffer) for buffer in thread.buffers(4, SHAPE)] == [id(buffer) for buffer in runtime.buffers]
    thread.close()
    simple = EngineThread(SlowRuntime())
    assert [buffer.shape for buffer in simple.buffers(6, SHAPE)] == [(6, *SHAPE)]
    assert simple.callers == 1
    simple.close()


async def test_a_stuck_device_does_not_keep_it_from_closing() -> None:
    told = threading.Event()

    def infer(pictures: np.ndarray) -> np.ndarray:
        told.wait(10)
        raise GpuFailed("the GPU did not come to rest")

    class Stuck(Overlapping):
        def close(self) -> None:
            told.set()  # as the GPU's thread does, when it gives up
            raise GpuFailed("the GPU did not come to rest")

    thread = EngineThread(Stuck(infer))
    running = asyncio.create_task(thread.run(ONE))
    await asyncio.sleep(0)
    with ThreadPoolExecutor(1) as pool, pytest.raises(GpuFailed, match="come to rest"):
        await asyncio.wrap_future(pool.submit(thread.close))
    with pytest.raises(GpuFailed):
        await running
