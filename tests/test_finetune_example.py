"""The example of fine-tuning, and what becomes of its checkpoint: ResNet-18 with a real last layer, in seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine_build.cli import main as engine_build
from engine_build.errors import PicturesUnusable, WeightsUnavailable
from engine_build.pictures import sample_pictures
from engine_build.reference import build_reference
from engine_build.store import EngineStore
from engine_build.weights import file_weights, read_labels, untrained_weights
from engine_build.zoo import custom_spec, input_spec, model_spec
from scripts import finetune_example
from scripts.finetune_example import (
    Photo,
    Views,
    accuracy,
    features_of,
    find_photographs,
    hold_out,
    main,
    train_head,
    views,
)
from serve_app.engines import Engine, check_figures, find_engine, open_engine
from serve_app.errors import EngineError
from serve_app.preprocess import preprocess_exact
from serve_app.settings import EngineSettings
from tests.engine_helpers import SAMPLES, SMALL
from tests.service.clients.fine_tuned import (
    BAD_FIGURES,
    LABELS,
    NAME,
    NOT_A_NETWORK,
    OTHER_CLASSES,
    VARIANT,
    fine_tuned_engine,
)

SPEC = input_spec("resnet18")


def photos_of(folder: Path, classes: dict[str, int]) -> Path:
    """So many small pictures of each class, in a folder of its own."""
    for label, count in classes.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            colour = np.random.default_rng([number, *label.encode()]).integers(0, 256, 3, np.uint8)
            Image.new("RGB", (40, 30), tuple(int(one) for one in colour)).save(folder / label / f"{number:02}.png")
    return folder


def with_csv(folder: Path, text: str) -> Path:
    photos_of(folder, {"x": 3})
    (folder / "labels.csv").write_text(text)
    return folder


def test_classes_are_the_folders_in_order(tmp_path: Path) -> None:
    found = find_photographs(photos_of(tmp_path / "photos", {"wasp": 1, "bee": 2}))
    assert found.labels == ("bee", "wasp")
    assert [(photo.path.parent.name, photo.class_id) for photo in found.photos] == [("bee", 0), ("bee", 0), ("wasp", 1)]


def test_classes_are_those_of_labels_csv(tmp_path: Path) -> None:
    folder = with_csv(tmp_path / "photos", "file,class_id,label\nx/00.png,1,bee\nx/01.png,0,wasp\nx/02.png,1,bee\n")
    found = find_photographs(folder)
    assert found.labels == ("wasp", "bee")
    assert [(photo.path.name, photo.class_id) for photo in found.photos] == [
        ("00.png", 1),
        ("01.png", 0),
        ("02.png", 1),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\nx/00.png,bee\n", "columns file,class_id,label"),
        ("file,class_id,label\nx/00.png,one,bee\n", "columns file,class_id,label"),
        ("file,class_id,label\nx/00.png,0,bee\nx/01.png,2,wasp\n", "count from 0 without a gap"),
        ("file,class_id,label\nx/00.png,0,bee\nx/01.png,1,bee\n", "each label needs one class_id"),
        ("file,class_id,label\nx/00.png,0,bee\nx/01.png,0,wasp\n", "count from 0 without a gap"),
        ("file,class_id,label\nx/00.png,0,bee\nx/09.png,1,wasp\n", "names 09.png, which is not there"),
        ("file,class_id,label\nx/00.png,0,bee\n", "photographs of 1 class;"),
    ],
)
def test_a_labels_csv_that_cannot_be_used_is_one_line(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(with_csv(tmp_path / "photos", text))]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("finetune_example: ")
    assert said in line


def test_one_in_five_of_a_class_is_held_out(tmp_path: Path) -> None:
    found = find_photographs(photos_of(tmp_path, {"a": 4, "b": 11}))
    training, held_out = hold_out(found.photos)
    assert [photo.path.name for photo in held_out] == ["04.png", "09.png"]
    assert {photo.class_id for photo in held_out} == {1}
    assert sorted([*training, *held_out], key=str) == sorted(found.photos, key=str)


def test_views_are_what_the_service_sees_and_crops(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photo = Photo(SAMPLES / "cat.jpg", 1)
    whole, *crops = views(photo, SPEC, Views(True, 3, 0))
    assert np.array_equal(whole[0], preprocess_exact(photo.path.read_bytes(), SPEC, max_pixels=10**8))
    again = list(views(photo, SPEC, Views(False, 3, 0)))
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(crops, again, strict=True))
    others = list(views(photo, SPEC, Views(False, 3, 1)))
    assert not any(np.array_equal(one[0], other[0]) for one, other in zip(crops, others, strict=True))
    assert {(crop.shape, crop.dtype, class_id) for crop, class_id in crops} == {((224, 224, 3), np.dtype("uint8"), 1)}
    (tmp_path / "broken.jpg").write_bytes(photo.path.read_bytes()[:500])
    assert list(views(Photo(tmp_path / "broken.jpg", 0), SPEC, Views(True, 3, 0))) == []
    assert "left out: " in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1, 1), (2, 700), (700, 2)])
def test_crops_of_odd_pictures(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("L", size, 90).save(tmp_path / "odd.png")
    pictures = [picture for picture, _ in views(Photo(tmp_path / "odd.png", 0), SPEC, Views(True, 20, 0))]
    assert len(pictures) == 21
    assert all((picture == 90).all() for picture in pictures)


def test_the_head_takes_features_as_they_are() -> None:
    torch.manual_seed(0)
    class_ids = torch.arange(60) % 3
    features = torch.randn(60, 8) * 0.1 + 50
    features[torch.arange(60), class_ids] += 1
    features[:, 3] = 7.0  # tells nothing, and never varies
    head = train_head(features, class_ids, 3, 200)
    assert accuracy(head, features, class_ids) == 1.0
    assert accuracy(head, features, (class_ids + 1) % 3) == 0.0


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2", SMALL, "efficientnet_lite0"])
def test_features_are_what_the_last_layer_is_given(architecture: str) -> None:
    spec = model_spec(architecture)
    backbone = build_reference(architecture, spec.input, 1000, untrained_weights(spec))
    pictures = [item.read(spec.input) for item in sample_pictures().items[:3]]
    features, class_ids = features_of(backbone, [(picture, number) for number, picture in enumerate(pictures)])
    _, head = finetune_example._head(backbone)
    np.testing.assert_allclose(head(features).detach(), backbone.infer(np.stack(pictures)), atol=1e-4)
    assert class_ids.tolist() == [0, 1, 2]
    with pytest.raises(PicturesUnusable, match="none of the photographs can be read"):
        features_of(backbone, [])


def refuse(*_: object) -> None:
    raise WeightsUnavailable("there is no network")


@pytest.mark.engines
def test_it_trains_and_says_how_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_example, "official_weights", refuse)
    photos = tmp_path / "photos"
    for label in LABELS:
        (photos / label).mkdir(parents=True)
        shutil.copy(SAMPLES / f"{label}.jpg", photos / label)
    files = ["--checkpoint", str(tmp_path / "own.pt"), "--labels", str(tmp_path / "own.txt")]
    assert main([str(photos), *files]) == 0
    said = capsys.readouterr().out
    assert "the layers below the head are RANDOM: there is no network" in said
    assert "resnet18 on RANDOM weights, 4 classes, 4 photographs trained on" in said
    assert "top-1 accuracy 100.0% of 24 other crops of the same" in said
    assert "always the most frequent class: 25.0%" in said
    assert read_labels(tmp_path / "own.txt") == LABELS
    spec = custom_spec("own", "resnet18", LABELS)
    model = build_reference("resnet18", SPEC, 4, file_weights(tmp_path / "own.pt", spec))
    items = sample_pictures().items
    found = model.infer(np.stack([item.read(SPEC) for item in items])).argmax(1)
    right = [LABELS[class_id] == item.path.stem for class_id, item in zip(found, items, strict=True)]
    assert np.mean(right) > 0.9  # 48 crops and mirror images


def settings(engines: Path, version: int) -> EngineSettings:
    return EngineSettings(engines_dir=engines, model=NAME, version=version)


def opened(engines: Path, version: int) -> Engine:
    return open_engine(settings(engines, version), threads=1, max_batch_size=2, inference_precision="fp32")


def labels_of_samples(engine: Engine) -> dict[str, str]:
    """What the engine says to each of the photographs."""
    items = [item for item in sample_pictures().items if not item.mirrored and item.crop == (0, 0, 1, 1)]
    logits = np.concatenate([engine.runtimes[0].infer(item.read(engine.manifest.input)[None]) for item in items])
    return {item.path.stem: engine.manifest.labels[row.argmax()] for item, row in zip(items, logits, strict=True)}


@pytest.mark.engines
def test_two_versions_of_its_engine_answer_and_three_are_not_taken_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = tmp_path / "engines"
    fine_tuned_engine(engines)
    store = EngineStore(engines)
    assert [folder.parent.name for folder in store.folders()] == [NAME, "2", "3", "4", "5"]
    for version, labels in ((1, LABELS), (2, LABELS[::-1])):
        engine = opened(engines, version)
        check_figures(engine.manifest)
        assert (engine.manifest.version, engine.manifest.labels) == (version, labels)
        assert engine.manifest.verify is not None
        assert engine.manifest.verify.accuracy is not None
        assert engine.manifest.verify.accuracy.top1 == 1.0
        assert labels_of_samples(engine) == {label: label for label in LABELS}
    with pytest.raises(EngineError, match=rf"{NAME}@3/{VARIANT} is not taken in: .* 50\.0% of pictures"):
        check_figures(find_engine(settings(engines, BAD_FIGURES))[1])
    for version, said in ((NOT_A_NETWORK, "does not load"), (OTHER_CLASSES, r"answers in shape \(\d, 4\)")):
        check_figures(find_engine(settings(engines, version))[1])
        with pytest.raises(EngineError, match=rf"{NAME}@{version}/{VARIANT} at .* {said}"):
            opened(engines, version)
    capsys.readouterr()
    assert engine_build(["list", "--engines-dir", str(engines)]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["ENGINE", f"{NAME}/{VARIANT}", *(f"{NAME}@{version}/{VARIANT}" for version in (2, 3, 4, 5))]
    assert engine_build(["info", f"{NAME}@2/{VARIANT}", "--engines-dir", str(engines)]) == 0
    assert "rocket, espresso, cat" in capsys.readouterr().out
