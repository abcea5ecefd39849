from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine_build.cli import main
from engine_build.errors import VerificationFailed
from engine_build.verify import Comparison, check
from serve_app.manifest import Manifest, read_manifest
from tests.engine_helpers import SAMPLES, SMALL, SMALL_ENGINE, leftovers, own_engines, small_engines


def manifest_of(**changes: object) -> Manifest:
    return read_manifest(small_engines() / SMALL_ENGINE, check_files=False).model_copy(update=changes)


def compared(
    expected: list[list[float]], actual: list[list[float]], labels: list[int | None] | None = None
) -> Comparison:
    comparison = Comparison()
    comparison.add(np.float32(expected), np.float32(actual), labels or [None] * len(expected))
    return comparison


@pytest.mark.engines
def test_an_engine_that_agrees_is_recorded() -> None:
    figures = manifest_of().verify
    assert figures is not None
    assert figures.pictures >= 32
    assert figures.top1_agreement == 1.0
    assert 0 < figures.max_logit_error < 1e-2
    assert list(figures.latency_ms) == [1, 2]
    assert min(figures.latency_ms.values()) > 0


@pytest.mark.engines
def test_an_engine_that_disagrees_fails_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exported graph has other weights than the reference, as a wrong conversion would."""
    engines = own_engines(tmp_path)
    shutil.rmtree(engines / SMALL)
    (cached,) = (engines / ".cache").glob("*.onnx")
    model = onnx.load(cached)
    (head,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith("fc.weight")]
    head.CopyFrom(onnx.numpy_helper.from_array(np.flip(onnx.numpy_helper.to_array(head), 0), head.name))
    onnx.save(model, cached)
    assert main(["build", "--model", SMALL, "--untrained", "--engines-dir", str(engines)]) == 1
    assert "disagrees with torch eager" in capsys.readouterr().err
    assert leftovers(engines) == []
    assert not (engines / SMALL).exists()


@pytest.mark.engines
def test_verify_renews_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = own_engines(tmp_path)
    pictures = tmp_path / "pictures"
    shutil.copytree(SAMPLES, pictures)
    (pictures / "labels.csv").write_text("file,class_id\ncat.jpg,281\nespresso.jpg,967\n")
    command = ["verify", SMALL_ENGINE, "--engines-dir", str(engines), "--pictures", str(pictures), "--max-batch", "1"]
    assert main(command) == 0
    figures = read_manifest(engines / SMALL_ENGINE).verify
    assert figures is not None
    assert (figures.pictures, figures.picture_source) == (4, "folder pictures")
    assert figures.accuracy is not None
    assert figures.accuracy.pictures == 2
    assert list(figures.latency_ms) == [1]
    assert "UNTRAINED" in capsys.readouterr().out
    assert {path.name for path in (engines / SMALL_ENGINE).iterdir()} == {"manifest.json", "model.xml", "model.bin"}


def rewrite(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_text(manifest.model_dump_json())


@pytest.mark.engines
def test_verify_refuses_other_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = own_engines(tmp_path) / SMALL_ENGINE
    weights = manifest_of().weights
    rewrite(folder, manifest_of(weights=weights.model_copy(update={"sha256": "0" * 64})))
    assert main(["verify", str(folder)]) == 1
    assert "was built from other weights" in capsys.readouterr().err
    rewrite(folder, manifest_of(weights=weights.model_copy(update={"source": "file", "name": "mine.pt"})))
    assert main(["verify", str(folder)]) == 1
    assert "built from the local file mine.pt; pass it with --weights FILE" in capsys.readouterr().err


@pytest.mark.engines
def test_fp32_must_agree_everywhere_but_in_ties() -> None:
    manifest = manifest_of()
    check(compared([[1, 2], [2, 1]], [[1, 2], [2, 1]]), manifest)
    check(compared([[1.00001, 1]], [[1, 1.00001]]), manifest)
    for actual in ([[1.004, 1]], [[float("nan"), 1]], [[1, 1.5]]):
        with pytest.raises(VerificationFailed, match="disagrees with torch eager"):
            check(compared([[1, 1.003]], actual), manifest)


@pytest.mark.engines
def test_int8_must_mostly_agree_if_trained() -> None:
    half = compared([[0, 1], [0, 1]], [[0, 1], [1, 0]])
    with pytest.raises(VerificationFailed, match="1 of 2 pictures"):
        check(half, manifest_of(precision="int8", trained=True))
    check(half, manifest_of(precision="int8", trained=False))
    with pytest.raises(VerificationFailed):
        check(compared([[0, 1]], [[0, float("inf")]]), manifest_of(precision="int8", trained=False))


def test_accuracy_counts_labelled_pictures_only() -> None:
    logits = [[9, 1, 2, 3, 4], [1, 9, 2, 3, 4], [1, 2, 9, 3, 4]]
    accuracy = compared(logits, logits, [0, 4, None]).accuracy()
    assert accuracy is not None
    assert (accuracy.pictures, accuracy.top1, accuracy.top3, accuracy.reference_top1) == (2, 0.5, 1.0, 0.5)
