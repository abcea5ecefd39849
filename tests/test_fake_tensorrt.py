"""The fake TensorRT itself: as strict as the genuine one, and failing in each way that is documented."""

from __future__ import annotations

import gc
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.fake_helpers import CLASSES, SHAPE, Built, aligned, ready, write_onnx
from tests.gpu.fake_objects import Fake, ParseFault, Value
from tests.gpu.fake_run import IExecutionContext
from tests.gpu.fake_tensorrt import FakeTensorRT, differences, install, make_fake


@pytest.fixture
def fake() -> FakeTensorRT:
    return make_fake()


@pytest.fixture
def built(fake: FakeTensorRT, tmp_path: Path) -> Built:
    write_onnx(tmp_path / "model.onnx")
    return Built(fake, tmp_path / "model.onnx")


def test_a_model_is_read_built_loaded_and_run(built: Built) -> None:
    engine = built.engine()
    assert [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)] == ["input", "logits"]
    assert tuple(engine.get_tensor_shape("input")) == (-1, *SHAPE)
    assert engine.get_tensor_dtype("input") == built.trt.DataType.UINT8
    assert engine.get_tensor_mode("logits") == built.trt.TensorIOMode.OUTPUT
    assert [one[0] for one in engine.get_tensor_profile_shape("input", 0)] == [1, 2, 8]
    pictures, logits = aligned((3, *SHAPE), np.uint8), aligned((3, CLASSES), np.float32)
    pictures[:, 0, 0, 0] = [4, 0, 2]
    context = engine.create_execution_context(built.trt.ExecutionContextAllocationStrategy.STATIC)
    assert context.set_input_shape("input", (3, *SHAPE))
    assert context.infer_shapes() == []
    assert tuple(context.get_tensor_shape("logits")) == (3, CLASSES)
    assert context.set_tensor_address("input", pictures.ctypes.data)
    assert context.set_tensor_address("logits", logits.ctypes.data)
    assert context.execute_async_v3(7)
    assert logits.argmax(axis=1).tolist() == [4, 0, 2]


def test_work_runs_when_its_stream_says_on_what_is_there_then(built: Built) -> None:
    queued: list[tuple[int, Callable[[], None]]] = []
    built.fake.world.enqueue = lambda stream, work: queued.append((stream, work))
    built.fake.world.compute = lambda pictures: np.full((2, CLASSES), pictures.sum(), np.float32)
    context, pictures, logits = ready(built)
    assert context.execute_async_v3(9)
    assert np.isnan(logits).all()
    pictures[:] = 1
    [(stream, work)] = queued
    work()
    assert (stream, logits[0, 0]) == (9, pictures.size)
    assert built.fake.world.violations == []


def test_a_context_that_goes_before_its_work_is_a_violation(built: Built) -> None:
    queued: list[Callable[[], None]] = []
    built.fake.world.enqueue = lambda stream, work: queued.append(work)
    context, _pictures, _logits = ready(built)
    context.execute_async_v3(9)
    del context
    gc.collect()
    queued[0]()
    assert built.fake.world.violations == ["IExecutionContext#1 was destroyed before its queued work was done"]


def test_two_threads_in_one_context_are_a_violation(built: Built) -> None:
    context, _pictures, _logits = ready(built)

    def other_thread(stream: int, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=context.infer_shapes)
        thread.start()
        thread.join()

    built.fake.world.enqueue = other_thread
    context.execute_async_v3(9)
    assert built.fake.world.violations == ["two threads are in IExecutionContext#1 at once"]


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        ("build", lambda at: at.builder.build_serialized_network(at.network, at.config) is None),
        ("network", lambda at: at.builder.create_network(0) is None),
        ("network_unsupported", lambda at: not at.builder.is_network_supported(at.network, at.config)),
        ("profile_refused", lambda at: at.profiled() == -1),
        ("deserialize", lambda at: at.trt.Runtime(at.log).deserialize_cuda_engine(at.plan()) is None),
        ("context", lambda at: at.engine().create_execution_context() is None),
        ("input_shape", lambda at: not ready(at)[0].set_input_shape("input", (2, *SHAPE))),
        ("tensor_address", lambda at: not ready(at)[0].set_tensor_address("input", 256)),
        ("execute", lambda at: not ready(at)[0].execute_async_v3(1)),
        (
            "timing_cache",
            lambda at: not at.config.set_timing_cache(at.config.create_timing_cache(b"saved"), False),
        ),
    ],
)
def test_each_fault_fails_as_documented_and_logs(built: Built, fault: str, failing: Callable[[Built], bool]) -> None:
    if fault not in ("build", "network_unsupported"):
        assert not failing(Built(make_fake(), built.path)) or fault == "timing_cache"
    setattr(built.fake.faults, fault, True)
    assert failing(built)
    assert any("fault injected" in line for line in built.lines)


def test_a_failed_launch_leaves_the_output_as_it_was(built: Built) -> None:
    context, _pictures, logits = ready(built)
    built.fake.faults.execute = True
    assert not context.execute_async_v3(1)
    assert np.isnan(logits).all()


def test_inputs_may_be_left_unspecified_and_a_switch_of_profile_may_raise(built: Built) -> None:
    context, *_ = ready(built)
    built.fake.faults.infer_shapes = ["mask"]
    assert context.infer_shapes() == ["mask"]
    built.fake.faults.profile_switch = True
    with pytest.raises(RuntimeError, match="profile"):
        context.set_optimization_profile_async(0, 1)


def test_a_model_that_is_refused_lists_its_errors(built: Built) -> None:
    built.fake.faults.parse = [ParseFault("bad", 3, "conv1", "Conv"), ParseFault("worse", 4, "fc", "Gemm")]
    assert not built.parser.parse(built.path.read_bytes())
    errors = [built.parser.get_error(index) for index in range(built.parser.num_errors)]
    assert [(one.node(), one.node_name(), one.desc()) for one in errors] == [(3, "conv1", "bad"), (4, "fc", "worse")]
    assert len(built.lines) == 2
    built.parser.clear_errors()
    assert built.parser.num_errors == 0
    built.fake.faults.parse = []
    assert not built.parser.parse_from_file("no/such.onnx")
    assert not built.parser.parse(b"no model")


def test_what_lies_outside_the_profile_or_was_not_set_is_refused(built: Built) -> None:
    context, *_ = ready(built)
    assert not context.set_input_shape("input", (9, *SHAPE))
    assert not context.set_input_shape("logits", (1, CLASSES))
    assert not context.set_tensor_address("nothing", 256)
    assert not context.set_tensor_address("input", 257)
    fresh = context.engine.create_execution_context()
    assert fresh.infer_shapes() == ["input"]
    assert not fresh.execute_async_v3(1)


def test_plans_of_others_are_refused_with_the_reason_in_the_log(built: Built) -> None:
    plan = built.plan()
    runtime = built.trt.Runtime(built.log)
    assert runtime.deserialize_cuda_engine(b"something else") is None
    built.trt.__version__ = "11.5.0.1"
    assert runtime.deserialize_cuda_engine(plan) is None
    assert "version 11.4.0.106" in built.lines[-1]


def test_a_dynamic_network_needs_a_profile_that_is_in_order(built: Built) -> None:
    built.parser.parse_from_file(str(built.path))
    assert not built.profile
    assert built.builder.build_serialized_network(built.network, built.config) is None
    assert "no optimization profile" in built.lines[-1]
    with pytest.raises(RuntimeError):
        built.profile.set_shape("input", (4, *SHAPE), (2, *SHAPE), (8, *SHAPE))


def test_a_timing_cache_is_kept_and_one_of_another_machine_refused(built: Built) -> None:
    config = built.config
    assert not config.set_timing_cache(config.create_timing_cache(b"of another GPU"), False)
    assert config.set_timing_cache(config.create_timing_cache(b""), False)
    built.plan()
    saved = bytes(config.get_timing_cache().serialize())
    assert b"measured" in saved
    assert config.set_timing_cache(config.create_timing_cache(saved), False)


@pytest.mark.parametrize("answer", [True, False, None, "raises"])
def test_the_progress_monitor_is_told_in_another_thread_and_stops_the_build(built: Built, answer: Any) -> None:
    trt, told, threads = built.trt, list[tuple[str, str | None]](), set[int]()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            told.append((phase_name, parent_phase))
            threads.add(threading.get_ident())

        def step_complete(self, phase_name: str, step: int) -> Any:
            if answer == "raises":
                raise KeyError(phase_name)
            return answer

        def phase_finish(self, phase_name: str) -> None: ...

    built.parser.parse_from_file(str(built.path))
    built.profiled()
    monitor = Monitor()
    built.config.progress_monitor = monitor
    assert (built.builder.build_serialized_network(built.network, built.config) is not None) == (answer is True)
    assert told[0][1] is None
    assert [parent for _, parent in told[1:]] == [name for name, _ in told[:-1]]
    assert threading.get_ident() not in threads
    assert any("cancelled" in line for line in built.lines) == (answer is not True)


def test_a_monitor_that_is_not_kept_is_a_violation(built: Built) -> None:
    built.parser.parse_from_file(str(built.path))
    built.profiled()
    built.config.progress_monitor = built.trt.IProgressMonitor()
    gc.collect()
    assert built.builder.build_serialized_network(built.network, built.config) is None
    assert built.fake.world.violations == ["the progress monitor was not kept alive"]


def test_the_inspector_tells_types_only_of_a_detailed_plan(built: Built) -> None:
    information = built.trt.LayerInformationFormat.JSON
    engine = built.engine()
    assert '"DataType": "Half"' in engine.create_engine_inspector().get_engine_information(information)
    built.config.profiling_verbosity = built.trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    plan = bytes(built.builder.build_serialized_network(built.network, built.config))
    engine = built.trt.Runtime(built.log).deserialize_cuda_engine(plan)
    assert "DataType" not in engine.create_engine_inspector().get_engine_information(information)


def test_tf32_is_on_by_default(built: Built) -> None:
    flag = built.trt.BuilderFlag.TF32
    assert built.config.get_flag(flag)
    built.config.clear_flag(flag)
    assert not built.config.get_flag(flag)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda at: at.config.max_workspace_size,
        lambda at: setattr(at.config, "max_workspace_size", 1),
        lambda at: setattr(at.config, "num_optimization_profiles", 1),
        lambda at: setattr(at.engine(), "name", "other"),
        lambda at: at.builder.build_engine(at.network, at.config),
        lambda at: at.trt.BuilderFlag.FP16,
        lambda at: at.trt.Refitter,
        lambda at: at.builder.create_builder_config().create_timing_cache(b"").serialize().hex(),
    ],
)
def test_what_the_genuine_one_does_not_have_is_no_attribute(built: Built, wrong: Callable[[Built], Any]) -> None:
    with pytest.raises(AttributeError):
        wrong(built)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda at: at.trt.Builder(),
        lambda at: at.trt.Builder(object()),
        lambda at: at.trt.OnnxParser(at.builder, at.log),
        lambda at: at.trt.IBuilderConfig(),
        lambda at: at.parser.parse_from_file(at.path),
        lambda at: at.parser.parse("text"),
        lambda at: at.config.set_flag("TF32"),
        lambda at: at.builder.build_serialized_network(at.config, at.network),
        lambda at: at.builder.create_network(flag=0),
        lambda at: setattr(at.config, "builder_optimization_level", "3"),
        lambda at: setattr(at.config, "progress_monitor", print),
        lambda at: ready(at)[0].execute_async_v3(stream=1),
        lambda at: ready(at)[0].set_tensor_address("input", None),
        lambda at: ready(at)[0].set_tensor_address("input", 1.5),
        lambda at: len(at.config.create_timing_cache(b"").serialize()),
    ],
)
def test_what_the_genuine_one_does_not_take_is_a_type_error(built: Built, wrong: Callable[[Built], Any]) -> None:
    with pytest.raises(TypeError):
        wrong(built)


def test_memory_of_the_host_is_a_buffer(built: Built) -> None:
    memory = built.config.create_timing_cache(b"").serialize()
    file = io.BytesIO()
    file.write(memory)
    assert file.getvalue() == bytes(memory)
    assert memory.nbytes == len(bytes(memory))


class Misnamed(Fake):
    def execute_async_v2(self, stream_handle: int) -> None: ...


class Misparametrised(Fake):
    def execute_async_v3(self, stream: int) -> None: ...


class Writable(Fake):
    active_optimization_profile = Value(assignable=True)


class Unknown(Fake):
    max_batch_size = Value()


class Constructible(Fake):
    constructible = True


@pytest.mark.parametrize("wrong", [Misnamed, Misparametrised, Writable, Unknown, Constructible])
def test_a_fake_that_is_not_as_the_genuine_class_is_an_error(
    fake: FakeTensorRT, wrong: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = fake.world.binding.classes["IExecutionContext"]
    assert differences(IExecutionContext, genuine) == []
    assert len(differences(wrong, genuine)) == 1
    monkeypatch.setitem(sys.modules[make_fake.__module__].FAKES, "IExecutionContext", wrong)
    with pytest.raises(TypeError, match="the fake IExecutionContext"):
        make_fake()


def test_calls_assignments_and_ends_are_in_the_journal_in_order(built: Built) -> None:
    engine = built.engine()
    context = engine.create_execution_context()
    context.set_input_shape("input", (2, *SHAPE))
    call = built.fake.journal.calls[-1]
    assert (call.target, call.method, call.arguments) == (
        "IExecutionContext#1",
        "set_input_shape",
        ("input", (2, *SHAPE)),
    )
    assert built.fake.journal.of("profiling_verbosity=")
    assert "Runtime#1" in built.fake.alive()  # the engine keeps it
    before = len(built.fake.journal.destroyed())
    del engine, context
    gc.collect()
    assert built.fake.journal.destroyed()[before:] == ["IExecutionContext#1", "ICudaEngine#1", "Runtime#1"]


def test_a_network_keeps_its_parser_and_not_the_other_way(built: Built) -> None:
    parser, journal = built.parser, built.fake.journal
    del built.parser
    built.network = None
    assert journal.destroyed() == ["INetworkDefinition#1"]
    assert not parser.parse_from_file(str(built.path))
    assert built.fake.world.violations == ["the network was gone before its parser"]
    network = built.builder.create_network(0)
    built.trt.OnnxParser(network, built.log).parse_from_file(str(built.path))
    assert "OnnxParser#2" not in journal.destroyed()
    del network
    assert "OnnxParser#2" in journal.destroyed()


def test_it_is_imported_until_the_test_ends(fake: FakeTensorRT) -> None:
    import serve_app.runtime.tensorrt as package

    def loaded() -> list[object]:
        names = [name for name in sys.modules if "tensorrt" in name and not name.startswith("engine_build")]
        return [*((name, sys.modules[name]) for name in sorted(names)), *sorted(vars(package))]

    before = loaded()
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch, fake)
        import tensorrt

        from serve_app.runtime.tensorrt import log

        assert tensorrt is fake.module
        assert vars(log)["trt"] is fake.module
    assert loaded() == before
    assert "tensorrt" not in sys.modules


def test_our_own_modules_run_on_it(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, built.fake)
    from serve_app.runtime.tensorrt.execution import TensorRtExecution

    execution = TensorRtExecution(built.plan())
    assert (execution.shape, execution.classes, execution.max_batch_size) == (SHAPE, CLASSES, 8)
