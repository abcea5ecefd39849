from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import EngineError
from serve_app.manifest import Manifest, sha256_of
from serve_app.plans import (
    PLANS_DIR,
    BuilderSettings,
    Machine,
    PlanKey,
    PlanRecord,
    Profile,
    find_plan,
    plan_path,
    read_records,
)
from tests.tiny_engine import make_gpu_engine

HERE = Machine(
    tensorrt="11.4.0.106", gpu="NVIDIA L4", compute_capability="8.9", sm_count=58, memory_gib=22, system="linux-x86_64"
)
KEY = PlanKey(
    onnx_sha256="1" * 64,
    precision="fp16",
    profile=Profile(min_batch=1, opt_batch=16, max_batch=64),
    builder=BuilderSettings(tf32=False, workspace_mib=None, optimization_level=3),
    machine=HERE,
)
CHANGES: list[tuple[str, Any]] = [
    ("onnx_sha256", "2" * 64),
    ("precision", "fp32"),
    ("profile.min_batch", 2),
    ("profile.opt_batch", 17),
    ("profile.max_batch", 65),
    ("builder.tf32", True),
    ("builder.workspace_mib", 1024),
    ("builder.optimization_level", 4),
    ("machine.tensorrt", "11.4.1.1"),
    ("machine.gpu", "NVIDIA L40"),
    ("machine.compute_capability", "9.0"),
    ("machine.sm_count", 60),
    ("machine.memory_gib", 24),
    ("machine.system", "linux-aarch64"),
]


def with_change(key: PlanKey, name: str, value: Any) -> PlanKey:
    section, _, field = name.rpartition(".")
    if not section:
        return key.model_copy(update={field: value})
    return key.model_copy(update={section: getattr(key, section).model_copy(update={field: value})})


def add_plan(
    folder: Path, key: PlanKey, *, created_utc: str = "2026-01-01T00:00:00+00:00", content: bytes = b"plan"
) -> Path:
    path = plan_path(folder, key)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    record = PlanRecord(
        key=key,
        plan_sha256=sha256_of(path),
        created_utc=created_utc,
        driver="13.0",
        cuda="13.0.0",
        build_s=1.0,
        layer_types={"fp16": 3},
        latency_ms={1: 0.5, 64: 8.0},
    )
    path.with_suffix(".json").write_text(record.model_dump_json())
    return path


@pytest.fixture
def engine(tmp_path: Path) -> tuple[Path, Manifest, PlanKey]:
    folder, manifest = make_gpu_engine(tmp_path, precision="fp16")
    return folder, manifest, KEY.model_copy(update={"onnx_sha256": manifest.files["model.onnx"]})


def fields(model: Any, prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name in type(model).model_fields:
        value = getattr(model, name)
        names |= fields(value, f"{name}.") if hasattr(type(value), "model_fields") else {prefix + name}
    return names


def test_the_digest_changes_with_every_field() -> None:
    assert {name for name, _ in CHANGES} == fields(KEY)
    digests = {with_change(KEY, name, value).digest() for name, value in CHANGES}
    assert len(digests | {KEY.digest()}) == len(CHANGES) + 1
    assert KEY.model_copy(deep=True).digest() == KEY.digest()


def test_a_record_is_read_as_it_was_written(engine: tuple[Path, Manifest, PlanKey]) -> None:
    folder, _, key = engine
    add_plan(folder, key)
    (record,) = read_records(folder)
    assert record.key == key
    assert record.latency_ms == {1: 0.5, 64: 8.0}


def test_the_newest_plan_that_fits_is_taken(engine: tuple[Path, Manifest, PlanKey]) -> None:
    folder, manifest, key = engine
    add_plan(folder, key, created_utc="2026-01-01T00:00:00+00:00")
    newer = with_change(key, "builder.optimization_level", 5)
    add_plan(folder, newer, created_utc="2026-03-01T00:00:00+00:00")
    add_plan(folder, with_change(key, "builder.tf32", True), created_utc="2026-02-01T00:00:00+00:00")
    add_plan(folder, with_change(key, "machine.gpu", "other"), created_utc="2026-09-01T00:00:00+00:00")
    path, record = find_plan(folder, manifest, HERE)
    assert (path, record.key) == (plan_path(folder, newer), newer)


def test_a_newer_plan_for_smaller_batches_does_not_hide_one_that_is_large_enough(
    engine: tuple[Path, Manifest, PlanKey],
) -> None:
    folder, manifest, key = engine
    small = with_change(key, "profile.max_batch", 16)
    add_plan(folder, key, created_utc="2026-01-01T00:00:00+00:00")
    add_plan(folder, small, created_utc="2026-03-01T00:00:00+00:00")
    assert find_plan(folder, manifest, HERE, 16)[1].key == small
    assert find_plan(folder, manifest, HERE, 17)[1].key == key
    assert find_plan(folder, manifest, HERE, 65)[1].key == small  # whose bound the caller names


def test_no_plan_at_all_says_how_to_make_one(engine: tuple[Path, Manifest, PlanKey]) -> None:
    folder, manifest, _ = engine
    with pytest.raises(EngineError, match=f"not compiled for any GPU yet; .* engine-build compile {folder}$"):
        find_plan(folder, manifest, HERE)


@pytest.mark.parametrize(("name", "value"), [change for change in CHANGES if change[0].startswith("machine.")])
def test_a_plan_of_another_machine_is_refused_by_the_field_that_differs(
    engine: tuple[Path, Manifest, PlanKey], name: str, value: Any
) -> None:
    folder, manifest, key = engine
    add_plan(folder, with_change(key, name, value))
    field = name.removeprefix("machine.")
    with pytest.raises(EngineError) as caught:
        find_plan(folder, manifest, HERE)
    wanted = f"the nearest of 1 differs in {field} ({value} in the plan, {getattr(HERE, field)} here); compile it on"
    assert wanted in str(caught.value)


def test_only_the_nearest_plan_is_compared_with_all_that_differs(engine: tuple[Path, Manifest, PlanKey]) -> None:
    folder, manifest, key = engine
    far = with_change(with_change(with_change(key, "machine.gpu", "A"), "machine.sm_count", 1), "machine.memory_gib", 2)
    near = with_change(with_change(key, "machine.gpu", "NVIDIA L40"), "machine.sm_count", 142)
    add_plan(folder, far, created_utc="2026-05-01T00:00:00+00:00")
    add_plan(folder, near)
    with pytest.raises(EngineError) as caught:
        find_plan(folder, manifest, HERE)
    assert (
        "the nearest of 2 differs in gpu (NVIDIA L40 in the plan, NVIDIA L4 here); sm_count (142 in the plan, 58 here);"
        in str(caught.value)
    )


def test_a_plan_of_other_weights_is_refused(engine: tuple[Path, Manifest, PlanKey]) -> None:
    folder, manifest, key = engine
    add_plan(folder, with_change(key, "onnx_sha256", "2" * 64))
    here = manifest.files["model.onnx"][:12]
    with pytest.raises(EngineError, match=rf"differs in onnx_sha256 \(222222222222 in the plan, {here} here\)"):
        find_plan(folder, manifest, HERE)


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_changed_or_lost_plan_is_refused(engine: tuple[Path, Manifest, PlanKey], damage: str) -> None:
    folder, manifest, key = engine
    path = add_plan(folder, key)
    path.write_bytes(b"plan!") if damage == "changed" else path.unlink()
    with pytest.raises(EngineError, match=f"plan {path} is missing or was changed .* engine-build compile"):
        find_plan(folder, manifest, HERE)


def test_files_that_are_no_records_are_left_out(engine: tuple[Path, Manifest, PlanKey]) -> None:
    folder, manifest, key = engine
    path = add_plan(folder, key)
    plans = folder / PLANS_DIR
    (plans / "broken.json").write_text('{"key": ')
    (plans / "other.json").write_text('{"format_version": 2}')
    (plans / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (plans / "folder.json").mkdir()
    (plans / "without-record.plan").write_bytes(b"plan")
    assert [record.key for record in read_records(folder)] == [key]
    assert find_plan(folder, manifest, HERE)[0] == path
    path.with_suffix(".json").unlink()
    with pytest.raises(EngineError, match="not compiled for any GPU yet"):
        find_plan(folder, manifest, HERE)


def test_plans_leave_the_engine_as_it_is(engine: tuple[Path, Manifest, PlanKey]) -> None:
    from serve_app.manifest import read_manifest

    folder, manifest, key = engine
    add_plan(folder, key)
    assert read_manifest(folder) == manifest
