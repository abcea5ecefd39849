"""Plans: what TensorRT compiled from an engine's ONNX for one kind of GPU, and the key that says for which.

A TensorRT engine folder holds the ONNX, which runs anywhere, and in `plans/` a `<digest>.plan` with `<digest>.json`
beside it for each kind of machine it was compiled on. A plan runs on that kind only: same TensorRT, same GPU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from serve_app.errors import EngineError
from serve_app.manifest import FrozenModel, Manifest, Precision, Sha256, sha256_of

PLANS_DIR = "plans"


class Machine(FrozenModel):
    """What a plan is bound to. Of the same compute capability, other GPU models run a plan badly, if at all."""

    tensorrt: str
    gpu: str
    compute_capability: str
    sm_count: int
    memory_gib: int
    system: str


class Profile(FrozenModel):
    """Batch sizes a plan takes, and the one it was tuned for."""

    min_batch: int
    opt_batch: int
    max_batch: int


class BuilderSettings(FrozenModel):
    """How TensorRT was told to compile. `workspace_mib` None means all of the GPU's memory."""

    tf32: bool
    workspace_mib: int | None
    optimization_level: int


class PlanKey(FrozenModel):
    """Everything that a plan's bytes depend on; `onnx_sha256` covers weights, precision and calibration."""

    onnx_sha256: Sha256
    precision: Precision
    profile: Profile
    builder: BuilderSettings
    machine: Machine

    def digest(self) -> str:
        """Hex sha256 of all fields."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class PlanRecord(FrozenModel):
    """The JSON beside a plan.

    Attributes:
        plan_sha256: of the plan's file.
        driver, cuda: of the machine it was compiled on, for information: other versions may still run it.
        build_s: how long compiling took.
        layer_types: how many layers work in each data type, as the compiled engine itself says.
        latency_ms: batch size -> median milliseconds in the GPU, copies included.
        max_logit_error: largest difference from the ONNX on a CPU, over the check pictures.
        warnings: what TensorRT logged.
    """

    format_version: Literal[1] = 1
    key: PlanKey
    plan_sha256: Sha256
    created_utc: str
    driver: str
    cuda: str
    build_s: float
    layer_types: dict[str, int]
    latency_ms: dict[int, float] = Field(default_factory=dict)
    top1_agreement: float | None = None
    max_logit_error: float | None = None
    warnings: tuple[str, ...] = ()


def plan_path(folder: Path, key: PlanKey) -> Path:
    """Where the plan of `key` is, in an engine folder; its record is beside it with the ending `.json`."""
    return folder / PLANS_DIR / f"{key.digest()[:32]}.plan"


def read_records(folder: Path) -> list[PlanRecord]:
    """Of all plans in an engine folder, newest first; files that are not records are left out."""
    records = []
    for path in folder.glob(f"{PLANS_DIR}/*.json"):
        try:
            records.append(PlanRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return sorted(records, key=lambda record: record.created_utc, reverse=True)


def find_plan(folder: Path, manifest: Manifest, machine: Machine, max_batch: int = 1) -> tuple[Path, PlanRecord]:
    """The newest plan that was compiled from this engine's ONNX on a machine of this kind: of those that take batches
    of `max_batch`, if there are such.

    Raises:
        EngineError: there is none, or its file was changed; names what differs, and the command that compiles it.
    """
    records = read_records(folder)
    onnx_sha256 = manifest.files[manifest.artifact]
    here = {**machine.model_dump(), "onnx_sha256": onnx_sha256}
    advice = f"compile it on this machine: engine-build compile {folder.absolute()}"
    fitting = [record for record in records if not differences(_bound_to(record), here)]
    if fitting:
        record = next((one for one in fitting if one.key.profile.max_batch >= max_batch), fitting[0])
        path = plan_path(folder, record.key)
        if not path.is_file() or sha256_of(path) != record.plan_sha256:
            raise EngineError(f"plan {path} is missing or was changed since it was compiled; {advice}")
        return path, record
    if not records:
        raise EngineError(f"engine {manifest.engine_name} at {folder} is not compiled for any GPU yet; {advice}")
    nearest = min((differences(_bound_to(record), here) for record in records), key=len)
    raise EngineError(
        f"engine {manifest.engine_name} at {folder} has no plan for this machine; the nearest of {len(records)} "
        f"differs in {'; '.join(nearest)}; {advice}"
    )


def _bound_to(record: PlanRecord) -> dict[str, Any]:
    return {**record.key.machine.model_dump(), "onnx_sha256": record.key.onnx_sha256}


def differences(compiled: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The fields that differ, each with both values."""
    return [
        f"{name} ({_short(compiled[name])} in the plan, {_short(here[name])} here)"
        for name in compiled
        if compiled[name] != here[name]
    ]


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
