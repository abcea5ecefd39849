"""Weights as tensors, each with the record of where they came from that goes into the manifest."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine_build.download import fetch
from engine_build.errors import BuildError, CheckpointMismatch, WeightsUnavailable
from engine_build.zoo import Download, ModelSpec, Packaged, new_module
from serve_app.manifest import Weights, sha256_of

SEED = 0
_CONTAINER_KEYS = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Tensors by parameter name, and their record."""

    state: Mapping[str, Tensor]
    record: Weights


def official_weights(spec: ModelSpec, weights_dir: Path) -> LoadedWeights:
    """The weights the model was published with, fetched where they are not at hand.

    Raises:
        WeightsUnavailable: they cannot be fetched.
    """
    if isinstance(spec.source, Packaged):
        path = spec.source.path
        return LoadedWeights(read_state(path), Weights(source="package", name=path.name, sha256=sha256_of(path)))
    if spec.source is None:
        raise WeightsUnavailable(f"{spec.name} is not a published model; pass its file with --weights FILE")
    path = fetch(spec.source, weights_dir)
    return LoadedWeights(read_state(path), Weights(source="torchvision", name=path.name, sha256=sha256_of(path)))


def file_weights(path: Path, spec: ModelSpec) -> LoadedWeights:
    """A local file; one whose hash is that of the official file is recorded as official.

    Raises:
        CheckpointMismatch: the file is missing or not a torch weights file.
    """
    state, sha256 = read_state(path), sha256_of(path)
    official = isinstance(spec.source, Download) and sha256.startswith(spec.source.sha256_prefix)
    name = spec.source.file_name if official and isinstance(spec.source, Download) else path.name
    return LoadedWeights(state, Weights(source="torchvision" if official else "file", name=name, sha256=sha256))


def untrained_weights(spec: ModelSpec) -> LoadedWeights:
    """Seeded random weights, the same on every run of one torch version."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        state = new_module(spec.architecture, len(spec.labels)).state_dict()
    return LoadedWeights(state, Weights(source="untrained", name=f"seed {SEED}", sha256=sha256_of_tensors(state)))


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Hex sha256 over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint: a plain state_dict, or one inside a dict as training scripts save it.

    Nothing in the file is executed (`weights_only`).

    Raises:
        CheckpointMismatch: the file is missing, or holds no tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointMismatch(f"weights file {path} cannot be read: {error.strerror}; check the path") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        raise CheckpointMismatch(
            f"{path} is not a torch weights file; save one with torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    state = {_bare(name): value for name, value in _unwrap(content).items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointMismatch(f"{path} holds no tensors; save it with torch.save(model.state_dict(), 'weights.pt')")
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], source_name: str) -> None:
    """Puts `state` into `module`.

    Raises:
        CheckpointMismatch: names or shapes differ; one line that names the class counts, or the first that differ.
    """
    wanted = module.state_dict()
    head = _head_name(module)
    if head in state and state[head].shape[0] != wanted[head].shape[0]:
        raise CheckpointMismatch(
            f"{source_name} has {state[head].shape[0]} classes, the labels are {wanted[head].shape[0]}; "
            "pass the labels file this checkpoint was trained with"
        )
    problem = _first_difference(wanted, state)
    if problem:
        raise CheckpointMismatch(f"{source_name} does not fit the architecture: {problem}; check --arch")
    module.load_state_dict(dict(state), strict=False)


def read_labels(path: Path) -> tuple[str, ...]:
    """One label per line, in the order of the classes.

    Raises:
        BuildError: the file is missing, empty, or has an empty or repeated line; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BuildError(f"labels file {path} cannot be read: {reason}; it has one label per line") from None
    labels = tuple(line.strip() for line in lines)
    first_at: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not label:
            raise BuildError(f"labels file {path}: line {number} is empty; write one label per line, none empty")
        if label in first_at:
            raise BuildError(
                f"labels file {path}: line {number} repeats {label!r} of line {first_at[label]}; rename one"
            )
        first_at[label] = number
    if not labels:
        raise BuildError(f"labels file {path} is empty; write one label per line, in the order of the classes")
    return labels


def _unwrap(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        return {}
    for key in _CONTAINER_KEYS:
        if isinstance(content.get(key), Mapping):
            return {str(name): value for name, value in content[key].items()}
    return {str(name): value for name, value in content.items()}


def _bare(name: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _head_name(module: nn.Module) -> str:
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return f"{linear[-1]}.weight"


def _first_difference(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    # Files from before torch 0.4.1 lack this counter, and inference does not use it.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in wanted]
    if missing:
        return f"it lacks {missing[0]} ({len(missing)} missing, {len(extra)} unknown)"
    if extra:
        return f"it has an unknown {extra[0]} ({len(extra)} unknown)"
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            return f"{name} is {tuple(value.shape)}, expected {tuple(wanted[name].shape)}"
    return None
