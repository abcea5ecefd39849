"""A prepared TensorRT engine that takes milliseconds to make, and a run of gpu_check on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from scripts.gpu_check.cli import main, parsed
from scripts.gpu_check.options import Engine, Options
from serve_app.golden import Golden, write_golden
from serve_app.manifest import Precision, read_manifest, sha256_of, write_manifest
from tests.fakes import SHAPE, manifest
from tests.tiny_engine import expected, onnx_model


def prepared(engines: Path, precision: Precision = "fp32", *, wrong: bool = False) -> Engine:
    """`engines/fake/tensorrt-PRECISION`; `wrong` gives its pictures each other's known answers."""
    folder = engines / "fake" / f"tensorrt-{precision}"
    folder.mkdir(parents=True)
    onnx.save(onnx_model(), folder / "model.onnx")
    pictures = np.random.default_rng(11).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    logits = expected(pictures)
    write_golden(folder, Golden(pictures, logits[::-1].copy() if wrong else logits))
    files = {name: sha256_of(folder / name) for name in ("model.onnx", "golden.npz")}
    fields = {"backend": "tensorrt", "precision": precision, "artifact": "model.onnx", "files": files}
    write_manifest(folder, manifest(**fields))
    return Engine(folder, read_manifest(folder))


def command(root: Path, *more: str) -> list[str]:
    """A quick rehearsal with the engines in `root`/engines, its report in `root`/out."""
    places = ["--engines-dir", str(root / "engines"), "--out", str(root / "out")]
    return ["--stand-in", "--quick", "--model", "fake", "--max-batch", "2", *places, *more]


def options(root: Path, *more: str) -> Options:
    """What `command` says."""
    return parsed(command(root, *more))


def rehearse(root: Path, *more: str) -> tuple[int, str, dict[str, Any]]:
    """Exit status, report.md and report.json of a run."""
    status = main(command(root, *more))
    return status, (root / "out/report.md").read_text(), json.loads((root / "out/report.json").read_text())
