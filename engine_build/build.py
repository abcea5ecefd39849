"""One build from request to engine folder: weights -> torch reference -> ONNX -> backend -> verified -> in place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from engine_build import openvino
from engine_build.download import fetch
from engine_build.errors import BuildError, WeightsUnavailable
from engine_build.export import export_onnx
from engine_build.pictures import PictureSet, folder_pictures, labelled_pictures, sample_batch, sample_pictures
from engine_build.progress import Steps, say
from engine_build.quantize import calibration_pictures, quantize
from engine_build.reference import Reference, build_reference
from engine_build.request import BuildRequest
from engine_build.store import EngineId, EngineStore
from engine_build.torchscript import ARTIFACT as TORCHSCRIPT_ARTIFACT
from engine_build.torchscript import save_torchscript
from engine_build.verify import verify
from engine_build.weights import LoadedWeights, file_weights, official_weights, read_labels, untrained_weights
from engine_build.zoo import FLAGSHIP, PACKAGED, Download, ModelSpec, custom_spec, model_spec
from serve_app.golden import Golden, write_golden
from serve_app.manifest import InputSpec, Manifest, sha256_of, write_manifest
from serve_app.runtime import Runtime, available_cores
from serve_app.types import Picture

_ARTIFACTS = {
    "openvino": openvino.ARTIFACT,
    "onnx": "model.onnx",
    "torchscript": TORCHSCRIPT_ARTIFACT,
    "tensorrt": "model.onnx",
}
_TOOLS = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "image-serve")
_RELU6 = {"mobilenet_v2", PACKAGED}
# Part of the cache key of exported ONNX files: raise it whenever the same weights are exported to another graph.
_EXPORT_REVISION = 2


@dataclass(frozen=True, slots=True)
class _Job:
    """A request whose inputs were checked: what is built, and on which pictures."""

    request: BuildRequest
    engine: EngineId
    spec: ModelSpec
    pictures: PictureSet
    calibration: PictureSet | None


def build(request: BuildRequest) -> Manifest:
    """Builds the engine that is asked for, unless it is there already.

    Raises:
        SetupError: it cannot be built; nothing is left behind, an engine that was there before is untouched.
    """
    store = EngineStore(request.engines_dir)
    request = request if request.model != "auto" else replace(request, model=_auto_model(request, store))
    engine = request.engine_id().check_buildable()
    store.sweep()
    with store.lock(engine):
        present = None if request.force else store.find(engine)
        if present and request.is_answered_by(present):
            say(f"{engine} is already built in {store.folder(engine)} (--force builds it again)")
            return present
        job = _check(request, engine)
        with store.staging(engine) as staged:
            manifest = _build_in(staged, job, store)
            store.publish(engine, staged)
    return manifest


def request_spec(request: BuildRequest) -> ModelSpec:
    """What the request's model is: one of the zoo, or the user's checkpoint with their labels."""
    if request.checkpoint is None:
        return model_spec(request.model)
    return custom_spec(request.model, request.checkpoint.architecture, read_labels(request.checkpoint.labels))


def comparison_pictures(folder: Path | None, labels_csv: Path | None, num_classes: int) -> PictureSet:
    """The user's pictures, or the samples."""
    return labelled_pictures(folder, labels_csv, num_classes) if folder else sample_pictures()


def _auto_model(request: BuildRequest, store: EngineStore) -> str:
    """resnet18 where its weights can be had, else the one whose weights came with a package; says so."""
    if request.untrained or request.weights:
        return FLAGSHIP
    there = store.find(replace(request, model=FLAGSHIP).engine_id())
    if there and there.trained and not request.force:
        return FLAGSHIP
    source = model_spec(FLAGSHIP).source
    assert isinstance(source, Download)
    try:
        fetch(source, request.weights_dir)
    except WeightsUnavailable as error:
        say(
            f"{PACKAGED} takes the place of {FLAGSHIP}, its weights are installed; to serve {FLAGSHIP}: {error}, then "
            f"engine-build build --model {FLAGSHIP}"
        )
        return PACKAGED
    return FLAGSHIP


def _check(request: BuildRequest, engine: EngineId) -> _Job:
    calibration = None
    if request.precision == "int8":
        if request.calibration is None:
            raise BuildError(
                f"{engine} needs real pictures to calibrate with; pass --calibration DIR with some hundred photographs"
            )
        calibration = folder_pictures(request.calibration)
    spec = request_spec(request)
    pictures = comparison_pictures(request.pictures, request.labels_csv, len(spec.labels))
    return _Job(request, engine, spec, pictures, calibration)


def _build_in(staged: Path, job: _Job, store: EngineStore) -> Manifest:
    request, spec = job.request, job.spec
    steps = Steps(3 + (request.backend in ("openvino", "tensorrt")) + (request.precision == "int8"))
    with steps.step(f"weights of {spec.name}", has_bar=_needs_download(job)):
        weights = _load_weights(request, spec)
        reference = build_reference(spec.architecture, spec.input, len(spec.labels), weights)
    try:
        calibrated_with = _make_artifact(staged, job, store, reference, weights, steps)
    except RuntimeError as error:  # what OpenVINO raises when it cannot write, with the reason left out
        if shutil.disk_usage(staged).free < sum(tensor.nbytes for tensor in weights.state.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(staged)) from error
        raise
    manifest = _manifest(staged, job, weights, calibrated_with)
    with steps.step(f"verifying against torch eager on {len(job.pictures)} pictures", has_bar=True):
        runtime = onnx_runtime(staged, manifest)
        figures = verify(staged, manifest, reference, job.pictures, max_batch=request.max_batch, runtime=runtime)
    manifest = manifest.model_copy(update={"verify": figures})
    write_manifest(staged, manifest)
    return manifest


def _needs_download(job: _Job) -> bool:
    source, request = job.spec.source, job.request
    if not isinstance(source, Download) or request.untrained or request.weights:
        return False
    return not (request.weights_dir / source.file_name).is_file()


def _load_weights(request: BuildRequest, spec: ModelSpec) -> LoadedWeights:
    if request.untrained:
        return untrained_weights(spec)
    path = request.weights_file
    return file_weights(path, spec) if path else official_weights(spec, request.weights_dir)


def _make_artifact(
    staged: Path, job: _Job, store: EngineStore, reference: Reference, weights: LoadedWeights, steps: Steps
) -> str | None:
    """Writes the backend's files into `staged`; says what int8 was calibrated with."""
    if job.engine.backend == "torchscript":
        with steps.step("tracing to TorchScript"):
            save_torchscript(reference, job.spec.input, staged)
        return None
    onnx_path = store.cache() / _onnx_cache_name(job.spec, weights)
    cached = onnx_path.is_file()
    with steps.step("exporting to ONNX" + (", kept from an earlier build" if cached else "")):
        if not cached:
            export_onnx(reference, job.spec.input, onnx_path)
    if job.engine.backend == "onnx":
        shutil.copyfile(onnx_path, staged / _ARTIFACTS["onnx"])
        return None
    if job.engine.backend == "tensorrt":
        return _make_typed(staged, job, onnx_path, steps)
    return _make_openvino(staged, job, onnx_path, steps)


def _make_typed(staged: Path, job: _Job, onnx_path: Path, steps: Steps) -> str | None:
    """The ONNX that TensorRT compiles, with the precision as types in it, and pictures with its answers to them."""
    from engine_build import typed  # onnxruntime's tools take a second to import
    from engine_build.onnx_cpu import OnnxCpuRuntime

    target, calibrated_with = staged / _ARTIFACTS["tensorrt"], None
    if job.calibration is not None:
        pictures, calibrated_with = _calibration(job.calibration, job.spec.input, steps)
        with steps.step(f"quantising to int8 on {calibrated_with}", has_bar=True):
            typed.to_int8(onnx_path, target, pictures)
    else:
        with steps.step(f"typing the ONNX as {job.engine.precision}"):
            convert = typed.to_fp16 if job.engine.precision == "fp16" else typed.to_fp32
            convert(onnx_path, target)
    runtime, samples = OnnxCpuRuntime(target, available_cores()), sample_batch(job.spec.input)
    write_golden(staged, Golden(samples, runtime.infer(samples)))
    return calibrated_with


def _make_openvino(staged: Path, job: _Job, onnx_path: Path, steps: Steps) -> str | None:
    if job.calibration is None:
        with steps.step("compiling to OpenVINO"):
            openvino.save_ir(openvino.read_onnx(onnx_path), staged)
        return None
    pictures, calibrated_with = _calibration(job.calibration, job.spec.input, steps)
    with steps.step(f"quantising to int8 on {calibrated_with}", has_bar=True):
        model = openvino.read_onnx(onnx_path)
        openvino.save_ir(quantize(model, pictures, relu6=job.spec.architecture in _RELU6), staged)
    return calibrated_with


def _calibration(chosen: PictureSet, spec: InputSpec, steps: Steps) -> tuple[list[Picture], str]:
    """The pictures that int8 is calibrated with, and what they are in words."""
    with steps.step("reading the calibration pictures", has_bar=True):
        pictures = calibration_pictures(chosen, spec)
    return pictures, f"{len(pictures)} pictures of {chosen.description}"


def onnx_runtime(folder: Path, manifest: Manifest) -> Runtime | None:
    """What runs the engine's ONNX on this CPU, where what serves it would need a GPU; None for other engines."""
    if manifest.backend != "tensorrt":
        return None
    from engine_build.onnx_cpu import OnnxCpuRuntime

    return OnnxCpuRuntime(folder / manifest.artifact, available_cores())


def _onnx_cache_name(spec: ModelSpec, weights: LoadedWeights) -> str:
    """A name that changes with everything the exported graph depends on."""
    parts = [
        weights.record.sha256,
        weights.record.source,
        spec.architecture,
        spec.input.model_dump(mode="json"),
        len(spec.labels),
        [version(tool) for tool in ("torch", "torchvision", "onnx", "onnxscript")],
        _EXPORT_REVISION,
    ]
    return f"{spec.name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.onnx"


def _manifest(staged: Path, job: _Job, weights: LoadedWeights, calibrated_with: str | None) -> Manifest:
    return Manifest(
        model=job.spec.name,
        version=job.engine.version,
        architecture=job.spec.architecture,
        backend=job.engine.backend,
        precision=job.engine.precision,
        trained=weights.record.source != "untrained",
        labels=job.spec.labels,
        input=job.spec.input,
        weights=weights.record,
        artifact=_ARTIFACTS[job.engine.backend],
        files={path.name: sha256_of(path) for path in sorted(staged.iterdir())},
        tools={tool: version(tool) for tool in _TOOLS},
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        calibration=calibrated_with,
    )
