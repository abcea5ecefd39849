"""What a user asks to be built, and whether an engine on disk already is that. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine_build.store import EngineId
from serve_app.manifest import Backend, Manifest, Precision, sha256_of


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A user's own weights: an architecture of the zoo whose head has one class per line of `labels`."""

    path: Path
    architecture: str
    labels: Path


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One engine to build.

    Attributes:
        model: a model of the zoo, `auto`, or the name of the user's checkpoint.
        weights: a local file with the official weights' tensors, instead of the download.
        calibration: folder of pictures for int8.
        pictures: folder to compare on; None for the sample photographs.
        max_batch: largest batch size of the latency table.
        force: build even what is there.
        version: of the engine; others stay as they are.
    """

    model: str
    backend: Backend
    precision: Precision
    engines_dir: Path
    weights_dir: Path
    untrained: bool = False
    weights: Path | None = None
    checkpoint: Checkpoint | None = None
    calibration: Path | None = None
    pictures: Path | None = None
    labels_csv: Path | None = None
    max_batch: int = 16
    force: bool = False
    version: int = 1

    @property
    def weights_file(self) -> Path | None:
        """The local file the weights are read from, if they are."""
        return self.checkpoint.path if self.checkpoint else self.weights

    def engine_id(self) -> EngineId:
        return EngineId(self.model, self.backend, self.precision, self.version)

    def is_answered_by(self, manifest: Manifest) -> bool:
        """Whether an engine of this name was made from the same weights and labels."""
        if self.untrained:
            return manifest.weights.source == "untrained"
        if self.weights_file is None:
            return manifest.weights.source in ("torchvision", "package")
        if not self.weights_file.is_file() or sha256_of(self.weights_file) != manifest.weights.sha256:
            return False
        return self.checkpoint is None or self._fits_checkpoint(self.checkpoint, manifest)

    def _fits_checkpoint(self, checkpoint: Checkpoint, manifest: Manifest) -> bool:
        try:
            labels = tuple(line.strip() for line in checkpoint.labels.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            return False
        return manifest.architecture == checkpoint.architecture and manifest.labels == labels
