"""The manifest beside an engine: all that passes from `engine_build` to `serve_app`.

An engine folder is `engines/<model>/<backend>-<precision>/` with `manifest.json` and the files it lists; of later
versions of the engine it is `engines/<model>/<version>/<backend>-<precision>/`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_app.errors import EngineError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"

Backend = Literal["onnx", "openvino", "torchscript", "tensorrt", "simulated"]
Precision = Literal["fp32", "fp16", "int8"]
Interpolation = Literal["bilinear", "bicubic"]
Triple = tuple[float, float, float]
Version = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


LEAST_AGREEMENT: dict[Precision, float] = {"fp32": 0.95, "fp16": 0.95, "int8": 0.8}
"""Smallest share of pictures that must keep the first class torch eager gives them, of trained weights. Builds ask more
of fp32 (every picture but ties)."""


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(FrozenModel):
    """How a picture becomes engine input: torchvision's classification preset in numbers.

    The shorter side is resized to `resize_size`, the centre `height` x `width` is cut out. `mean` and `std`
    (of pixels in 0..1, RGB) are inside the engine's graph already and are listed for information only.
    """

    height: Annotated[int, Field(ge=1)] = 224
    width: Annotated[int, Field(ge=1)] = 224
    resize_size: Annotated[int, Field(ge=1)] = 256
    interpolation: Interpolation = "bilinear"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)


class Weights(FrozenModel):
    """Where the weights came from; `sha256` is of the weights file (of the seeded tensors when untrained)."""

    source: Literal["torchvision", "package", "file", "untrained"]
    name: str
    sha256: Sha256


class Accuracy(FrozenModel):
    """Share of labelled pictures (0..1) whose label is first, or among the first three."""

    pictures: int
    top1: float
    top3: float
    reference_top1: float = Field(description="the same for torch eager, on the same pictures")


class Verification(FrozenModel):
    """What `engine-build verify` measured against torch eager.

    Attributes:
        pictures: how many pictures were compared.
        picture_source: where they came from, for a reader.
        top1_agreement: share (0..1) of pictures with the same first class as torch eager.
        max_logit_error: largest absolute difference of any logit.
        accuracy: only where labels were given.
        latency_ms: batch size -> median milliseconds per batch, with `threads` threads on the building machine; empty
            where that machine is not the kind that serves.
    """

    pictures: int
    picture_source: str
    top1_agreement: float
    max_logit_error: float
    accuracy: Accuracy | None = None
    latency_ms: dict[int, float]
    threads: int


class Manifest(FrozenModel):
    """Contents of `manifest.json`. `artifact` is the file the runtime opens; `files` maps every file to its sha256."""

    format_version: Literal[1] = 1
    model: str
    version: Version = 1
    architecture: str
    backend: Backend
    precision: Precision
    trained: bool
    labels: tuple[str, ...]
    input: InputSpec
    weights: Weights
    artifact: str
    files: dict[str, Sha256]
    tools: dict[str, str]
    created_utc: str
    calibration: str | None = None
    verify: Verification | None = None

    @model_validator(mode="after")
    def _artifact_is_listed(self) -> Manifest:
        if self.artifact not in self.files:
            raise ValueError(f"artifact {self.artifact!r} is not among files")
        return self

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def engine_name(self) -> str:
        """`<model>/<backend>-<precision>`, as messages name an engine; `<model>@<version>/...` from version 2 on."""
        return engine_name(self.model, self.version, f"{self.backend}-{self.precision}")


def engine_name(model: str, version: int, variant: str) -> str:
    """`resnet18/openvino-fp32`, and of later versions `resnet18@2/openvino-fp32`; `variant` is backend-precision."""
    return f"{model}{f'@{version}' if version > 1 else ''}/{variant}"


def engine_folder(engines_dir: Path, model: str, version: int, variant: str) -> Path:
    """Where an engine is: the first version beside the numbered folders of later ones."""
    return engines_dir / model / (str(version) if version > 1 else "") / variant


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into `folder`, readable by people."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path, *, check_files: bool = True) -> Manifest:
    """Reads an engine folder's manifest and, unless told not to, checks every file against its hash.

    Raises:
        EngineError: no manifest, not a valid one, or a file that is missing or was changed; names the folder and
            the file, and what to do.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise EngineError(f"no engine at {folder} ({MANIFEST_NAME} is missing); build one with engine-build") from None
    except OSError as error:
        raise EngineError(f"engine manifest {path} cannot be read: {error.strerror}; check its permissions") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise EngineError(f"engine manifest {path} is not valid: {where}: {first['msg']}; build it again") from None
    if check_files:
        _check_files(folder, manifest)
    return manifest


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name:
            problem = f"lists {name!r}, which is not a plain file name"
        elif not path.is_file():
            problem = f"lacks its file {name}"
        elif sha256_of(path) != expected:
            problem = f"has another {name} than its manifest describes (sha256 differs)"
        else:
            continue
        raise EngineError(
            f"engine {manifest.engine_name} at {folder} {problem}; build it again with engine-build build"
        )
