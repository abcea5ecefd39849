from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from engine_build.cli import main
from engine_build.errors import PicturesUnusable
from engine_build.pictures import folder_pictures, labelled_pictures
from engine_build.quantize import calibration_pictures
from engine_build.zoo import PACKAGED
from serve_app.manifest import InputSpec, read_manifest
from tests.engine_helpers import SAMPLES, images_dir, leftovers


def split(images: Path, target: Path) -> tuple[Path, Path]:
    """Every third picture to calibrate on, the others with their labels to evaluate on."""
    with (images / "labels.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
    calibration, evaluation = target / "calibration", target / "evaluation"
    for folder in (calibration, evaluation):
        folder.mkdir()
    for index, row in enumerate(rows):
        (calibration if index % 3 == 0 else evaluation).joinpath(row["file"]).symlink_to(images / row["file"])
    shutil.copy(images / "labels.csv", evaluation)
    return calibration, evaluation


@pytest.mark.engines
def test_int8_loses_at_most_two_points(tmp_path: Path) -> None:
    calibration, evaluation = split(images_dir().resolve(), tmp_path)
    engines = tmp_path / "engines"
    command = ["build", "--model", PACKAGED, "--precision", "int8", "--max-batch", "1", "--engines-dir", str(engines)]
    assert main([*command, "--calibration", str(calibration), "--pictures", str(evaluation)]) == 0
    manifest = read_manifest(engines / PACKAGED / "openvino-int8")
    assert manifest.calibration == "100 pictures of folder calibration"
    figures = manifest.verify
    assert figures is not None
    assert figures.accuracy is not None
    assert figures.accuracy.pictures == 200
    assert figures.accuracy.reference_top1 >= 0.87
    assert figures.accuracy.reference_top1 - figures.accuracy.top1 <= 0.02
    assert figures.top1_agreement >= 0.95
    assert leftovers(engines) == []


def test_pictures_that_do_not_decode_are_left_out(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "cat.jpg", tmp_path / "b.jpg")
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    assert len(calibration_pictures(folder_pictures(tmp_path), InputSpec())) == 1


def test_no_readable_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(PicturesUnusable, match=r"none of the pictures in folder .* can be read"):
        calibration_pictures(folder_pictures(tmp_path), InputSpec())


def test_a_subset_is_spread_over_the_whole_folder(tmp_path: Path) -> None:
    for index in range(40):
        (tmp_path / f"{index:02}.png").touch()
    chosen = [item.path.stem for item in folder_pictures(tmp_path).spread(4).items]
    assert chosen == ["00", "13", "26", "39"]
    assert len(folder_pictures(tmp_path).spread(50)) == 40


def test_pictures_in_class_folders_are_found_and_labelled(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    shutil.copy(SAMPLES / "cat.jpg", tmp_path / "cats" / "one.JPG")
    (tmp_path / "labels.csv").write_text("file,class_id\ncats/one.JPG,3\n")
    (item,) = labelled_pictures(tmp_path, None, 5).items
    assert (item.path.name, item.class_id) == ("one.JPG", 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("file,class_id\na.jpg,5\n", "no such class of this model's 5: a.jpg"),
        ("name,label\na.jpg,1\n", "needs the columns file,class_id"),
        ("file,class_id\nb.jpg,1\n", "names none of the pictures"),
    ],
)
def test_labels_that_do_not_belong_are_refused(tmp_path: Path, labels: str, message: str) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(PicturesUnusable, match=message):
        labelled_pictures(tmp_path, None, 5)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PicturesUnusable, match="has no picture files"):
        folder_pictures(tmp_path)
    with pytest.raises(PicturesUnusable, match="no folder"):
        folder_pictures(tmp_path / "none")
