from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine_build.export import export_onnx
from engine_build.pictures import sample_batch
from engine_build.reference import Reference, build_reference
from engine_build.torchscript import save_torchscript
from engine_build.weights import untrained_weights
from engine_build.zoo import custom_spec, input_spec
from serve_app.runtime.openvino import OpenVinoRuntime
from tests.engine_helpers import SMALL

SPEC = custom_spec("any", SMALL, tuple("abcdefg"))


def test_normalisation_is_that_of_torchvision() -> None:
    from torchvision.transforms.functional import normalize

    spec = input_spec("resnet18")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = normalize(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255, list(spec.mean), list(spec.std))
    actual = Reference(torch.nn.Identity(), spec)(torch.from_numpy(pictures))
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2", "efficientnet_lite0"])
def test_untrained_models_tell_pictures_apart(architecture: str) -> None:
    """Else any engine would agree with them, and a comparison would prove nothing."""
    spec = custom_spec("any", architecture, tuple(map(str, range(50))))
    reference = build_reference(architecture, spec.input, 50, untrained_weights(spec))
    logits = reference.infer(sample_batch(spec.input))
    assert len(set(logits.argmax(1))) >= 8
    assert 0.5 < logits.std(axis=0).mean() < 2


@pytest.mark.engines
def test_onnx_takes_any_batch_and_agrees(tmp_path: Path) -> None:
    reference = build_reference(SMALL, SPEC.input, 7, untrained_weights(SPEC))
    export_onnx(reference, SPEC.input, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    runtime = OpenVinoRuntime(tmp_path / "model.onnx", 2, "fp32")
    for count in (1, 3):
        pictures = sample_batch(SPEC.input)[:count]
        np.testing.assert_allclose(runtime.infer(pictures), reference.infer(pictures), atol=1e-3)


@pytest.mark.engines
def test_torchscript_takes_any_batch_and_agrees(tmp_path: Path) -> None:
    from serve_app.runtime.torchscript import TorchScriptRuntime

    reference = build_reference(SMALL, SPEC.input, 7, untrained_weights(SPEC))
    save_torchscript(reference, SPEC.input, tmp_path)
    runtime = TorchScriptRuntime(tmp_path / "model.pt", 2)
    for count in (1, 3):
        pictures = sample_batch(SPEC.input)[:count]
        np.testing.assert_allclose(runtime.infer(pictures), reference.infer(pictures), atol=1e-3)


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    class Stubborn(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("cannot be traced")

    with pytest.raises(Exception, match="cannot be traced"):
        export_onnx(Reference(Stubborn(), SPEC.input), SPEC.input, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
