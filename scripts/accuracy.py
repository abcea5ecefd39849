#!/usr/bin/env python
"""Accuracy of the whole service over HTTP: every precision and preprocessing mode on labelled photographs.

    .venv/bin/python scripts/accuracy.py --images DIR

DIR holds photographs and `labels.csv` (columns file, class_id). Every third photograph calibrates int8; all
variants are measured on the other two thirds, so that they compare; fp32 exact is measured on all of them too.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from scripts.local_service import BIN, load, running, with_args
from scripts.pictures import add_images

VARIANTS = [("fp32", "exact"), ("fp32", "fast"), ("int8", "exact"), ("int8", "fast")]


@dataclass(frozen=True)
class Labelled:
    """A photograph and its class."""

    path: Path
    class_id: int


@dataclass(frozen=True)
class Row:
    """Share of right answers of one variant."""

    precision: str
    mode: str
    pictures: int
    top1: float
    top3: float


def read_labels(folder: Path) -> list[Labelled]:
    """`labels.csv` of a folder, in the order of file names."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = [Labelled(folder / row["file"], int(row["class_id"])) for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: row.path.name)


def measure(address: str, pictures: list[Labelled], precision: str, mode: str) -> Row:
    """Sends every picture, eight at a time."""
    with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(8) as pool:

        def classes(picture: Labelled) -> list[int]:
            answer = client.post("/predict", content=picture.path.read_bytes()).raise_for_status().json()
            return [one["class_id"] for one in answer["predictions"]]

        bar = tqdm(pool.map(classes, pictures), total=len(pictures), desc=f"{precision} {mode}", unit="picture")
        answers = list(bar)
    right1 = sum(ids[0] == picture.class_id for ids, picture in zip(answers, pictures, strict=True))
    right3 = sum(picture.class_id in ids for ids, picture in zip(answers, pictures, strict=True))
    return Row(precision, mode, len(pictures), right1 / len(pictures), right3 / len(pictures))


def build(model: str, engines: Path, calibration: Path) -> None:
    """Both engines; int8 from the calibration pictures."""
    command = [str(BIN / "engine-build"), "build", "--model", model, "--engines-dir", str(engines)]
    subprocess.run([*command, "--precision", "fp32"], check=True)
    subprocess.run([*command, "--precision", "int8", "--calibration", str(calibration)], check=True)


def report(rows: list[Row], model: str) -> str:
    """A Markdown table; differences are in points of top-1 against fp32 exact on the same pictures."""
    base = next(row for row in rows if (row.precision, row.mode) == VARIANTS[0] and row.pictures == rows[1].pictures)
    lines = [f"{model}, over HTTP", "", "| precision | preprocess | pictures | top-1 | top-3 | against fp32 exact |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        points = f"{(row.top1 - base.top1) * 100:+.1f} points" if row.pictures == base.pictures else ""
        lines.append(f"| {row.precision} | {row.mode} | {row.pictures} | {row.top1:.3f} | {row.top3:.3f} | {points} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_images(parser)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    labelled = read_labels(arguments.images)
    calibration, evaluation = labelled[::3], [row for at, row in enumerate(labelled) if at % 3]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "calibration").mkdir()
        for picture in calibration:
            (folder / "calibration" / picture.path.name).symlink_to(picture.path.absolute())
        build(arguments.model, folder / "engines", folder / "calibration")
        for precision, mode in VARIANTS:
            engine = {"model": arguments.model, "precision": precision}
            config = with_args(load("local"), {"engine": engine, "preprocess": {"mode": mode}})
            with running(config, folder) as address:
                if not rows:
                    rows.append(measure(address, labelled, precision, mode))
                rows.append(measure(address, evaluation, precision, mode))
    print(report(rows, arguments.model))
    if arguments.json:
        arguments.json.write_text(json.dumps([row.__dict__ for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
