"""What TensorRT and CUDA refuse while an engine is served; test_tensorrt_behaviour.py runs this in its own process.

Each refusal is a typed error that says what TensorRT logged, and leaves nothing on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cuda.bindings import driver
from onnx import TensorProto

from tests.gpu import fakecuda

cuda = fakecuda.load()

from serve_app.engines import open_engine  # noqa: E402
from serve_app.errors import EngineError, GpuFailed, GpuMissing, SetupError  # noqa: E402
from serve_app.manifest import Manifest  # noqa: E402
from serve_app.runtime import GpuOptions, load_plan  # noqa: E402
from serve_app.runtime.gpu.runtime import GpuRuntime  # noqa: E402
from serve_app.runtime.tensorrt.machine import this_machine  # noqa: E402
from serve_app.settings import EngineSettings  # noqa: E402
from tests.fakes import CLASSES  # noqa: E402
from tests.gpu.both import MOST, Both, assert_answers, noise  # noqa: E402
from tests.gpu.fake_helpers import network, plan_of  # noqa: E402
from tests.gpu.fake_objects import Work  # noqa: E402

OUT_OF_MEMORY, NO_DEVICE, ILLEGAL_ADDRESS, UNKNOWN = 2, 100, 700, 999
PATIENCE_S = 60
Folder = tuple[Path, Manifest]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(monkeypatch)


@pytest.fixture
def engine(at: Both, tmp_path: Path) -> Folder:
    return at.compiled(tmp_path)


REFUSALS: dict[str, tuple[Any, str, str]] = {
    "deserialize": (True, "does not load the plan", "deserialize_cuda_engine"),
    "context": (True, "makes no execution context", "create_execution_context"),
    "input_shape": (True, "takes no batch of", "set_input_shape"),
    "infer_shapes": (["mask"], "more inputs than the pictures: mask", "infer_shapes"),
    "tensor_address": (True, "does not take the address of", "set_tensor_address"),
    "execute": (True, "did not start a batch of", "execute_async_v3"),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_what_tensorrt_refuses_at_load_is_said(at: Both, engine: Folder, fault: str) -> None:
    value, what, method = REFUSALS[fault]
    setattr(at.faults, fault, value)
    with pytest.raises(EngineError) as raised:
        at.opened(engine)
    assert what in str(raised.value)
    assert f"TensorRT said: fault injected in {method}" in str(raised.value)
    assert str(raised.value).endswith(f"engine-build compile {engine[0].absolute()} --force")
    at.check()


@pytest.mark.parametrize("fault", ["input_shape", "infer_shapes", "execute"])
def test_what_tensorrt_refuses_later_fails_one_batch(at: Both, engine: Folder, fault: str) -> None:
    runtime = at.opened(engine)
    runtime.infer(noise(2))
    value, what, method = REFUSALS[fault]
    off = getattr(at.faults, fault)
    setattr(at.faults, fault, value)
    for _ in range(2):
        with pytest.raises(GpuFailed, match=what) as raised:
            runtime.infer(noise(3))
        assert raised.value.lines == (f"fault injected in {method}",)
    setattr(at.faults, fault, off)
    assert_answers(runtime.infer(noise(3)), noise(3))
    runtime.close()
    at.check()


def test_others_are_served_while_one_batch_is_refused(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine)
    sizes, refused = [5, 7, 3, 7, 6, 4, 7, 2] * 3, list[int]()
    enqueue = at.trt.world.enqueue
    at.trt.world.enqueue = lambda stream, work: work.batch_size != 7 and enqueue(stream, work)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(runtime.infer, noise(n, seed)) for seed, n in enumerate(sizes)]
        for seed, (n, answer) in enumerate(zip(sizes, answers, strict=True)):
            if n == 7:
                refused.append(seed)
                assert isinstance(answer.exception(PATIENCE_S), GpuFailed)
            else:
                assert_answers(answer.result(PATIENCE_S), noise(n, seed))
    assert len(refused) == 9
    runtime.close()
    at.check()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"image": TensorProto.FLOAT}, r"input is FLOAT \(-1, 4, 4, 3\), not UINT8"),
        ({"logits": TensorProto.FLOAT16}, r"logits0 is HALF \(-1, 5\), not FLOAT"),
        ({"shape": (8, 4, 4, 3)}, r"input is UINT8 \(8, 4, 4, 3\), .* free batch size"),
        ({"shape": ("n", 4, "width", 3)}, r"input is UINT8 \(-1, 4, -1, 3\)"),
        ({"answer": ("n", 5, 1, 1)}, r"logits0 is FLOAT \(-1, 5, 1, 1\), not FLOAT of rank 2"),
        ({"answer": (1, 5)}, r"logits0 is FLOAT \(1, 5\)"),
        ({"outputs": 2}, r"outputs \['logits0', 'logits1'\], not one of each"),
    ],
)
def test_a_plan_with_other_inputs_and_outputs(
    at: Both, engine: Folder, tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    onnx.save(network(**changes), tmp_path / "model.onnx")
    with pytest.raises(GpuFailed, match=what):
        load_plan(plan_of(at.trt, tmp_path, (1, 2, MOST)), engine[1], GpuOptions(MOST))
    at.check()


def test_a_plan_whose_profile_does_not_hold_the_batches(at: Both, engine: Folder, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    for batches in ((2, 4, MOST), (1, 2, 4)):
        with pytest.raises(GpuFailed, match=f"its profile is {batches[0]} to {batches[2]}; TensorRT said: fault"):
            load_plan(plan_of(at.trt, tmp_path, batches), engine[1], GpuOptions(MOST))
    at.check()


def test_a_file_that_is_no_plan(at: Both, engine: Folder, tmp_path: Path) -> None:
    (tmp_path / "some.plan").write_bytes(b"plan")
    with pytest.raises(GpuFailed, match=r"does not load the plan.* TensorRT said: .*magicTag"):
        load_plan(tmp_path / "some.plan", engine[1], GpuOptions(MOST))
    at.check()


@pytest.mark.parametrize("function", ["cuMemAlloc_v2", "cuMemHostAlloc"])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_memory_that_runs_out_while_buffers_are_allocated(at: Both, engine: Folder, function: str, call: int) -> None:
    cuda.fail(function, OUT_OF_MEMORY, call=call, times=2)  # pycuda tries a second time
    with pytest.raises(EngineError, match=r"MemoryError: cuMem.*CUDA_ERROR_OUT_OF_MEMORY"):
        at.opened(engine)
    at.check()


def test_a_card_that_is_full(at: Both, engine: Folder) -> None:
    cuda.device(total_bytes=8 * 2**30, reserved_bytes=8 * 2**30 - 700)
    with pytest.raises(EngineError, match="OUT_OF_MEMORY"):
        at.opened(engine)
    at.check()


def calls_of(work: Callable[[], object]) -> dict[str, int]:
    """Driver functions that work calls, and how often."""
    before = len(cuda.report().calls)
    work()
    calls = cuda.report().calls[before:]
    return {name: calls.count(name) for name in calls if name.startswith("cu")}


GIVING_BACK = ("Destroy", "Free", "PopCurrent", "Release")
"""In names of functions that give something back: whoever calls them can do no more than that."""


def test_every_call_of_the_driver_may_fail_at_load(at: Both, engine: Folder) -> None:
    options = {"max_batch_size": 1, "slots": 1, "cuda_graphs": True}
    runtimes: list[GpuRuntime] = []
    counts = calls_of(lambda: runtimes.append(at.opened(engine, **options)))
    runtimes.pop().close()
    # An end of a recording that fails has ended it all the same; the stand-in would go on with it.
    names = [name for name in counts if name != "cuStreamEndCapture" and not any(word in name for word in GIVING_BACK)]
    assert len(names) > 20
    unnoticed = set()
    for name in names:
        for call in {1, min(2, counts[name]), counts[name]}:
            cuda.reset()
            cuda.fail(name, UNKNOWN, call=call)
            try:
                at.opened(engine, **options).close()
                unnoticed.add(name)
            except SetupError as error:
                assert "failed: CUDA_ERROR_UNKNOWN" in str(error), (name, call, error)  # noqa: PT017
            assert not (why := unclean(at)), (name, call, why)
    assert not unnoticed


def unclean(at: Both) -> str:
    try:
        at.check()
    except AssertionError as error:
        return str(error) or "objects of TensorRT are left"
    return ""


def test_every_call_of_the_driver_may_fail_later(at: Both, engine: Folder) -> None:
    for graphs in (False, True):
        runtime = at.opened(engine, slots=2, cuda_graphs=graphs)
        for name, count in calls_of(partial(runtime.probe, noise(3))).items():
            for call in range(1, min(count, 6) + 1):
                cuda.fail(name, UNKNOWN, call=call)
                if name == "cuEventQuery":  # asked again by waiting
                    assert_answers(runtime.infer(noise(3, call)), noise(3, call))
                else:
                    with pytest.raises(GpuFailed, match=f"{name.partition('_v')[0]}.*CUDA_ERROR_UNKNOWN"):
                        runtime.probe(noise(3, call))
                assert_answers(runtime.infer(noise(4, call)), noise(4, call))
        runtime.close()
        at.check()


@pytest.mark.parametrize("function", ["cuEventSynchronize", "cuStreamSynchronize", "cuEventQuery"])
def test_a_broken_context_fails_everybody_and_is_given_back(
    at: Both, engine: Folder, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = at.opened(engine)
    cuda.fail(function, ILLEGAL_ADDRESS, sticky=True)
    at.faults.execute = function == "cuStreamSynchronize"  # called to settle
    with ThreadPoolExecutor(4) as pool:
        failures = [pool.submit(runtime.infer, noise(n)).exception(PATIENCE_S) for n in (1, 2, 3, 4)]
    assert {type(failure) for failure in failures} == {GpuFailed}
    assert "ILLEGAL_ADDRESS" in str(failures[-1])
    assert "\n" not in "".join(map(str, failures))
    with pytest.raises(GpuFailed, match="ILLEGAL_ADDRESS"):
        runtime.probe(noise(1))
    with pytest.raises(GpuFailed, match=r"did not come to rest.*ILLEGAL_ADDRESS"):
        runtime.close()
    runtime.close()
    assert all(record.exc_info is None for record in caplog.records if record.levelno >= logging.ERROR)
    report = cuda.report()
    assert report.is_balanced()
    assert not report.leaks()


def test_a_kernel_that_crashes(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine)
    compute = at.trt.world.compute
    at.trt.world.compute = lambda pictures: np.zeros((0, 0)) if len(pictures) == 3 else compute(pictures)  # type: ignore[misc]
    assert_answers(runtime.infer(noise(2)), noise(2))
    with pytest.raises(GpuFailed, match="LAUNCH_FAILED"):
        runtime.infer(noise(3))
    with pytest.raises(GpuFailed, match="LAUNCH_FAILED"):
        runtime.infer(noise(2))
    with pytest.raises(GpuFailed, match="did not come to rest"):
        runtime.close()
    assert cuda.report().is_balanced()


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"])
@pytest.mark.parametrize("call", [1, 3])
def test_a_graph_that_cannot_be_recorded(at: Both, engine: Folder, function: str, call: int) -> None:
    cuda.fail(function, UNKNOWN, call=call)
    with pytest.raises(EngineError, match=r"cu(Stream|Graph)\w+ failed: CUDA_ERROR_UNKNOWN"):
        at.opened(engine, cuda_graphs=True)
    at.check()


def test_a_recording_that_something_breaks(at: Both, engine: Folder) -> None:
    enqueue = at.trt.world.enqueue

    def waiting(stream: int, work: Work) -> bool:
        if cuda.report().calls[-1] == "cuStreamBeginCapture_v2":
            driver.cuStreamSynchronize(stream)
        return bool(enqueue(stream, work))

    at.trt.world.enqueue = waiting
    with pytest.raises(EngineError, match=r"cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED|start a"):
        at.opened(engine, cuda_graphs=True)
    at.check()


def test_a_run_that_is_refused_in_a_recording_ends_it(at: Both, engine: Folder) -> None:
    enqueue = at.trt.world.enqueue
    at.trt.world.enqueue = lambda stream, work: (
        cuda.report().calls[-1] != "cuStreamBeginCapture_v2" and enqueue(stream, work)
    )
    with pytest.raises(EngineError, match=r"did not start a batch of 1; TensorRT said: Cuda failure"):
        at.opened(engine, cuda_graphs=True)
    seen = cuda.report().calls
    assert seen[seen.index("cuStreamBeginCapture_v2") + 1] == "cuStreamEndCapture"
    at.check()


def test_an_answer_that_was_not_written_is_found_by_the_probe(at: Both, engine: Folder) -> None:
    for graphs in (False, True):
        runtime = at.opened(engine, cuda_graphs=graphs)
        runtime.probe(noise(2))
        at.writes = False
        with pytest.raises(GpuFailed, match="did not write its output"):
            runtime.probe(noise(2))
        at.writes = True
        assert_answers(runtime.probe(noise(2)), noise(2))
        runtime.close()
        at.check()


def test_an_answer_of_which_a_part_was_not_written_is_found_by_the_probe(at: Both, engine: Folder) -> None:
    runtime = at.opened(engine, slots=1)
    runtime.probe(noise(3))
    enqueue = at.trt.world.enqueue

    def first_row_only(stream: int, work: Work) -> bool | None:
        def run() -> None:
            logits = cuda.view(work.uses[1][0], (work.batch_size, CLASSES), np.float32)
            before = logits[1:].copy()
            work()
            logits[1:] = before

        return enqueue(stream, Work(run, work.batch_size, work.uses))

    at.trt.world.enqueue = first_row_only
    runtime.probe(noise(1))
    with pytest.raises(GpuFailed, match="did not write"):
        runtime.probe(noise(3))
    runtime.close()
    at.check()


def test_an_engine_that_answers_wrongly_does_not_serve(at: Both, engine: Folder, tmp_path: Path) -> None:
    settings = EngineSettings(engines_dir=tmp_path / "engines", model="fake", backend="tensorrt", precision="fp32")
    at.trt.world.compute = lambda pictures: np.ones((len(pictures), 5), np.float32)
    with pytest.raises(EngineError, match=r"answers wrongly on Fake GPU: .*engine-build compile"):
        open_engine(
            settings, threads=1, max_batch_size=MOST, inference_precision="auto", copies=2, gpu=GpuOptions(MOST)
        )
    at.check()


def test_this_machine_is_what_the_driver_says(at: Both) -> None:
    cuda.device("Fake T4", compute_capability=(7, 5), sm_count=40, total_bytes=16 * 2**30 - 10**8)
    machine = this_machine()
    assert (machine.gpu, machine.compute_capability, machine.sm_count, machine.memory_gib) == ("Fake T4", "7.5", 40, 16)
    assert machine.tensorrt == "11.4.0.106"
    at.check()


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGet"])
def test_a_driver_without_a_gpu(at: Both, engine: Folder, function: str) -> None:
    cuda.fail(function, NO_DEVICE)
    with pytest.raises(GpuMissing, match=r"no NVIDIA GPU that CUDA can use .*nvidia-smi, or serve on the CPU"):
        at.opened(engine)
    at.check()


def test_a_plan_of_another_machine(at: Both, engine: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.device("Other GPU", compute_capability=(9, 0))
    monkeypatch.setattr(at.trt.module, "__version__", "11.5.0.1")
    with pytest.raises(EngineError) as raised:
        at.opened(engine)
    for difference in (
        "tensorrt (11.4.0.106 in the plan, 11.5.0.1 here)",
        "gpu (Fake GPU in the plan, Other GPU here)",
        "compute_capability (8.9 in the plan, 9.0 here)",
    ):
        assert difference in str(raised.value)
    assert "sm_count" not in str(raised.value)
    assert str(raised.value).endswith(f"engine-build compile {engine[0].absolute()}")
    at.check()
