"""The torch model that engines are made from and compared with: uint8 NHWC in, logits out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from engine_build.pictures import sample_batch
from engine_build.weights import LoadedWeights, load_into
from engine_build.zoo import new_module
from serve_app.manifest import InputSpec
from serve_app.types import Logits, Pictures


class Reference(nn.Module):
    """A classifier with its normalisation inside, so that client code cannot get it wrong.

    Args:
        classifier: normalised float32 (n, 3, height, width) -> logits (n, classes).
        spec: mean and std of pixels in 0..1.
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, classifier: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.classifier = classifier
        mean = torch.tensor(spec.mean, dtype=torch.float64)
        std = torch.tensor(spec.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, 3, 1, 1))
        self.register_buffer("bias", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (n, height, width, 3) -> float32 (n, classes)."""
        logits: Tensor = self.classifier(image.permute(0, 3, 1, 2).float() * self.scale + self.bias)
        return logits

    def infer(self, pictures: Pictures) -> Logits:
        """torch eager, as `Runtime.infer` of an engine."""
        with torch.inference_mode():
            return np.asarray(self(torch.from_numpy(pictures)).numpy(), dtype=np.float32)


def build_reference(architecture: str, spec: InputSpec, num_classes: int, weights: LoadedWeights) -> Reference:
    """The reference with `weights`, in eval mode.

    Raises:
        CheckpointMismatch: the weights do not fit.
    """
    classifier = new_module(architecture, num_classes)
    load_into(classifier, weights.state, weights.record.name)
    reference = Reference(classifier, spec).eval().requires_grad_(False)
    if weights.record.source == "untrained":
        _settle(reference, torch.from_numpy(sample_batch(spec)))
    return reference


def _settle(reference: Reference, pictures: Tensor) -> None:
    """Gives random weights activations of ordinary size and logits that depend on the picture.

    Fresh from the seed, deep nets answer every picture with the same class, often with logits near zero: any engine
    would agree with them, however wrong. So BatchNorm takes its statistics from real pictures, and the head is
    centred and scaled. It is repeated from the same seed and pictures whenever the reference is rebuilt.
    """
    norms = [module for module in reference.modules() if isinstance(module, nn.BatchNorm2d)]
    head = [module for module in reference.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # plain average, so that one pass is enough
            norm.train()
        reference(pictures)
        reference.eval()
        logits = reference(pictures)
        spread = logits.std(dim=0).mean().clamp_min(1e-6)
        head.weight.div_(spread)
        head.bias.copy_((head.bias - logits.mean(dim=0)) / spread)
