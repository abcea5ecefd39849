from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine_build.export import export_onnx
from engine_build.reference import build_reference
from engine_build.weights import official_weights
from engine_build.zoo import PACKAGED, model_spec
from scripts.accuracy import Labelled, read_labels
from scripts.typed_accuracy import PRECISIONS, Row, compare, measure, report
from tests.engine_helpers import images_dir


@pytest.mark.engines
def test_half_loses_no_more_than_a_third_of_a_point_and_int8_no_more_than_one(tmp_path: Path) -> None:
    spec = model_spec(PACKAGED)
    reference = build_reference(
        spec.architecture, spec.input, len(spec.labels), official_weights(spec, tmp_path / "weights")
    )
    export_onnx(reference, spec.input, tmp_path / "exported.onnx")
    rows = compare(tmp_path / "exported.onnx", spec.input, read_labels(images_dir()), tmp_path)
    assert [(row.precision, row.pictures) for row in rows] == [(precision, 200) for precision in PRECISIONS]
    fp32, fp16, int8 = rows
    assert fp32.top1 >= 0.86
    assert fp32.top1 - fp16.top1 <= 0.003
    assert fp32.top1 - int8.top1 <= 0.0101
    assert fp16.agreement >= 0.99
    assert int8.agreement >= 0.97
    assert fp16.megabytes < 0.55 * fp32.megabytes


def test_shares_are_of_the_pictures_and_of_float32s_answers(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(bytes(2_500_000))
    base = np.array([[9, 1, 0, 0], [9, 1, 0, 0], [0, 1, 2, 3], [0, 1, 2, 3]], np.float32)
    logits = np.array([[9, 1, 0, 0], [1, 9, 5, 3], [0, 1, 2, 3], [0, 1, 2, 3]], np.float32)
    labelled = [Labelled(tmp_path, class_id) for class_id in (0, 2, 3, 0)]
    row = measure("int8", tmp_path / "x.onnx", logits, base, labelled)
    assert row == Row("int8", 4, 0.5, 0.75, 0.75, 2.5)


def test_the_table_compares_with_float32() -> None:
    rows = [Row("fp32", 200, 0.87, 0.94, 1.0, 18.55), Row("int8", 200, 0.865, 0.935, 0.99, 9.44)]
    lines = report(rows, "net", trained=True).splitlines()
    assert lines[0] == "net, typed ONNX by onnxruntime on the CPU"
    assert lines[-2:] == [
        "| fp32 | 200 | 0.870 | 0.940 | +0.0 points | 1.000 | 18.6 |",
        "| int8 | 200 | 0.865 | 0.935 | -0.5 points | 0.990 | 9.4 |",
    ]


def test_an_untrained_model_has_agreement_alone() -> None:
    lines = report([Row("fp32", 200, 0.0, 0.0, 1.0, 18.5)], "net", trained=False).splitlines()
    assert lines[0].endswith("untrained: only the agreement says something")
    assert lines[-1] == "| fp32 | 200 |  |  |  | 1.000 | 18.5 |"
    assert lines[-1].count("|") == lines[-2].count("|")
