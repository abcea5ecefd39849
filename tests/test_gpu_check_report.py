from __future__ import annotations

from typing import Any

from scripts.gpu_check.checks import Outcome, Status
from scripts.gpu_check.report import page, summary, table

ABOUT: dict[str, Any] = {
    "rehearsal": False,
    "interrupted": False,
    "not_reached": [],
    "model": "resnet18",
    "command": "scripts/gpu_check --model resnet18",
    "started_utc": "2026-01-01T00:00:00+00:00",
    "seconds": 61.2,
}
PEAK = {
    "fp32": 30.3,
    "fp16": 121,
    "int8": None,
    "memory_gb_s": 300,
    "source": "https://example.org/l4",
    "note": "half of a figure",
}
ROW = {
    "batch": 3,
    "ran_as": 4,
    "copy_in_ms": 0.04567,
    "run_ms": 0.8,
    "copy_out_ms": 0.01,
    "call_ms": 1.2,
    "graph_run_ms": None,
    "one_per_s": 2500.4,
    "two_per_s": 3100.0,
    "graphs_per_s": None,
    "copy_in_gb_s": 9.876,
    "floor_ms": 0.2,
    "layered_ms": 0.5,
    "bound": "arithmetic",
    "share": 0.25,
}
NETWORK = {"macs_by_precision": {"fp16": 1_814_073_344}}


ANSWERS: dict[str, Any] = {
    **{"pictures": 324, "same_first_class": 0.997, "mean_error": 0.0031, "max_error": 0.02, "scale": 21.5},
    **{"labelled": 300, "top1": 0.7, "top1_on_cpu": 0.703},
}
LOAD = {"connections": 64, "pictures_per_s": 812.3, "p50_ms": 70.1, "p99_ms": None, "shed": 1, "errors": {"x": 2}}
SERVED: dict[str, Any] = {
    **{"start_s": 31.0, "photographs": 64, "same_first_class": 1.0, "max_score_difference": 0.0123},
    "load": [LOAD],
}


def outcome(step: str, name: str, status: Status = "passed", reason: str = "", **data: Any) -> Outcome:
    return Outcome(step, name, status, reason, 1.25, data)


FULL = [
    outcome("machine", "GPU", gpu="NVIDIA L4", compute_capability="8.9", nvidia_smi={"power.limit": "72 W"}),
    outcome("machine", "GPU memory", memory_gb_s=271.23456),
    outcome("prepare", "fp16", onnx_bytes=23_400_000, trained=False, network=NETWORK),
    outcome("compile", "fp16", plan_bytes=24_000_000, build_s=92.5, layer_types={"fp16": 22, "fp32": 2}),
    outcome("verify", "fp16 answers", **ANSWERS),
    outcome("verify", "fp16 refusals", "failed", "half a plan | is loaded", traceback="Traceback\n  line\n"),
    outcome("bench", "fp16", rows=[ROW], peak=PEAK, seconds=2.0, runs=50),
    outcome("compile", "int8", "skipped", "int8 needs photographs"),
    outcome("serve", "configs/prod.yaml", **SERVED),
]


def test_the_report_of_a_gpu_names_it_and_has_every_section() -> None:
    text = page(FULL, ABOUT)
    assert text.startswith("# GPU check: NVIDIA L4\n")
    assert "resnet18, 2026-01-01T00:00:00+00:00, 61 s: 7 passed, 1 failed, 1 skipped." in text
    assert "Rehearsal" not in text
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        *("## Steps", "## Not run", "## Failures", "## Machine", "## Engines", "## Answers"),
        *("## Speed, fp16", "## Service, configs/prod.yaml"),
    ]


def test_failures_are_told_with_their_traceback_and_what_was_left_out_with_its_reason() -> None:
    text = page(FULL, ABOUT)
    assert "### verify, fp16 refusals\n\nhalf a plan | is loaded\n\n```\nTraceback\n  line\n```" in text
    assert "| verify | fp16 refusals | failed | 1.2 | half a plan \\| is loaded |" in text
    assert "- compile, int8: int8 needs photographs" in text


def test_figures_are_where_they_belong() -> None:
    text = page(FULL, ABOUT)
    assert "- measured memory_gb_s: 271" in text
    assert "- nvidia_smi: power.limit 72 W" in text
    assert "| fp16 | 23.4 | 24.0 | 92.5 | 22 fp16, 2 fp32 | 1.814 G in fp16 | untrained: answers mean nothing |" in text
    assert "| fp16 | 324 | 99.7% | 0.0031 | 0.02 | 21.5 | 70.0% | 70.3% | 300 |" in text
    assert "| 3 | 4 | 0.0457 | 0.8 | 0.01 | 1.2 |  | 2500 | 3100 |  | 9.88 | 0.2 | arithmetic | 25.0% | 0.5 |" in text
    assert "Padded to a larger batch, which is faster: 3." in text
    assert "30.3 / 121 / unknown dense TFLOPS in fp32 / fp16 / int8" in text
    assert "(half of a figure); by https://example.org/l4" in text
    assert "| 64 | 812 | 70.1 |  | 3 |" in text


def test_a_gpu_without_a_known_peak_has_no_floor() -> None:
    row = ROW | {"floor_ms": None, "layered_ms": None, "bound": None, "share": None, "ran_as": 3}
    text = page([outcome("bench", "fp16", rows=[row], peak=None, seconds=2.0, runs=50)], ABOUT)
    assert "There is no floor: this device is not in scripts/gpu_check/gpus.py." in text
    assert "No batch size was padded." in text
    assert text.startswith("# GPU check: unknown GPU")


def test_sections_of_what_was_not_done_are_left_out() -> None:
    failed = outcome("prepare", "fp32", "failed", "no engine")
    text = page([failed], ABOUT | {"interrupted": True, "not_reached": ["bench, fp32"]})
    assert "**It was interrupted" in text
    assert "- bench, fp32: not reached" in text
    assert "## Engines" not in text
    assert "## Answers" not in text


def test_a_run_without_gaps_says_so() -> None:
    assert "## Not run\n\nNothing was left out." in page([outcome("machine", "software", python="3.11")], ABOUT)


def test_tables_and_sums() -> None:
    assert table(["a", "b"], []) == ""
    assert table(["a", "b"], [(1, None), ("x\ny", "p|q")]) == "| a | b |\n|---|---|\n| 1 |  |\n| x y | p\\|q |"
    assert summary([]) == "0 passed, 0 failed, 0 skipped"
