"""gpu_check as on a GPU: the genuine pycuda on a stand-in for the driver, and a fake TensorRT. Collected by
test_gpu_check_fake.py only, which runs it in a process of its own."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import fakecuda

cuda = fakecuda.load()

from scripts.gpu_check.cli import main, parsed, planned  # noqa: E402
from tests.gpu.fake_tensorrt import FakeTensorRT, install, make_fake  # noqa: E402
from tests.gpu_check_helpers import prepared  # noqa: E402
from tests.tiny_engine import expected  # noqa: E402


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    cuda.reset()
    cuda.device("NVIDIA L4")
    made = make_fake()
    install(monkeypatch, made)
    made.world.enqueue = lambda stream, work: cuda.enqueue(stream, work) == 0
    made.world.compute = expected
    return made


def command(root: Path) -> list[str]:
    places = ["--engines-dir", str(root / "engines"), "--out", str(root / "out")]
    return ["--quick", "--model", "fake", "--max-batch", "4", "--precisions", "fp32", "--no-serve", *places]


def run(root: Path) -> tuple[int, str, dict[str, Any]]:
    """Exit status, report.md, and the steps of report.json by name."""
    status = main(command(root))
    outcomes = json.loads((root / "out/report.json").read_text())["outcomes"]
    return status, (root / "out/report.md").read_text(), {f"{one['step']} {one['name']}": one for one in outcomes}


def test_every_step_that_needs_a_gpu_passes_and_gives_it_back(fake: FakeTensorRT, tmp_path: Path) -> None:
    prepared(tmp_path / "engines")
    _, page, steps = run(tmp_path)
    assert list(steps) == [f"{step} {name}" for step, name in planned(parsed(command(tmp_path)))]
    # Another process has the driver, but not the fake TensorRT.
    assert {name for name, one in steps.items() if one["status"] != "passed"} == {"verify fp32 second process"}
    assert page.startswith("# GPU check: NVIDIA L4\n")
    assert "Rehearsal" not in page
    gc.collect()
    assert fake.world.violations == []
    cuda.report().check()


def test_what_the_gpu_says_is_in_the_report(fake: FakeTensorRT, tmp_path: Path) -> None:
    cuda.times(htod=2, kernel=0.5, dtoh=0.25, dtod=1)
    prepared(tmp_path / "engines")
    _, page, steps = run(tmp_path)
    assert steps["machine GPU"]["data"]["peak"]["fp16"] == 121
    assert steps["machine GPU memory"]["data"]["memory_gb_s"] == pytest.approx(2 * 256 * 2**20 / 1e6)
    assert steps["compile fp32"]["data"]["layer_types"] == {"fp32": 1}
    one, four = steps["bench fp32"]["data"]["rows"]
    for row in (one, four):
        assert (row["copy_in_ms"], row["run_ms"], row["copy_out_ms"]) == (2, 0.5, 0.25)
        assert row["graph_run_ms"] == 0.5
        assert row["bound"] == "memory"
        assert row["share"] == pytest.approx(row["floor_ms"] / 0.5)
    assert set(steps["verify fp32 refusals"]["data"]) == {"gpu", "tensorrt", "onnx_sha256", "cut short"}
    assert "30.3 / 121 / 242 dense TFLOPS" in page


def test_a_gpu_that_answers_otherwise_fails(fake: FakeTensorRT, tmp_path: Path) -> None:
    prepared(tmp_path / "engines")
    assert main(command(tmp_path)) == 1  # the second process
    fake.world.compute = lambda pictures: expected(pictures) * 2
    status, _, steps = run(tmp_path)
    assert status == 1
    assert "its logits differ from the ONNX's" in steps["verify fp32 answers"]["reason"]
    assert steps["verify fp32 answers"]["data"]["pictures"] == 6
    assert steps["bench fp32"]["status"] == "passed"


def test_what_does_not_compile_is_not_run(fake: FakeTensorRT, tmp_path: Path) -> None:
    fake.faults.build = True
    prepared(tmp_path / "engines")
    status, page, steps = run(tmp_path)
    assert status == 1
    assert "TensorRT compiled nothing" in steps["compile fp32"]["reason"]
    assert steps["bench fp32"]["reason"] == "it was not compiled"
    assert "- verify, fp32 answers: it was not compiled" in page
