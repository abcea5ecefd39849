"""Engines built once for all engine tests, and where real pictures are."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from engine_build.cli import main

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "engine_build" / "samples"
SMALL = "shufflenet_v2_x1_0"
SMALL_ENGINE = f"{SMALL}/openvino-fp32"


@cache
def small_engines() -> Path:
    """An engines folder with one untrained shufflenet in it, the ONNX cache beside; copy it before changing it."""
    root = Path(tempfile.mkdtemp(prefix="engine-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    assert main(["build", "--model", SMALL, "--untrained", "--max-batch", "2", "--engines-dir", str(root)]) == 0
    return root


def own_engines(target: Path) -> Path:
    """A copy of `small_engines` below `target`."""
    return shutil.copytree(small_engines(), target / "engines")


def images_dir() -> Path:
    """The folder of labelled ImageNet photographs; skips the test where there is none."""
    folder = Path(os.environ.get("IMAGES_DIR", ROOT.parent / "shared" / "images"))
    if not (folder / "labels.csv").is_file():
        pytest.skip(f"no labelled photographs in {folder}; set IMAGES_DIR")
    return folder


def leftovers(engines: Path) -> list[str]:
    """Everything below an engines folder but caches, locks and engines."""
    return [
        str(path.relative_to(engines))
        for path in engines.glob("*/*")
        if path.parent.name not in (".cache", ".locks") and not (path / "manifest.json").is_file()
    ]
