"""Verifies an engine that is on disk already, and renews the figures in its manifest."""

from __future__ import annotations

from pathlib import Path

from engine_build.build import comparison_pictures, onnx_runtime
from engine_build.errors import WeightsUnavailable
from engine_build.progress import Steps
from engine_build.reference import build_reference
from engine_build.store import EngineId, EngineStore, replace_manifest
from engine_build.verify import verify
from engine_build.weights import LoadedWeights, file_weights, official_weights, untrained_weights
from engine_build.zoo import ModelSpec, model_spec
from serve_app.manifest import Manifest, read_manifest


def reverify(
    folder: Path,
    *,
    weights_dir: Path,
    weights_file: Path | None = None,
    pictures: Path | None = None,
    labels_csv: Path | None = None,
    max_batch: int = 16,
) -> Manifest:
    """Compares with torch eager, rebuilt from the same weights. A failure leaves the engine as it was.

    Args:
        weights_file: where the weights are, if they were a local file when the engine was built.

    Raises:
        WeightsUnavailable: the weights are not at hand, or are others.
        VerificationFailed: the engine disagrees.
        EngineError: no engine there, or it does not fit its manifest.
    """
    manifest = read_manifest(folder)
    engine = EngineId.of(manifest)
    chosen = comparison_pictures(pictures, labels_csv, manifest.num_classes)
    steps = Steps(2)
    with EngineStore.holding(folder, engine).lock(engine):
        with steps.step(f"weights of {manifest.model}"):
            weights = _same_weights(manifest, weights_dir, weights_file)
            reference = build_reference(manifest.architecture, manifest.input, manifest.num_classes, weights)
        with steps.step(f"verifying against torch eager on {len(chosen)} pictures", has_bar=True):
            runtime = onnx_runtime(folder, manifest)
            figures = verify(folder, manifest, reference, chosen, max_batch=max_batch, runtime=runtime)
        manifest = manifest.model_copy(update={"verify": figures})
        replace_manifest(folder, manifest)
    return manifest


def _same_weights(manifest: Manifest, weights_dir: Path, weights_file: Path | None) -> LoadedWeights:
    weights = _find_weights(manifest, weights_dir, weights_file)
    if weights.record.sha256 != manifest.weights.sha256:
        raise WeightsUnavailable(
            f"{manifest.engine_name} was built from other weights than {weights.record.name} holds now "
            f"(sha256 {manifest.weights.sha256[:12]}, found {weights.record.sha256[:12]}); "
            "pass the same file with --weights, or build the engine again"
        )
    return weights


def _find_weights(manifest: Manifest, weights_dir: Path, weights_file: Path | None) -> LoadedWeights:
    spec = ModelSpec(manifest.model, manifest.architecture, manifest.input, manifest.labels, source=None)
    if manifest.weights.source == "untrained":
        return untrained_weights(spec)
    if weights_file:
        return file_weights(weights_file, spec)
    if manifest.weights.source == "file":
        raise WeightsUnavailable(
            f"{manifest.engine_name} was built from the local file {manifest.weights.name}; pass it with --weights FILE"
        )
    return official_weights(model_spec(manifest.model), weights_dir)
