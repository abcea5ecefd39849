"""Engines in words: the summary after a build, the table of `list`, the page of `info`."""

from __future__ import annotations

from pathlib import Path

from serve_app.errors import EngineError
from serve_app.manifest import Manifest, Verification, read_manifest
from serve_app.plans import PlanRecord, read_records


def summary(manifest: Manifest, folder: Path) -> str:
    """Several lines: where it is, what it was made from, how it compares, how fast it is."""
    size_mb = sum((folder / name).stat().st_size for name in manifest.files) / 1e6
    lines = [
        f"{manifest.engine_name}  {folder}  ({size_mb:.1f} MB)",
        f"  weights    {_weights(manifest)}",
        f"  classes    {manifest.num_classes}",
    ]
    if manifest.calibration:
        lines.append(f"  calibrated {manifest.calibration}")
    lines += _figures(manifest.verify) if manifest.verify else ["  verify     never"]
    return "\n".join(lines + (_plans(folder) if manifest.backend == "tensorrt" else []))


def page(manifest: Manifest, folder: Path) -> str:
    """`summary` and the rest of the manifest."""
    spec = manifest.input
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    return "\n".join(
        [
            summary(manifest, folder),
            f"  labels     {', '.join(manifest.labels[:3])}{', ...' if manifest.num_classes > 3 else ''}",
            f"  input      shorter side {spec.resize_size}, {spec.interpolation}; centre {spec.height} x {spec.width}",
            f"  sha256     weights {manifest.weights.sha256}",
            *(f"             {name} {sha256}" for name, sha256 in manifest.files.items()),
            f"  built      {manifest.created_utc} with {tools}",
        ]
    )


def table(folders: list[Path]) -> str:
    """One line per engine folder; one that does not read says why."""
    rows = [("ENGINE", "WEIGHTS", "CLASSES", "AGREEMENT", "TOP-1", "MS/PICTURE", "BUILT"), *map(_row, folders)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(folder: Path) -> tuple[str, str, str, str, str, str, str]:
    try:
        manifest = read_manifest(folder, check_files=False)
    except EngineError:
        return _named(folder), "manifest is not valid", "", "", "", "", ""
    figures = manifest.verify
    return (
        manifest.engine_name,
        manifest.weights.source,
        str(manifest.num_classes),
        f"{figures.top1_agreement:.1%}" if figures else "-",
        f"{figures.accuracy.top1:.1%}" if figures and figures.accuracy else "-",
        f"{min(ms / size for size, ms in figures.latency_ms.items()):.2f}" if figures and figures.latency_ms else "-",
        manifest.created_utc,
    )


def _named(folder: Path) -> str:
    """The engine that the path says."""
    parent = folder.parent
    return (
        f"{parent.parent.name}@{parent.name}/{folder.name}" if parent.name.isdigit() else f"{parent.name}/{folder.name}"
    )


def _weights(manifest: Manifest) -> str:
    if not manifest.trained:
        return f"UNTRAINED ({manifest.weights.name}): for throughput only, its answers mean nothing"
    return f"{manifest.weights.name} ({manifest.weights.source})"


def _figures(figures: Verification) -> list[str]:
    lines = [
        f"  verify     same first class as torch eager for {figures.top1_agreement:.1%} of {figures.pictures} pictures,"
        f" largest logit error {figures.max_logit_error:.1e} ({figures.picture_source})"
    ]
    if figures.accuracy:
        accuracy = figures.accuracy
        lines.append(
            f"  accuracy   top-1 {accuracy.top1:.1%}, top-3 {accuracy.top3:.1%} of {accuracy.pictures} labelled "
            f"pictures (torch eager: top-1 {accuracy.reference_top1:.1%})"
        )
    if figures.latency_ms:
        times = "  ".join(f"{size}: {batch_ms:.1f}" for size, batch_ms in figures.latency_ms.items())
        lines.append(f"  latency    ms per batch of  {times}  ({figures.threads} threads)")
    return lines


def _plans(folder: Path) -> list[str]:
    records = read_records(folder)
    if not records:
        return ["  plans      none; on each kind of GPU that serves it: engine-build compile"]
    return [f"  plan       {plan_summary(record)}" for record in records]


def plan_summary(record: PlanRecord) -> str:
    """One line: what for, how large its batches are, what it computes in, how fast."""
    key = record.key
    layers = ", ".join(f"{count} {name}" for name, count in record.layer_types.items()) or "unknown"
    best = max((1e3 * size / ms for size, ms in record.latency_ms.items()), default=0.0)
    speed = f", {best:,.0f} pictures/s with copies" if best else ""
    return (
        f"{key.machine.gpu}, TensorRT {key.machine.tensorrt}, batches to {key.profile.max_batch} (tuned for "
        f"{key.profile.opt_batch}), layers {layers}, TF32 {'on' if key.builder.tf32 else 'off'}{speed}"
    )
