#!/usr/bin/env python
"""Trains the head of a torchvision model on photographs of your own, and writes what `engine-build build` takes.

    .venv/bin/python scripts/finetune_example.py PHOTOS --arch resnet18 --checkpoint flowers.pt --labels labels.txt

PHOTOS has one folder per class, or `labels.csv` (columns file, class_id, label; class_ids count from 0).
All layers but the last stay as they are, so each photograph goes through them a few times, whole and in random
crops, and the last one is trained on what came out: about a minute for a thousand photographs. It is an example: a
model that was trained as a whole, by your own program, is served in the same way.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from engine_build.download import DEFAULT_WEIGHTS_DIR
from engine_build.errors import PicturesUnusable, WeightsUnavailable
from engine_build.pictures import LABELS_NAME, folder_pictures
from engine_build.progress import Steps, bar, say
from engine_build.reference import Reference, build_reference
from engine_build.weights import LoadedWeights, file_weights, official_weights, untrained_weights
from engine_build.zoo import ARCHITECTURES, FLAGSHIP, PACKAGED, ModelSpec, model_spec, new_module
from serve_app.errors import RequestError, SetupError
from serve_app.manifest import InputSpec
from serve_app.preprocess import preprocess_exact
from serve_app.types import Picture

MAX_PIXELS = 200_000_000
BATCH = 16
HELD_OUT = 5
"""One photograph of so many of a class is not trained on."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A file and its class."""

    path: Path
    class_id: int


@dataclass(frozen=True, slots=True)
class Photographs:
    """All of them, and the labels in the order of the classes."""

    photos: tuple[Photo, ...]
    labels: tuple[str, ...]


def find_photographs(folder: Path) -> Photographs:
    """Of `labels.csv` in the folder, or of the folders in it, in the order of their names.

    Raises:
        PicturesUnusable: no such folder, fewer than two classes, or a `labels.csv` that is not one.
    """
    found = _of_csv(folder) if (folder / LABELS_NAME).is_file() else _of_folders(folder)
    if len(found.labels) < 2:
        raise PicturesUnusable(
            f"{folder} has photographs of {len(found.labels)} class; put those of each class into a folder of its own "
            f"there, or name them in {LABELS_NAME} (file,class_id,label)"
        )
    return found


def _of_folders(folder: Path) -> Photographs:
    folders = sorted(path for path in folder.glob("*/") if not path.name.startswith("."))
    photos = [Photo(item.path, number) for number, one in enumerate(folders) for item in folder_pictures(one).items]
    return Photographs(tuple(photos), tuple(one.name for one in folders))


def _of_csv(folder: Path) -> Photographs:
    path = folder / LABELS_NAME
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(row["file"], int(row["class_id"]), row["label"].strip()) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError, AttributeError):
        raise PicturesUnusable(f"labels {path} cannot be read; it needs the columns file,class_id,label") from None
    classes = sorted({(class_id, label) for _, class_id, label in rows})
    labels = [label for _, label in classes]
    if [class_id for class_id, _ in classes] != list(range(len(set(labels)))):
        raise PicturesUnusable(
            f"labels {path}: each label needs one class_id, and they count from 0 without a gap; mend the file"
        )
    photos = tuple(Photo(folder / name, class_id) for name, class_id, _ in rows)
    if lost := [photo.path.name for photo in photos if not photo.path.is_file()]:
        raise PicturesUnusable(f"labels {path} names {lost[0]}, which is not there; its paths are relative to {folder}")
    return Photographs(photos, tuple(labels))


def hold_out(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """What is trained on, and what accuracy is measured on: of each class one photograph in five."""
    training: list[Photo] = []
    held_out: list[Photo] = []
    seen: dict[int, int] = {}
    for photo in photos:
        seen[photo.class_id] = seen.get(photo.class_id, 0) + 1
        (training if seen[photo.class_id] % HELD_OUT else held_out).append(photo)
    return training, held_out


@dataclass(frozen=True, slots=True)
class Views:
    """What is made of a photograph: itself as the service prepares it, and random crops."""

    whole: bool
    crops: int
    seed: int


def views(photo: Photo, spec: InputSpec, wanted: Views) -> Iterator[tuple[Picture, int]]:
    """Each view with the class; none, with a warning, where the file is no picture."""
    try:
        prepared = preprocess_exact(photo.path.read_bytes(), spec, max_pixels=MAX_PIXELS)
    except RequestError as error:
        print(f"left out: {photo.path}: {error}", file=sys.stderr)
        return
    if wanted.whole:
        yield prepared, photo.class_id
    random = np.random.default_rng([wanted.seed, *photo.path.name.encode()])
    with Image.open(photo.path) as opened:
        whole = ImageOps.exif_transpose(opened).convert("RGB")
    for _ in range(wanted.crops):
        yield _crop(whole, spec, random), photo.class_id


def _crop(whole: Image.Image, spec: InputSpec, random: np.random.Generator) -> Picture:
    """A part of a third of the area or more, now and then mirrored."""
    shares = np.sqrt(random.uniform(0.35, 1)) * np.exp(np.array([1, -1]) * random.uniform(-0.15, 0.15))
    width, height = np.minimum(shares, 1) * whole.size
    left, top = random.uniform(0, 1, 2) * (whole.width - width, whole.height - height)
    how = Image.Resampling[spec.interpolation.upper()]
    box = (left, top, left + width, top + height)
    part = whole.resize((spec.width, spec.height), how, box, reducing_gap=3.0)
    return np.asarray(ImageOps.mirror(part) if random.random() < 0.5 else part)


def load_backbone(spec: ModelSpec, options: argparse.Namespace) -> tuple[Reference, str]:
    """The model whose last layer is replaced, and where its weights are from, in words.

    Where the official weights cannot be had, random ones take their place: that is enough to tell a few photographs
    apart and to try everything out, and it says so.
    """
    if options.untrained:
        loaded = untrained_weights(spec)
    elif options.weights:
        loaded = file_weights(options.weights, spec)
    else:
        loaded = _official_or_random(spec, options.weights_dir)
    words = f"on weights {loaded.record.name}" if loaded.record.source != "untrained" else "on RANDOM weights"
    return build_reference(spec.architecture, spec.input, len(spec.labels), loaded), words


def _official_or_random(spec: ModelSpec, weights_dir: Path) -> LoadedWeights:
    try:
        return official_weights(spec, weights_dir)
    except WeightsUnavailable as error:
        say(
            f"the layers below the head are RANDOM: {error}. Good enough to try this out, not for photographs that "
            f"were not trained on; --arch {PACKAGED} needs no download"
        )
        return untrained_weights(spec)


def features_of(backbone: Reference, pictures: Iterable[tuple[Picture, int]]) -> tuple[Tensor, Tensor]:
    """What reaches the last layer, float32 (n, width), and the classes, int64 (n)."""
    seen: list[Tensor] = []
    class_ids: list[int] = []
    head = _head(backbone)[1]
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    stream = iter(pictures)
    while batch := list(islice(stream, BATCH)):
        backbone.infer(np.stack([picture for picture, _ in batch]))
        class_ids += [class_id for _, class_id in batch]
    hook.remove()
    if not class_ids:
        raise PicturesUnusable("none of the photographs can be read; pass a folder with JPEG or PNG files")
    return torch.cat(seen), torch.tensor(class_ids)


def train_head(features: Tensor, class_ids: Tensor, classes: int, steps: int) -> nn.Linear:
    """A linear layer from features to logits, the same on every run."""
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-3)
    scaled = (features - mean) / spread
    head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(head(scaled), class_ids, label_smoothing=0.05)
        loss.backward()
        optimiser.step()
    with torch.no_grad():  # the scaling becomes part of the layer
        head.weight.div_(spread)
        head.bias.sub_(head.weight @ mean)
    return head


def accuracy(head: nn.Linear, features: Tensor, class_ids: Tensor) -> float:
    """Share (0..1) whose first class is right."""
    with torch.inference_mode():
        return float((head(features).argmax(1) == class_ids).float().mean())


def _most_frequent(class_ids: Tensor) -> float:
    return float(class_ids.bincount().max() / len(class_ids))


def checkpoint(backbone: Reference, architecture: str, head: nn.Linear) -> dict[str, Tensor]:
    """The state_dict of the architecture with this head."""
    name, _ = _head(backbone)
    state = new_module(architecture, head.out_features).state_dict()
    state.update({key: value for key, value in backbone.classifier.state_dict().items() if key in state})
    return state | {f"{name}.weight": head.weight.detach(), f"{name}.bias": head.bias.detach()}


def _head(backbone: Reference) -> tuple[str, nn.Linear]:
    return [(name, part) for name, part in backbone.classifier.named_modules() if isinstance(part, nn.Linear)][-1]


def run(options: argparse.Namespace) -> None:
    """Everything from photographs to files; says what it reached.

    Raises:
        SetupError: the photographs or the weights cannot be used.
    """
    found = find_photographs(options.photos)
    training, held_out = hold_out(found.photos)
    spec = model_spec(options.arch)
    steps = Steps(3)
    with steps.step(f"weights of {options.arch}", has_bar=True):
        backbone, words = load_backbone(spec, options)
    with steps.step(f"{len(found.photos)} photographs through all layers but the last", has_bar=True):
        trained_on = features_of(backbone, _all_views(training, spec.input, Views(True, options.crops, options.seed)))
        # Crops of other places stand in for photographs that were held out where there are none.
        other = Views(True, 0, 0) if held_out else Views(False, 6, options.seed + 1)
        measured_on = features_of(backbone, _all_views(held_out or training, spec.input, other))
    with steps.step("training the last layer"):
        head = train_head(*trained_on, len(found.labels), options.steps)
    torch.save(checkpoint(backbone, options.arch, head), options.checkpoint)
    options.labels.write_text("\n".join(found.labels) + "\n", encoding="utf-8")
    what = "photographs held out" if held_out else "other crops of the same (of five of a class, one is held out)"
    say(
        f"{options.checkpoint} and {options.labels}: {options.arch} {words}, {len(found.labels)} classes, "
        f"{len(training)} photographs trained on\n"
        f"top-1 accuracy {accuracy(head, *measured_on):.1%} of {len(measured_on[1])} {what}; always the most frequent "
        f"class: {_most_frequent(measured_on[1]):.1%}\n"
        f"next: engine-build build --checkpoint {options.checkpoint} --arch {options.arch} --labels {options.labels} "
        f"--name {options.checkpoint.stem} --pictures {options.photos}"
    )


def _all_views(photos: Sequence[Photo], spec: InputSpec, wanted: Views) -> Iterator[tuple[Picture, int]]:
    for photo in bar(photos, total=len(photos), title="photographs"):
        yield from views(photo, spec, wanted)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder with a folder per class, or labels.csv")
    parser.add_argument("--arch", choices=ARCHITECTURES, default=FLAGSHIP, help=f"default {FLAGSHIP}")
    parser.add_argument("--checkpoint", type=Path, default=Path("flowers.pt"), metavar="FILE", help="written")
    parser.add_argument("--labels", type=Path, default=Path("labels.txt"), metavar="FILE", help="written")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="FILE", help="the official weights, instead of the download")
    weights.add_argument("--untrained", action="store_true", help="random weights below the last layer")
    parser.add_argument("--weights-dir", type=Path, default=DEFAULT_WEIGHTS_DIR, metavar="DIR")
    parser.add_argument("--crops", type=int, default=8, help="random crops of each photograph; default 8")
    parser.add_argument("--steps", type=int, default=300, help="of training; default 300")
    parser.add_argument("--seed", type=int, default=0, help="of the crops")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 cannot be done."""
    try:
        run(parser().parse_args(argv))
    except SetupError as error:
        print(f"finetune_example: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
