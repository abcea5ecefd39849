#!/usr/bin/env python
"""Accuracy of the typed ONNX that TensorRT engines are compiled from, measured on the CPU by onnxruntime.

    .venv/bin/python scripts/typed_accuracy.py --images DIR

DIR holds photographs and `labels.csv` (columns file, class_id). Every third photograph calibrates int8; all precisions
are measured on the other two thirds, preprocessed exactly.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from engine_build.export import export_onnx
from engine_build.onnx_cpu import OnnxCpuRuntime
from engine_build.reference import build_reference
from engine_build.typed import to_fp16, to_fp32, to_int8
from engine_build.weights import official_weights, untrained_weights
from engine_build.zoo import model_spec
from scripts.accuracy import Labelled, read_labels
from scripts.local_service import ROOT
from scripts.pictures import add_images
from serve_app.manifest import InputSpec, Precision
from serve_app.preprocess import preprocess_exact
from serve_app.runtime import available_cores
from serve_app.types import Logits, Picture

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BATCH = 20
_MAX_PIXELS = 200_000_000


@dataclass(frozen=True)
class Row:
    """One precision: shares of right answers, share of pictures named as fp32 names them, size of the ONNX."""

    precision: Precision
    pictures: int
    top1: float
    top3: float
    agreement: float
    megabytes: float


def prepare(pictures: Sequence[Labelled], spec: InputSpec) -> list[Picture]:
    """Engine input of each."""
    bar = tqdm(pictures, desc="reading", unit="picture", leave=False, disable=None)
    return [preprocess_exact(one.path.read_bytes(), spec, max_pixels=_MAX_PIXELS) for one in bar]


def build(source: Path, folder: Path, calibration: Sequence[Picture]) -> Iterator[tuple[Precision, Path]]:
    """Typed ONNX of every precision from the exported `source`."""
    for precision in PRECISIONS:
        target = folder / f"{precision}.onnx"
        if precision == "int8":
            to_int8(source, target, calibration)
        else:
            {"fp32": to_fp32, "fp16": to_fp16}[precision](source, target)
        yield precision, target


def answers(path: Path, pictures: Sequence[Picture]) -> Logits:
    """Logits of all pictures, a few at a time."""
    runtime = OnnxCpuRuntime(path, available_cores())
    starts = tqdm(range(0, len(pictures), BATCH), desc=path.stem, unit="batch", leave=False, disable=None)
    logits = [runtime.infer(np.stack(pictures[start : start + BATCH])) for start in starts]
    runtime.close()
    return np.concatenate(logits)


def measure(precision: Precision, path: Path, logits: Logits, base: Logits, pictures: Sequence[Labelled]) -> Row:
    """`base` are the logits of fp32."""
    best = np.argsort(-logits, axis=1)[:, :3]
    right = best == np.array([picture.class_id for picture in pictures])[:, None]
    return Row(
        precision,
        len(pictures),
        float(right[:, 0].mean()),
        float(right.any(axis=1).mean()),
        float((best[:, 0] == base.argmax(axis=1)).mean()),
        path.stat().st_size / 1e6,
    )


def compare(source: Path, spec: InputSpec, labelled: Sequence[Labelled], folder: Path) -> list[Row]:
    """Builds every precision into `folder` and measures it."""
    calibration = prepare(labelled[::3], spec)
    evaluation = [one for at, one in enumerate(labelled) if at % 3]
    pictures = prepare(evaluation, spec)
    rows: list[Row] = []
    base: Logits | None = None
    for precision, path in build(source, folder, calibration):
        logits = answers(path, pictures)
        base = logits if base is None else base
        rows.append(measure(precision, path, logits, base, evaluation))
    return rows


def report(rows: Sequence[Row], model: str, *, trained: bool) -> str:
    """A Markdown table; points are of top-1 against fp32. Untrained models have agreement alone."""
    state = "" if trained else ", untrained: only the agreement says something"
    lines = [f"{model}, typed ONNX by onnxruntime on the CPU{state}", ""]
    lines += [
        "| precision | pictures | top-1 | top-3 | against fp32 | same top-1 as fp32 | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        right = (
            f"{row.top1:.3f} | {row.top3:.3f} | {(row.top1 - rows[0].top1) * 100:+.1f} points" if trained else " |  | "
        )
        lines.append(f"| {row.precision} | {row.pictures} | {right} | {row.agreement:.3f} | {row.megabytes:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_images(parser)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--untrained", action="store_true", help="where the weights cannot be had")
    parser.add_argument("--weights-dir", type=Path, default=ROOT / "engines" / ".weights", help="of downloaded weights")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    spec = model_spec(arguments.model)
    weights = untrained_weights(spec) if arguments.untrained else official_weights(spec, arguments.weights_dir)
    reference = build_reference(spec.architecture, spec.input, len(spec.labels), weights)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "exported.onnx"
        export_onnx(reference, spec.input, source)
        rows = compare(source, spec.input, read_labels(arguments.images), Path(name))
    print(report(rows, arguments.model, trained=not arguments.untrained))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
