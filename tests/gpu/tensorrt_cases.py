"""TensorRT engines served on pycuda, over the stand-ins; test_tensorrt_behaviour.py runs this in its own process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu import fakecuda

cuda = fakecuda.load()

import pycuda.driver as drv  # noqa: E402

from serve_app.engines import open_engine  # noqa: E402
from serve_app.errors import GpuFailed  # noqa: E402
from serve_app.manifest import Manifest  # noqa: E402
from serve_app.runtime import GpuOptions, OverlappingRuntime  # noqa: E402
from serve_app.settings import EngineSettings  # noqa: E402
from serve_app.types import GpuTimes, Logits  # noqa: E402
from tests.fakes import CLASSES, SHAPE  # noqa: E402
from tests.gpu.both import MOST, Both, assert_answers, noise  # noqa: E402
from tests.gpu.fake_objects import Work  # noqa: E402

PATIENCE_S = 60
Folder = tuple[Path, Manifest]
BUFFER_BYTES = MOST * (int(np.prod(SHAPE)) + 4 * CLASSES)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(monkeypatch)


@pytest.fixture
def engine(at: Both, tmp_path: Path) -> Folder:
    return at.compiled(tmp_path)


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("slots", [1, 3])
def test_many_callers_get_their_own_answers(
    at: Both, engine: Folder, seed: int | None, graphs: bool, slots: int
) -> None:
    at.run_ms = lambda n: 1.0 + n + 9 * (n % 2)  # odd sizes are slow, so they are padded
    seen: list[GpuTimes] = []
    runtime = at.opened(engine, slots=slots, cuda_graphs=graphs, observe=seen.append)
    if seed is not None:
        cuda.shuffle(seed)
    free = list(runtime.buffers)
    gate = threading.Barrier(slots + 2)

    def caller(number: int) -> None:
        random = np.random.default_rng(number)
        gate.wait(PATIENCE_S)
        for step in range(12):
            pictures = noise(int(random.integers(1, MOST + 1)), 100 * number + step)
            given = free[number][: len(pictures)] if number < slots else pictures.copy()
            given[:] = pictures
            logits = runtime.probe(given) if step % 4 == 3 else runtime.infer(given)
            given[:] = 0  # it is the caller's again
            assert_answers(logits, pictures)

    with ThreadPoolExecutor(slots + 2) as pool:
        for done in [pool.submit(caller, number) for number in range(slots + 2)]:
            done.result(PATIENCE_S)
    assert len(seen) == 9 * (slots + 2)
    assert {times.batch_size % 2 for times in seen} == {0}
    assert cuda.report().pageable_copies == 0
    free.clear()
    runtime.close()
    at.check()


def test_pictures_in_the_runtimes_buffers_are_not_copied_again(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine, slots=1)
    [buffer] = runtime.buffers
    pictures = noise(3)
    buffer[:3] = pictures
    runtime._thread.lanes.slots[0].staging.fill(7)
    assert_answers(runtime.infer(buffer[:3]), pictures)
    assert (runtime._thread.lanes.slots[0].staging == 7).all()
    assert_answers(runtime.infer(buffer[:3][::-1]), pictures[::-1])
    assert_answers(runtime.infer(np.repeat(pictures, 2, axis=2)[:, :, ::2]), pictures)
    assert cuda.report().pageable_copies == 0
    del buffer
    runtime.close()
    at.check()


def test_batches_are_on_the_device_at_once_and_their_times_are_the_devices(at: Both, engine: Folder) -> None:
    cuda.times(htod=3, dtoh=2)
    seen: list[GpuTimes] = []
    runtime = at.opened(engine, observe=seen.append)
    runtime.infer(noise(4))
    [times] = seen
    assert (times.pictures, times.batch_size, times.run_ms, times.copy_out_ms) == (4, 4, 5, 2)
    assert times.copy_in_ms in (3, 6)  # with the output's poison
    assert runtime.latency.as_dict() == {n: 1.0 + n for n in range(1, MOST + 1)}
    runtime.close()
    at.check()


def test_padding_is_not_answered(at: Both, engine: Folder) -> None:
    at.run_ms = lambda n: 50.0 if n < MOST else 1.0
    runtime = at.opened(engine)
    at.ran.clear()
    pictures = noise(3)
    assert_answers(runtime.infer(pictures), pictures)
    assert at.ran == [MOST]
    runtime.close()
    at.check()


def test_graphs_are_launched_in_place_of_runs(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine, cuda_graphs=True)
    runs, launches = len(at.ran), cuda.report().calls.count("cuGraphLaunch")
    for n in range(1, MOST + 1):
        assert_answers(runtime.infer(noise(n)), noise(n))
    assert (len(at.ran) - runs, cuda.report().calls.count("cuGraphLaunch") - launches) == (0, MOST)
    assert cuda.report().executables == 2 * MOST
    assert cuda.report().graphs == 0
    runtime.close()
    at.check()


def test_others_are_served_while_graphs_are_recorded(at: Both, engine: Folder) -> None:
    serving = at.opened(engine)
    enqueue, answers = at.trt.world.enqueue, list[Logits]()

    def asking(stream: int, work: Work) -> bool | None:
        if cuda.report().calls[-1] == "cuStreamBeginCapture_v2":
            answers.append(serving.infer(noise(3, len(answers))))
        return enqueue(stream, work)

    at.trt.world.enqueue = asking
    runtime = at.opened(engine, cuda_graphs=True)
    assert len(answers) == 2 * MOST
    for seed, logits in enumerate(answers):
        assert_answers(logits, noise(3, seed))
    runtime.close()
    serving.close()
    at.check()


def test_memory_is_allocated_once_and_told(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine, slots=3)
    memory, blocks = runtime.memory(), cuda.report().pinned_blocks
    assert (memory.buffers, memory.engine, memory.total - memory.free) == (3 * BUFFER_BYTES, 2**20, 3 * BUFFER_BYTES)
    assert cuda.report().device_blocks == 6
    for n in range(1, MOST + 1):
        runtime.infer(noise(n))
        runtime.probe(noise(n))
    assert runtime.memory() == memory
    assert cuda.report().pinned_blocks == blocks
    runtime.close()
    at.check()


def test_work_of_other_libraries_in_the_default_stream_is_not_waited_for(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine)
    ran: list[int] = []
    context = drv.Device(0).retain_primary_context()
    context.push()
    try:
        cuda.enqueue(0, lambda: ran.append(1))
        runtime.infer(noise(2))
        assert ran == []
        drv.Context.synchronize()
        assert ran == [1]
    finally:
        drv.Context.pop()
        context.detach()
    runtime.close()
    at.check()


def test_a_plan_is_loaded_in_tensorrts_order(at: Both, engine: Folder) -> None:
    at.trt.journal.calls.clear()
    runtime = at.opened(engine, slots=1, max_batch_size=1)
    calls = [call.method for call in at.trt.journal.calls if call.method != "destroyed"]
    assert list(dict.fromkeys(calls)) == [
        "__init__",
        "deserialize_cuda_engine",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_dtype",
        "get_tensor_shape",
        "get_tensor_profile_shape",
        "create_execution_context",
        "set_input_shape",
        "infer_shapes",
        "set_tensor_address",
        "execute_async_v3",
    ]
    assert calls.count("get_tensor_mode") == 2
    [context] = at.calls("create_execution_context")
    assert context.arguments == (at.trt.module.ExecutionContextAllocationStrategy.STATIC,)
    threads = {call.thread for call in at.trt.journal.calls}
    assert threads == {runtime._thread._thread.ident}
    runtime.close()
    at.check()


def test_only_what_changed_is_told_to_the_context(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine, slots=1)
    runtime.infer(noise(4))
    at.trt.journal.calls.clear()
    for _ in range(3):
        runtime.infer(noise(4))
    assert at.trt.journal.methods() == ["execute_async_v3"] * 3
    runtime.infer(noise(5))
    shaped = ["set_input_shape", "infer_shapes", "get_tensor_shape", "execute_async_v3"]
    assert at.trt.journal.methods()[3:] == shaped
    runtime.close()
    at.check()


def test_closing_twice_and_asking_afterwards(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine)
    runtime.close()
    at.check()
    runtime.close()
    for ask in (lambda: runtime.infer(noise(1)), lambda: runtime.probe(noise(1)), runtime.memory):
        with pytest.raises(GpuFailed, match="closed"):
            ask()
    at.check()


def test_two_engines_in_one_process(at: Both, tmp_path: Path) -> None:
    engines = [at.compiled(tmp_path, model) for model in ("one", "other")]
    first, second = at.opened(engines[0], cuda_graphs=True), at.opened(engines[1])
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(one.infer, noise(5, seed)) for seed, one in enumerate([first, second] * 10)]
        for seed, answer in enumerate(answers):
            assert_answers(answer.result(PATIENCE_S), noise(5, seed))
    first.close()
    assert_answers(second.infer(noise(3)), noise(3))
    third = at.opened(engines[0])
    second.close()
    assert_answers(third.infer(noise(3)), noise(3))
    third.close()
    at.check()


def test_engines_are_closed_by_threads_that_did_not_open_them(at: Both, engine: Folder) -> None:
    with ThreadPoolExecutor(2) as pool:
        runtimes = [pool.submit(at.opened, engine).result(PATIENCE_S) for _ in range(2)]
    threads = [threading.Thread(target=runtime.close) for runtime in runtimes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    at.check()


def test_what_was_asked_before_the_end_is_answered(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine, slots=2)
    hold, begun = threading.Event(), threading.Event()

    def slow(n: int) -> float:
        begun.set()
        assert hold.wait(PATIENCE_S)
        return 1.0

    at.run_ms = slow
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(runtime.infer, noise(4, seed)) for seed in range(2)]
        assert begun.wait(PATIENCE_S)
        closing = pool.submit(runtime.close)
        hold.set()
        closing.result(PATIENCE_S)
        outcomes = [answer.exception(PATIENCE_S) or answer.result() for answer in answers]
    for seed, outcome in enumerate(outcomes):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, GpuFailed)  # asked after the end
        else:
            assert_answers(outcome, noise(4, seed))
    assert not all(isinstance(outcome, GpuFailed) for outcome in outcomes)
    at.check()


def test_the_end_waits_for_a_copy_into_memory_that_goes_with_the_device(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine)
    begun, go = threading.Event(), threading.Event()

    class Slow(np.ndarray):
        """Copied out of only when the test says so."""

        def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            if func is np.copyto:
                begun.set()
                assert go.wait(PATIENCE_S)
            return super().__array_function__(func, types, args, kwargs)

    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(runtime.infer, noise(3).view(Slow))
        assert begun.wait(PATIENCE_S)
        closing = pool.submit(runtime.close)
        assert not wait([closing], timeout=0.05).done
        go.set()
        closing.result(PATIENCE_S)
        outcome = answer.exception(PATIENCE_S) or answer.result()
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, GpuFailed)
    else:
        assert_answers(outcome, noise(3))
    del answer, outcome
    at.check()


def test_the_engine_that_settings_name_is_opened_checked_and_shared(at: Both, engine: Folder, tmp_path: Path) -> None:
    settings = EngineSettings(engines_dir=tmp_path / "engines", model="fake", backend="tensorrt", precision="fp32")
    for graphs in (False, True):
        opened = open_engine(
            settings,
            threads=1,
            max_batch_size=MOST,
            inference_precision="auto",
            copies=2,
            gpu=GpuOptions(MOST, cuda_graphs=graphs),
        )
        [runtime] = set(opened.runtimes)
        assert isinstance(runtime, OverlappingRuntime)
        assert (len(opened.runtimes), runtime.info.device) == (2, "Fake GPU")
        assert_answers(runtime.infer(noise(5)), noise(5))
        runtime.close()
        at.check()


def test_a_buffer_that_somebody_still_holds_does_not_keep_the_engine(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine)
    buffer = runtime.buffers[0]
    assert buffer.shape == (MOST, *SHAPE)
    runtime.close()
    assert not cuda.report().leaks()
    del buffer
    assert cuda.report().is_balanced()
