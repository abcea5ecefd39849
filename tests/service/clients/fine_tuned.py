"""A real fine-tuned model for tests: ResNet-18, its last layer trained on the photographs that are part of the project.

Versions of the engine `samples4` (openvino fp32): 1 is served; 2 was trained further and has its classes in the
opposite order, so that labels of one with scores of the other would be wrong; the others must never be taken in.
"""

from __future__ import annotations

import atexit
import csv
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from engine_build.cli import main as engine_build
from scripts.finetune_example import main as finetune
from serve_app.manifest import Manifest, read_manifest, sha256_of, write_manifest
from tests.engine_helpers import SAMPLES

NAME = "samples4"
VARIANT = "openvino-fp32"
LABELS = ("astronaut", "cat", "espresso", "rocket")
"""Of version 1; version 2 has them from the last to the first."""
BAD_FIGURES, NOT_A_NETWORK, OTHER_CLASSES = 3, 4, 5
"""Versions: compares badly with torch eager; does not load; loads, and fails when it is warmed. All hashes fit."""


def fine_tuned_engine(engines_dir: Path) -> None:
    """Puts all versions of `samples4` below `engines_dir`, which need not exist yet."""
    shutil.copytree(_built() / "engines" / NAME, engines_dir / NAME, copy_function=_link, dirs_exist_ok=True)


@cache
def _built() -> Path:
    """A folder with `engines/`, built once for all tests of a run: twenty seconds."""
    folder = Path(tempfile.mkdtemp(prefix="fine-tuned-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for version, labels in ((1, LABELS), (2, LABELS[::-1])):
        _build(folder, version, labels)
    good = read_manifest(_engine(folder, 2))
    assert good.verify
    bad = good.verify.model_copy(update={"top1_agreement": 0.5})
    _break(folder, BAD_FIGURES, good.model_copy(update={"verify": bad}))
    _break(folder, NOT_A_NETWORK, good, "not a network")
    _break(folder, OTHER_CLASSES, good.model_copy(update={"labels": (*good.labels, "one too many")}))
    return folder


def _build(folder: Path, version: int, labels: tuple[str, ...]) -> None:
    photos = folder / f"photos-{version}"
    photos.mkdir()
    for label in labels:
        shutil.copy(SAMPLES / f"{label}.jpg", photos)
    with (photos / "labels.csv").open("w", newline="") as file:
        rows = [(f"{label}.jpg", class_id, label) for class_id, label in enumerate(labels)]
        csv.writer(file).writerows([("file", "class_id", "label"), *rows])
    files = ["--checkpoint", str(folder / f"{version}.pt"), "--labels", str(folder / f"{version}.txt")]
    train = [str(photos), "--untrained", "--seed", str(version), "--steps", str(200 * version), *files]
    build = [
        "build",
        "--name",
        NAME,
        "--version",
        str(version),
        "--arch",
        "resnet18",
        "--pictures",
        str(photos),
        *files,
    ]
    assert finetune(train) == 0
    assert engine_build([*build, "--max-batch", "1", "--engines-dir", str(folder / "engines")]) == 0


def _break(folder: Path, version: int, manifest: Manifest, artifact: str | None = None) -> None:
    """A copy of version 2 with another manifest and, if given, another artifact."""
    broken = shutil.copytree(_engine(folder, 2), _engine(folder, version), copy_function=_link)
    if artifact:
        (broken / manifest.artifact).unlink()
        (broken / manifest.artifact).write_text(artifact)
    files = {name: sha256_of(broken / name) for name in manifest.files}
    (broken / "manifest.json").unlink()
    write_manifest(broken, manifest.model_copy(update={"version": version, "files": files}))


def _engine(folder: Path, version: int) -> Path:
    return folder / "engines" / NAME / (str(version) if version > 1 else "") / VARIANT


def _link(source: str, target: str) -> None:
    """Forty megabytes a version; nothing writes into an engine's files, they are replaced."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
