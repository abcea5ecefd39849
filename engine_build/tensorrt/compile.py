"""One plan from typed ONNX to its place in the engine folder: compiled, proven, measured, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine_build.errors import BuildError, CompileFailed, VerificationFailed
from engine_build.progress import Steps, say
from engine_build.store import EngineId, EngineStore
from engine_build.tensorrt.inspect import check_precision
from serve_app.errors import GpuFailed
from serve_app.golden import Difference, measured, problem, read_golden
from serve_app.latency import measure_latency, table_sizes
from serve_app.manifest import Manifest, read_manifest, sha256_of
from serve_app.plans import PLANS_DIR, BuilderSettings, Machine, PlanKey, PlanRecord, Profile, plan_path, read_records
from serve_app.runtime import GpuOptions, Runtime, load_plan

TUNED_FOR = 16
"""The batch size that plans are tuned for where nobody says another and they take as many."""


def tuned_batch(asked: int | None, max_batch: int) -> int:
    """What was asked for, else the usual size within the largest."""
    return asked or min(TUNED_FOR, max_batch)


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How a plan is compiled.

    Attributes:
        max_batch, opt_batch: the largest batch it takes, and the one it is tuned for.
        tf32: lets fp32 layers multiply with ten bits of mantissa, on Ampere and later.
        workspace_mib: what TensorRT may use of the GPU's memory; None is all of it.
        optimization_level: 0 to 5, how long it searches.
        force: compile even what is there.
    """

    max_batch: int = 64
    opt_batch: int = 16
    tf32: bool = False
    workspace_mib: int | None = None
    optimization_level: int = 3
    force: bool = False

    def key(self, manifest: Manifest, machine: Machine) -> PlanKey:
        """Of the plan that is asked for.

        Raises:
            BuildError: batch sizes that do not fit together.
        """
        if not 1 <= self.opt_batch <= self.max_batch:
            raise BuildError(
                f"--opt-batch {self.opt_batch} is not between 1 and --max-batch {self.max_batch}; lower it"
            )
        return PlanKey(
            onnx_sha256=manifest.files[manifest.artifact],
            precision=manifest.precision,
            profile=Profile(min_batch=1, opt_batch=self.opt_batch, max_batch=self.max_batch),
            builder=BuilderSettings(
                tf32=self.tf32, workspace_mib=self.workspace_mib, optimization_level=self.optimization_level
            ),
            machine=machine,
        )


def compile_engine(folder: Path, options: CompileOptions) -> tuple[PlanRecord, Path]:
    """Compiles the engine in `folder` for this machine's GPU, unless that plan is there already.

    Returns:
        The plan's record and where the plan is.

    Raises:
        SetupError: no GPU here, no such engine, TensorRT refuses it, or it answers wrongly; nothing is left behind.
    """
    from serve_app.runtime.tensorrt.machine import this_machine

    manifest = read_manifest(folder)
    if manifest.backend != "tensorrt":
        raise BuildError(f"{manifest.engine_name} is not a TensorRT engine; make one with engine-build prepare")
    key = options.key(manifest, this_machine())
    path = plan_path(folder, key)
    engine = EngineId.of(manifest)
    with EngineStore.holding(folder, engine).lock(engine):
        present = None if options.force else _present(folder, key)
        if present:
            say(f"{engine} is already compiled for {key.machine.gpu} (--force compiles it again)")
            return present, path
        return _compile(folder, manifest, key), path


def _present(folder: Path, key: PlanKey) -> PlanRecord | None:
    path = plan_path(folder, key)
    for record in read_records(folder):
        if record.key == key and path.is_file() and sha256_of(path) == record.plan_sha256:
            return record
    return None


def _compile(folder: Path, manifest: Manifest, key: PlanKey) -> PlanRecord:
    from engine_build.tensorrt.builder import compile_onnx
    from serve_app.runtime.tensorrt.machine import cuda_versions

    (folder / PLANS_DIR).mkdir(exist_ok=True)
    timings = hashlib.sha256(key.machine.model_dump_json().encode()).hexdigest()[:16]
    steps, began_s = Steps(2), time.monotonic()
    with steps.step(f"compiling for {key.machine.gpu}, TensorRT {key.machine.tensorrt}", has_bar=True):
        plan = compile_onnx(folder / manifest.artifact, key, folder / PLANS_DIR / f"timing-{timings}.cache")
    build_s = time.monotonic() - began_s
    check_precision(plan.layer_types, manifest.precision)
    if not plan.layer_types:
        say("      the engine does not say which types its layers work in; its precision is the ONNX's word only")
    driver, cuda = cuda_versions()
    with _staged(folder, plan.content) as staged:
        with steps.step("checking its answers on the GPU, and measuring"):
            found, latency_ms = _checked(staged, folder, manifest, key)
        record = PlanRecord(
            key=key,
            plan_sha256=sha256_of(staged),
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            driver=driver,
            cuda=cuda,
            build_s=round(build_s, 1),
            layer_types=plan.layer_types,
            latency_ms=latency_ms,
            top1_agreement=found.agreement,
            max_logit_error=found.max_error,
            warnings=plan.warnings[:20],
        )
        _publish(staged, plan_path(folder, key), record)
    return record


@contextmanager
def _staged(folder: Path, content: bytes) -> Iterator[Path]:
    """The plan as a file that is gone afterwards, unless it was renamed."""
    handle, name = tempfile.mkstemp(dir=folder / PLANS_DIR, prefix=".compiling-")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.chmod(0o644)  # replicas may be of another user
        yield path
    finally:
        path.unlink(missing_ok=True)


def _checked(staged: Path, folder: Path, manifest: Manifest, key: PlanKey) -> tuple[Difference, dict[int, float]]:
    most = key.profile.max_batch
    try:
        runtime = load_plan(staged, manifest, GpuOptions(most))
        try:
            found = _verified(runtime, folder, manifest, most)
            shape = (manifest.input.height, manifest.input.width, 3)
            latency = measure_latency(runtime.infer, shape, table_sizes(most), repeats=5)
        finally:
            runtime.close()
    except GpuFailed as error:
        raise CompileFailed(f"the plan does not run on the GPU it was compiled on: {error}") from error
    return found, {size: round(ms, 4) for size, ms in latency.as_dict().items()}


def _verified(runtime: Runtime, folder: Path, manifest: Manifest, most: int) -> Difference:
    found = measured(read_golden(folder), runtime.infer, manifest.precision, most)
    if wrong := problem(found, manifest.precision):
        raise VerificationFailed(
            f"the plan of {manifest.engine_name} answers wrongly on this GPU: {wrong}; try another precision"
        )
    return found


def _publish(staged: Path, path: Path, record: PlanRecord) -> None:
    """The record comes last: a plan without one is not there for anybody."""
    record_path = path.with_suffix(".json")
    part = record_path.with_name(f".{record_path.name}.part")
    try:
        part.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        record_path.unlink(missing_ok=True)  # of a plan that is replaced
        os.replace(staged, path)
        os.replace(part, record_path)
    finally:
        part.unlink(missing_ok=True)
