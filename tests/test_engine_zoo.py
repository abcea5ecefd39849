from __future__ import annotations

import pytest
import torch

from engine_build.errors import BuildError
from engine_build.pictures import sample_pictures
from engine_build.reference import build_reference
from engine_build.weights import official_weights
from engine_build.zoo import ARCHITECTURES, PACKAGED, Download, Packaged, custom_spec, model_spec, new_module
from tests.engine_helpers import ROOT


@pytest.mark.parametrize(
    ("name", "file_name", "resize"),
    [
        ("resnet18", "resnet18-f37072fd.pth", 256),
        ("resnet50", "resnet50-11ad3fa6.pth", 232),
        ("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth", 232),
        ("shufflenet_v2_x1_0", "shufflenetv2_x1-5666bf0f80.pth", 256),
    ],
)
def test_torchvision_models_follow_their_official_weights(name: str, file_name: str, resize: int) -> None:
    spec = model_spec(name)
    assert isinstance(spec.source, Download)
    assert spec.source.file_name == file_name
    assert file_name.removesuffix(".pth").endswith(spec.source.sha256_prefix)
    assert (spec.input.resize_size, spec.input.height, spec.input.interpolation) == (resize, 224, "bilinear")
    assert spec.input.mean == (0.485, 0.456, 0.406)
    assert len(spec.labels) == 1000
    assert spec.labels[281] == "tabby"


def test_the_packaged_model_knows_what_it_sees() -> None:
    spec = model_spec(PACKAGED)
    assert isinstance(spec.source, Packaged)
    assert (spec.input.resize_size, spec.input.interpolation) == (256, "bicubic")
    reference = build_reference(spec.architecture, spec.input, 1000, official_weights(spec, ROOT))
    whole = {item.path.stem: item for item in sample_pictures().items if item.crop == (0, 0, 1, 1)}
    said = {
        name: spec.labels[int(reference.infer(item.read(spec.input)[None])[0].argmax())] for name, item in whole.items()
    }
    assert said["espresso"] == "espresso"
    assert said["rocket"] in ("missile", "projectile")
    assert said["cat"] in ("tabby", "tiger cat", "Egyptian cat")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_any_number_of_classes(architecture: str) -> None:
    module = new_module(architecture, 7)
    assert not module.training
    with torch.inference_mode():
        assert module(torch.zeros(2, 3, 224, 224)).shape == (2, 7)


def test_an_unknown_model_names_those_there_are() -> None:
    with pytest.raises(BuildError, match=r"no model 'resnet19'; there are resnet18, .*efficientnet_lite0"):
        model_spec("resnet19")


@pytest.mark.parametrize("name", ["resnet18", "auto", "../birds", ".birds", "", "a/b"])
def test_a_checkpoint_may_not_take_any_name(name: str) -> None:
    with pytest.raises(BuildError, match="--name"):
        custom_spec(name, "resnet18", ("a", "b"))
