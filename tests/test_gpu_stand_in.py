from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import EngineError, GpuFailed
from serve_app.runtime import GpuOptions, OverlappingRuntime, load_runtime
from serve_app.runtime.gpu.runtime import GpuRuntime
from serve_app.runtime.gpu.stand_in import HostDevice, HostMemory
from serve_app.types import GpuTimes
from tests.gpu_fakes import PATIENCE_S, assert_answers, noise
from tests.tiny_engine import make_gpu_engine


def open_stand_in(folder: Path, seen: list[GpuTimes] | None = None, **options: object) -> GpuRuntime:
    _, manifest = make_gpu_engine(folder)
    observe = seen.append if seen is not None else None
    gpu = GpuOptions(**({"max_batch_size": 8, "device": "stand_in", "observe": observe} | options))  # type: ignore[arg-type]
    runtime = load_runtime(folder / "fake" / "tensorrt-fp32", manifest, threads=1, gpu=gpu)
    assert isinstance(runtime, GpuRuntime)
    return runtime


@pytest.mark.parametrize(("slots", "graphs"), [(1, False), (2, False), (2, True), (3, True)])
def test_many_callers_get_their_own_answers(tmp_path: Path, slots: int, graphs: bool) -> None:
    seen: list[GpuTimes] = []
    runtime = open_stand_in(tmp_path, seen, slots=slots, cuda_graphs=graphs)
    runtime._thread.lanes.sizes[:] = [0, 2, 2, 4, 4, 6, 6, 8, 8]  # padded, whatever this machine measured
    buffers = list(runtime.buffers)

    def caller(number: int) -> None:
        random = np.random.default_rng(number)
        for _ in range(80):
            pictures = noise(int(random.integers(1, 9)), int(random.integers(10**6)))
            given = pictures.copy()
            if number < slots:
                given = buffers[number][: len(pictures)]
                given[:] = pictures
            elif number % 2:
                given = np.asfortranarray(given)
            logits = runtime.infer(given)
            given[:] = 0
            assert_answers(logits, pictures)

    with ThreadPoolExecutor(slots + 2) as pool:
        for done in [pool.submit(caller, number) for number in range(slots + 2)]:
            done.result(3 * PATIENCE_S)
    assert len(seen) == 80 * (slots + 2)
    assert all(times.batch_size in (2, 4, 6, 8) and times.run_ms > 0 for times in seen)
    assert_answers(runtime.probe(noise(1)), noise(1))
    runtime.close()
    assert not runtime._thread._thread.is_alive()


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    runtime = open_stand_in(tmp_path)
    assert isinstance(runtime, OverlappingRuntime)
    assert runtime.info.device == "CPU in place of a GPU"
    memory = runtime.memory()
    assert 0 < memory.free <= memory.total
    runtime.close()
    with pytest.raises(GpuFailed, match="closed"):
        runtime.infer(noise(1))


def test_an_onnx_that_does_not_load_is_refused_by_name(tmp_path: Path) -> None:
    folder, manifest = make_gpu_engine(tmp_path)
    (folder / "model.onnx").write_text("no model")
    with pytest.raises(EngineError, match=r"fake/tensorrt-fp32 .* on the CPU in place of a GPU: .*; build it again"):
        load_runtime(folder, manifest, threads=1, gpu=GpuOptions(2, "stand_in"))


def test_an_error_in_a_stream_stays_and_everybody_who_waits_hears_of_it() -> None:
    device = HostDevice()
    stream, other, event = device.stream(), device.stream(), device.event()
    done: list[str] = []

    def fail() -> None:
        raise ValueError("no such kernel")

    stream.put(fail)
    event.record(stream)
    with pytest.raises(ValueError, match="no such kernel"):
        event.synchronize()
    other.wait_for_event(event)
    other.put(lambda: done.append("ran"))
    for one in (stream, other):
        with pytest.raises(ValueError, match="no such kernel"):
            one.synchronize()
    assert done == []
    assert event.query()


def test_streams_overlap_and_events_order_them() -> None:
    device = HostDevice()
    first, second, event, passed = device.stream(), device.stream(), device.event(), device.event()
    gate, done = threading.Event(), list[str]()
    first.put(lambda: done.append("first") if gate.wait(PATIENCE_S) else None)
    event.record(first)
    second.put(lambda: done.append("meanwhile"))
    passed.record(second)
    second.wait_for_event(event)
    second.put(lambda: done.append("after"))
    passed.synchronize()
    assert (done, event.query()) == (["meanwhile"], False)
    gate.set()
    second.synchronize()
    assert done == ["meanwhile", "first", "after"]
    assert event.time_since(passed) >= 0


def test_waiting_is_for_the_passing_that_was_recorded_before_not_for_a_later_one() -> None:
    device = HostDevice()
    first, second, event = device.stream(), device.stream(), device.event()
    gate, later, done = threading.Event(), threading.Event(), list[str]()
    event.record(first)
    second.put(lambda: done.append(str(later.wait(PATIENCE_S))))
    second.wait_for_event(event)
    first.put(lambda: done.append(str(gate.wait(PATIENCE_S))))
    event.record(first)
    later.set()
    second.synchronize()
    assert not event.query()
    gate.set()
    event.synchronize()
    assert done == ["True", "True"]


def test_what_is_recorded_runs_when_it_is_launched_and_each_time() -> None:
    device = HostDevice()
    stream, memory = device.stream(), device.allocate(4)
    assert isinstance(memory, HostMemory)
    source, target = np.arange(4, dtype=np.uint8), np.zeros(4, np.uint8)
    graph = device.record(stream, lambda: device.copy_in(memory, source, stream))
    stream.synchronize()
    assert memory.view((4,), np.uint8).tolist() == [0, 0, 0, 0]
    for offset in (0, 10):
        source += np.uint8(offset)
        graph.launch(stream)
        device.copy_out(target, memory, stream)
        stream.synchronize()
        assert target.tolist() == [offset, offset + 1, offset + 2, offset + 3]
    graph.close()
