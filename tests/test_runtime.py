from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import EngineError
from serve_app.manifest import Manifest
from serve_app.runtime import Runtime, available_cores, load_runtime
from tests.fakes import SHAPE, manifest
from tests.tiny_engine import WEIGHTS, expected, make_engine


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
