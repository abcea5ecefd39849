"""What is published of the server and of each model.

Every model has two names. NAME takes pictures as files; NAME_tensor takes what a client made of them, as torchvision
would, and is what Triton's own image clients look for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from serve_app.manifest import Backend, Manifest
from serve_app.oip.tensors import DTYPES
from serve_app.oip.values import BYTES
from serve_app.settings import TENSOR_SUFFIX

SERVER_NAME = "image-serve"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)
IMAGE, PIXELS, SCORES = "image", "pixels", "scores"
TRACE_SETTINGS: Mapping[str, str | list[str]] = {
    "trace_level": ["OFF"],
    "trace_rate": "0",
    "trace_count": "0",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
"""Triton's own kind of tracing: there is none."""
LOG_SETTINGS: Mapping[str, str | bool | int] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}

_PLATFORMS: Mapping[Backend, str] = {
    "onnx": "onnxruntime_onnx",
    "openvino": "openvino",
    "torchscript": "pytorch_libtorch",
    "tensorrt": "tensorrt_plan",
    "simulated": "simulated",
}
"""As Triton names them."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output; -1 in `shape` is any number of pictures."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def bytes_per_picture(self) -> int:
        """Of a datatype of fixed size."""
        return math.prod(self.shape[1:]) * DTYPES[self.datatype].itemsize


@dataclass(frozen=True, slots=True)
class Published:
    """A model under one of its names.

    Attributes:
        name: this one.
        model: the native API's.
        takes_tensors: whether its input is tensors, not files.
        max_pictures: in one request.
    """

    name: str
    model: str
    takes_tensors: bool
    manifest: Manifest
    max_pictures: int

    @property
    def version(self) -> str:
        """Of the engine, as the protocol writes it."""
        return str(self.manifest.version)

    @property
    def input(self) -> TensorSpec:
        if not self.takes_tensors:
            return TensorSpec(IMAGE, BYTES, (-1, 1))
        spec = self.manifest.input
        return TensorSpec(PIXELS, "FP32", (-1, 3, spec.height, spec.width))

    @property
    def output(self) -> TensorSpec:
        return TensorSpec(SCORES, "FP32", (-1, self.manifest.num_classes))


def published(model: str, manifest: Manifest, max_pictures: int) -> tuple[Published, Published]:
    """Both names of a model: for files, for tensors."""
    return (
        Published(model, model, False, manifest, max_pictures),
        Published(model + TENSOR_SUFFIX, model, True, manifest, max_pictures),
    )


def server_metadata() -> dict[str, Any]:
    """The answer to `GET v2`."""
    return {"name": SERVER_NAME, "version": version(SERVER_NAME), "extensions": list(EXTENSIONS)}


def model_metadata(model: Published) -> dict[str, Any]:
    """The answer to `GET v2/models/NAME`."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": _PLATFORMS[model.manifest.backend],
        "inputs": [_described(model.input)],
        "outputs": [_described(model.output)],
    }


def model_config(model: Published) -> dict[str, Any]:
    """The answer to `GET v2/models/NAME/config`: Triton's ModelConfig, as its JSON."""
    given, answered = model.input, model.output
    layout = "FORMAT_NCHW" if model.takes_tensors else "FORMAT_NONE"
    return {
        "name": model.name,
        "platform": _PLATFORMS[model.manifest.backend],
        "backend": model.manifest.backend,
        "version_policy": {"specific": {"versions": [model.manifest.version]}},
        "max_batch_size": model.max_pictures,
        "input": [{"name": given.name, "data_type": _config_type(given), "format": layout, "dims": _dims(given)}],
        "output": [{"name": answered.name, "data_type": _config_type(answered), "dims": _dims(answered)}],
        "dynamic_batching": {"priority_levels": 2, "default_priority_level": 1},
        "parameters": {name: {"string_value": value} for name, value in _parameters(model.manifest).items()},
    }


def repository_index(models: Iterable[Published], ready: Mapping[str, bool]) -> list[dict[str, str]]:
    """The answer to `POST v2/repository/index`.

    Args:
        ready: by `Published.model`.
    """
    return [
        {
            "name": model.name,
            "version": model.version,
            "state": "READY" if ready[model.model] else "UNAVAILABLE",
            "reason": "" if ready[model.model] else "its engine is not loaded",
        }
        for model in models
    ]


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _dims(spec: TensorSpec) -> list[int]:
    """Without the batch, as configurations have them."""
    return list(spec.shape[1:])


def _config_type(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.datatype == BYTES else f"TYPE_{spec.datatype}"


def _parameters(manifest: Manifest) -> dict[str, str]:
    """What a client has to know to preprocess, or to judge an answer."""
    spec = manifest.input
    return {
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "trained": str(manifest.trained).lower(),
        "resize_size": str(spec.resize_size),
        "interpolation": spec.interpolation,
        "mean": ",".join(str(value) for value in spec.mean),
        "std": ",".join(str(value) for value in spec.std),
    }
