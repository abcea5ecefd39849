"""What `engine-build ensure` finds missing, of one model and of several, with versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from engine_build.cli import main
from engine_build.ensure import missing_engines, present_engine
from engine_build.errors import BuildError
from engine_build.request import BuildRequest
from engine_build.store import EngineId
from tests.test_plans import HERE
from tests.tiny_engine import make_engine, make_gpu_engine


def config(folder: Path, **args: object) -> Path:
    """A configuration with these `args`, whose engines are in `folder`."""
    engine = {"engines_dir": str(folder), "backend": "onnx", **args.pop("engine", {})}  # type: ignore[dict-item]
    application = {"import_path": "serve_app.app:build", "args": {"engine": engine, **args}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}, sort_keys=False))
    return path


def missing(path: Path) -> list[EngineId]:
    return [request.engine_id() for request, _ in missing_engines(path, path.parent)]


def test_each_model_has_its_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_engine(tmp_path, "birds", version=2)
    make_engine(tmp_path, "cats")
    models = {
        "birds": {"engine": {"version": 2}},
        "also-cats": {"engine": {"model": "cats"}, "preprocess": {"mode": "fast"}},
        "resnet18": {"batching": {"max_batch_size": 4}},
        "small": {"engine": {"model": "shufflenet_v2_x0_5", "backend": "openvino", "version": 3}},
    }
    found = missing_engines(config(tmp_path, models=models), tmp_path)
    assert [(request.engine_id(), request.max_batch) for request, _ in found] == [
        (EngineId("resnet18", "onnx", "fp32"), 4),
        (EngineId("shufflenet_v2_x0_5", "openvino", "fp32", 3), 16),
    ]
    said = capsys.readouterr().out
    assert f"engine birds@2/onnx-fp32 is ready in {tmp_path}" in said
    assert "engine cats/onnx-fp32 is ready" in said


def test_one_engine_for_two_models_is_built_once(tmp_path: Path) -> None:
    models = {"exact": {}, "fast": {"preprocess": {"mode": "fast"}}}
    for model in models.values():
        model["engine"] = {"model": "resnet18"}
    assert missing(config(tmp_path, models=models)) == [EngineId("resnet18", "onnx", "fp32")]


def test_what_only_a_person_can_build_is_said_at_once_before_any_build(tmp_path: Path) -> None:
    models = {
        "resnet18": {},
        "birds": {"engine": {"version": 2}},
        "cats": {},
        "efficientnet_lite0": {"engine": {"backend": "openvino", "precision": "int8"}},
    }
    with pytest.raises(BuildError) as caught:
        missing(config(tmp_path, models=models))
    said = str(caught.value)
    assert "engine birds@2/onnx-fp32 is not built; build it with: engine-build build" in said
    assert "--version 2 --checkpoint WEIGHTS.pt --arch ARCHITECTURE --labels LABELS.txt --name birds" in said
    assert "--name cats" in said
    assert "--model efficientnet_lite0 --calibration DIR" in said
    assert "resnet18" not in said


def test_another_version_is_not_the_one_that_is_served(tmp_path: Path) -> None:
    make_engine(tmp_path, "resnet18")
    assert missing(config(tmp_path, engine={"model": "resnet18"})) == []
    assert missing(config(tmp_path, engine={"version": 2})) == [EngineId("auto", "onnx", "fp32", 2)]
    request = BuildRequest("resnet18", "onnx", "fp32", tmp_path, tmp_path)
    assert present_engine(request) == tmp_path / "resnet18" / "onnx-fp32"
    make_engine(tmp_path, "efficientnet_lite0", version=2)
    assert missing(config(tmp_path, engine={"version": 2})) == []


def test_a_prepared_engine_of_ones_own_is_compiled_and_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.runtime.tensorrt.machine.this_machine", lambda: HERE)
    folder, _ = make_gpu_engine(tmp_path, "birds")
    compiled: list[Path] = []
    monkeypatch.setattr("engine_build.cli._run_compile", lambda folder, _: compiled.append(folder))
    path = config(tmp_path, engine={"model": "birds", "backend": "tensorrt"})
    assert main(["ensure", "--config", str(path)]) == 0
    assert compiled == [folder]
