from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import EngineError, GpuFailed, GpuMissing
from serve_app.manifest import Manifest
from serve_app.runtime import (
    GpuOptions,
    OverlappingRuntime,
    Runtime,
    RuntimeInfo,
    available_cores,
    load_plan,
    load_runtime,
)
from serve_app.runtime.tensorrt import gpu_packages
from tests.fakes import SHAPE, manifest
from tests.gpu_fakes import FakeDevice, FakeExecution, fits
from tests.test_plans import HERE, KEY, add_plan, with_change
from tests.tiny_engine import WEIGHTS, expected, make_engine, make_gpu_engine


def torchscript_engine(folder: Path) -> tuple[Path, Manifest]:
    import torch

    class Tiny(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1).float() @ torch.from_numpy(WEIGHTS)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Tiny(), torch.zeros((2, *SHAPE), dtype=torch.uint8)).save(str(folder / "model.pt"))
    return folder, manifest(backend="torchscript", artifact="model.pt", files={"model.pt": "0" * 64})


@pytest.fixture(params=["onnx", "torchscript"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Runtime:
    folder, written = make_engine(tmp_path) if request.param == "onnx" else torchscript_engine(tmp_path)
    return load_runtime(folder, written, threads=1, inference_precision="fp32")


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def test_every_batch_size_in_any_order(runtime: Runtime) -> None:
    for count in (3, 1, 7, 2, 7):
        pictures = noise(count, count)
        logits = runtime.infer(pictures)
        assert (logits.dtype, logits.shape) == (np.float32, (count, 5))
        np.testing.assert_allclose(logits, expected(pictures), rtol=1e-4, atol=1e-2)


def test_the_input_buffer_may_be_reused_and_results_are_kept(runtime: Runtime) -> None:
    buffer = noise(4)
    first = runtime.infer(buffer[:2])
    before = first.copy()
    buffer[:] = noise(4, seed=1)
    second = runtime.infer(buffer[:4])
    np.testing.assert_array_equal(first, before)
    np.testing.assert_allclose(second, expected(buffer), rtol=1e-4, atol=1e-2)


def test_a_closed_engine_fails_loudly(runtime: Runtime) -> None:
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        runtime.infer(noise(1))


def test_what_it_is(runtime: Runtime) -> None:
    assert runtime.info.inference_precision == "fp32"
    assert runtime.info.threads == 1
    assert runtime.info.backend in {"openvino", "torchscript"}


@pytest.mark.parametrize("backend", ["openvino", "torchscript"])
def test_a_file_that_is_no_engine_is_refused_by_name(backend: str, tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("not a model")
    with pytest.raises(EngineError, match=f"fake/{backend}-fp32 .* does not load"):
        load_runtime(tmp_path, manifest(backend=backend), threads=1)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_cores_are_capped_by_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == (cores or 6)


def test_only_an_engine_with_all_of_it_counts_as_overlapping(runtime: Runtime) -> None:
    assert not isinstance(runtime, OverlappingRuntime)
    device = FakeDevice().make()
    with device.current():
        assert len(fits(device, FakeExecution(device))) == 2  # what the fakes are is checked by the type checker
    assert RuntimeInfo("fake", "fp32", 1).device == "CPU"


no_driver = pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver")


@no_driver
def test_without_a_driver_a_gpu_engine_says_so_in_one_line(tmp_path: Path) -> None:
    folder, written = make_gpu_engine(tmp_path)
    with pytest.raises(GpuMissing) as caught:
        load_runtime(folder, written, threads=1)
    assert str(caught.value).startswith("this machine has no NVIDIA driver (libcuda.so.1)")
    assert "\n" not in str(caught.value)
    plan = add_plan(folder, KEY)
    with pytest.raises(GpuMissing, match="--stand-in-gpus 1"):
        load_plan(plan, written, GpuOptions())


def test_no_gpu_package_is_imported_before_it_is_needed() -> None:
    code = "import sys, serve_app.runtime, serve_app.engines, engine_build.cli, serve_app.runtime.tensorrt;"
    code += "print([name for name in ('tensorrt', 'pycuda', 'cuda') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one."""
    monkeypatch.setattr("serve_app.runtime.tensorrt.ctypes.CDLL", lambda name: None)


@pytest.mark.usefixtures("driver")
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with (
        pytest.raises(GpuMissing, match=r"pycuda is not installed or does not load .* 'Use a GPU' in README\.md"),
        gpu_packages(),
    ):
        import pycuda.driver  # noqa: F401


@pytest.mark.usefixtures("driver")
def test_what_a_gpu_library_raises_means_no_gpu_and_other_errors_stay() -> None:
    error = type("LogicError", (Exception,), {"__module__": "pycuda._driver"})
    with pytest.raises(GpuMissing, match=r"no NVIDIA GPU that CUDA can use \(no device\).*nvidia-smi"), gpu_packages():
        raise error("no device")
    with pytest.raises(ZeroDivisionError), gpu_packages():
        raise ZeroDivisionError
    with pytest.raises(GpuFailed, match="refused"), gpu_packages():
        raise GpuFailed("refused")


@pytest.mark.parametrize(
    ("most", "profile", "message"),
    [
        (65, {}, "takes batches of 1 to 64, and batching.max_batch_size is 65; lower it, or compile again"),
        (64, {"profile.min_batch": 2}, "takes batches of 2 to 64"),
    ],
)
def test_a_plan_for_other_batches_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, profile: dict[str, int], message: str
) -> None:
    folder, written = make_gpu_engine(tmp_path, precision="fp16")
    key = KEY.model_copy(update={"onnx_sha256": written.files["model.onnx"]})
    for name, value in profile.items():
        key = with_change(key, name, value)
    add_plan(folder, key)
    monkeypatch.setattr("serve_app.runtime.tensorrt.machine.this_machine", lambda: HERE)
    with pytest.raises(EngineError, match=message):
        load_runtime(folder, written, threads=1, gpu=GpuOptions(most))


def test_a_plan_that_does_not_run_is_to_be_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, written = make_gpu_engine(tmp_path, precision="fp16")
    add_plan(folder, KEY.model_copy(update={"onnx_sha256": written.files["model.onnx"]}))
    monkeypatch.setattr("serve_app.runtime.tensorrt.machine.this_machine", lambda: HERE)

    def refuse(plan: Path, manifest: Manifest, gpu: GpuOptions) -> None:
        raise GpuFailed("no context", ["out of memory"])

    monkeypatch.setattr("serve_app.runtime.load_plan", refuse)
    with pytest.raises(EngineError) as caught:
        load_runtime(folder, written, threads=1, gpu=GpuOptions(64))
    assert str(caught.value).endswith(
        f"does not run on this GPU: no context; TensorRT said: out of memory; compile it here again: "
        f"engine-build compile {folder} --force"
    )
