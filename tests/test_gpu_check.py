from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.gpu_check import bench, build, here
from scripts.gpu_check.checks import Checks, Data, Skip, Wrong
from scripts.gpu_check.cli import main, parsed, planned
from scripts.gpu_check.gpus import Peak
from serve_app.errors import GpuMissing
from serve_app.runtime import GpuOptions
from serve_app.types import GpuTimes
from tests.gpu_check_helpers import command, options, prepared, rehearse

QUIET = ("--precisions", "fp32", "--no-serve")
PEAK = Peak("test", fp32=1e-3, fp16=1.0, int8=1.0, memory_gb_s=1000.0, source="https://example.org", note="invented")


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def raising(error: BaseException) -> Any:
    def action(*_: object) -> Data:
        raise error

    return action


def test_checks_go_on_and_keep_what_came_of_each() -> None:
    said: list[str] = []
    checks = Checks(said.append)
    assert checks.do("a", "good", lambda: {"figure": 1}) == {"figure": 1}
    assert checks.do("a", "left out", raising(Skip("no GPU"))) is None
    assert checks.do("b", "wrong", raising(Wrong("too slow", {"ms": 9}))) is None
    assert checks.do("b", "broken", raising(ZeroDivisionError("by nought"))) is None
    assert [one.status for one in checks.outcomes] == ["passed", "skipped", "failed", "failed"]
    assert [one.reason for one in checks.outcomes] == ["", "no GPU", "too slow", "by nought"]
    assert checks.outcomes[2].data == {"ms": 9}
    assert "ZeroDivisionError" in checks.outcomes[3].data["traceback"]
    assert "b: wrong ..." in said


@pytest.mark.parametrize(
    ("errors", "succeeded"),
    [([None], True), ([None, Skip("x")], True), ([None, Wrong("x")], False), ([Skip("x")], False), ([], False)],
)
def test_a_run_succeeds_if_something_passed_and_nothing_failed(errors: list[Exception | None], succeeded: bool) -> None:
    checks = Checks(lambda text: None)
    for error in errors:
        checks.do("a", "b", raising(error) if error else dict)
    assert checks.succeeded() is succeeded


def test_an_interrupt_is_kept_and_ends_the_run() -> None:
    checks = Checks(lambda text: None)
    checks.do("a", "good", dict)
    with pytest.raises(KeyboardInterrupt):
        checks.do("a", "long", raising(KeyboardInterrupt()))
    assert checks.outcomes[1].reason == "interrupted by Ctrl-C"
    assert not checks.succeeded()


@pytest.mark.skipif(has_driver(), reason="this machine has a GPU driver")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("gpu_check: this machine has no NVIDIA driver")
    assert "--stand-in" in line
    assert not (tmp_path / "out").exists()
    with pytest.raises(GpuMissing):
        here.gpu()


def test_a_rehearsal_does_every_step_and_says_what_it_is(tmp_path: Path) -> None:
    prepared(tmp_path / "engines")
    status, page, raw = rehearse(tmp_path, *QUIET)
    assert status == 0
    assert page.startswith(
        "# Rehearsal of the GPU check: a CPU stood in for the GPU, and no figure here is about a GPU"
    )
    done = [(one["step"], one["name"]) for one in raw["outcomes"]]
    assert done == list(planned(options(tmp_path, *QUIET)))
    skipped = {f"{one['step']} {one['name']}" for one in raw["outcomes"] if one["status"] == "skipped"}
    assert skipped == {"machine GPU", "machine GPU memory", "compile fp32", "verify fp32 refusals"}
    assert raw["about"]["rehearsal"] is True
    assert raw["about"]["not_reached"] == []
    assert "- compile, fp32: compiling needs a GPU" in page
    assert "| fp32 | 6 | 100.0% |" in page


def test_the_bench_measures_every_batch_size_three_ways(tmp_path: Path) -> None:
    engine = prepared(tmp_path / "engines")
    data = bench.bench(options(tmp_path, *QUIET), engine, PEAK)
    assert [row["batch"] for row in data["rows"]] == [1, 2]
    assert set(data["start_s"]) == {"one", "two", "graphs"}
    for row in data["rows"]:
        assert all(row[name] > 0 for name in ("run_ms", "call_ms", "graph_run_ms", "one_per_s", "two_per_s"))
        assert row["call_ms"] >= row["run_ms"]
        assert row["floor_ms"] == pytest.approx(2 * 4 * 4 * 3 * 5 * row["batch"] / 1e9 * 1e3)
        assert row["share"] == pytest.approx(row["floor_ms"] / min(row["run_ms"], row["graph_run_ms"]))
        assert row["copy_in_gb_s"] == pytest.approx(row["batch"] * 48 / row["copy_in_ms"] / 1e6)


def test_an_engine_that_fails_while_two_call_it_is_not_measured(tmp_path: Path) -> None:
    engine = prepared(tmp_path / "engines")
    runtime = engine.open(GpuOptions(2, "stand_in"))
    runtime.close()
    runtime.buffers = (np.zeros((2, 4, 4, 3), np.uint8),)
    with pytest.raises(Exception, match="the engine was closed"):
        bench._per_s(runtime, 1, 0.1)


def test_the_middle_of_several_times_is_taken_part_by_part() -> None:
    seen = [GpuTimes(2, 4, 1.0, 30.0, 5.0), GpuTimes(2, 4, 3.0, 10.0, 4.0), GpuTimes(2, 4, 2.0, 20.0, 6.0)]
    assert bench.middle(seen) == GpuTimes(2, 4, 2.0, 20.0, 5.0)


def test_an_engine_with_other_answers_fails_and_the_rest_is_done(tmp_path: Path) -> None:
    prepared(tmp_path / "engines", wrong=True)
    status, page, raw = rehearse(tmp_path, *QUIET)
    assert status == 1
    failed = [one for one in raw["outcomes"] if one["status"] == "failed"]
    assert [one["name"] for one in failed] == ["fp32 second process"]
    assert "its logits differ from the ONNX's" in failed[0]["reason"]
    assert "## Failures\n\n### verify, fp32 second process" in page
    assert [one["status"] for one in raw["outcomes"] if one["step"] == "bench"] == ["passed"]


def test_an_engine_that_is_not_there_takes_only_its_own_steps_along(tmp_path: Path) -> None:
    prepared(tmp_path / "engines")
    status, page, raw = rehearse(tmp_path, "--precisions", "fp32,fp16", "--no-serve")
    assert status == 1
    of_fp16 = {
        one["name"]: one for one in raw["outcomes"] if one["name"].startswith("fp16") and one["step"] != "prepare"
    }
    assert {one["reason"] for one in of_fp16.values()} == {"it was not prepared"}
    assert "- verify, fp16 answers: it was not prepared" in page
    assert "## Speed, fp32" in page
    assert raw["about"]["not_reached"] == []


def test_an_interrupted_run_still_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path / "engines")
    monkeypatch.setattr(bench, "bench", raising(KeyboardInterrupt()))
    status, page, raw = rehearse(tmp_path, "--precisions", "fp32")
    assert status == 130
    assert "**It was interrupted; what came before is complete.**" in page
    assert "- bench, fp32: interrupted by Ctrl-C" in page
    assert "- serve, configs/prod.yaml: not reached" in page
    assert raw["about"]["not_reached"] == ["serve, configs/prod.yaml"]
    assert "| verify | fp32 answers | passed |" in page


def test_int8_without_photographs_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="pass --calibration DIR"):
        build.prepare(options(tmp_path, "--model", "resnet18"), "int8")


def test_photographs_are_compared_too_and_their_labels_counted(tmp_path: Path) -> None:
    from engine_build.pictures import sample_pictures

    photographs = tmp_path / "photographs"
    photographs.mkdir()
    names = [path.name for path in sorted({one.path for one in sample_pictures().items})]
    for path in {one.path for one in sample_pictures().items}:
        (photographs / path.name).write_bytes(path.read_bytes())
    (photographs / "labels.csv").write_text("file,class_id\n" + f"{names[0]},2\n")
    prepared(tmp_path / "engines")
    status, _, raw = rehearse(tmp_path, *QUIET, "--images", str(photographs))
    assert status == 0
    [found] = [one["data"] for one in raw["outcomes"] if one["name"] == "fp32 answers"]
    assert (found["pictures"], found["labelled"]) == (6 + len(names), 1)
    assert found["top1"] == found["top1_on_cpu"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--precisions", "fp64"], "fp64 is none of fp32, fp16, int8"),
        (["--images", "nowhere"], "there is no folder nowhere"),
        (["--max-batch", "4", "--opt-batch", "8"], "must be 1 <= opt <= max <= 512"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed([*command(tmp_path), *arguments])
    assert told in capsys.readouterr().err


def test_precisions_come_in_order_and_batches_fit_the_device(tmp_path: Path) -> None:
    assert parsed(["--precisions", "int8,fp32"]).precisions == ("fp32", "int8")
    assert (parsed([]).max_batch, parsed([]).opt_batch) == (64, 16)
    assert (parsed(["--stand-in"]).max_batch, parsed(["--stand-in"]).opt_batch) == (4, 1)
