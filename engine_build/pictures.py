"""Real pictures to calibrate with and to compare on, read through the preprocessing that serves."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from engine_build.errors import PicturesUnusable
from serve_app.errors import RequestError
from serve_app.manifest import InputSpec
from serve_app.preprocess import preprocess_exact
from serve_app.types import Picture, Pictures

LABELS_NAME = "labels.csv"
_SAMPLES = Path(__file__).parent / "samples"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
_MAX_PIXELS = 200_000_000
# Left, top, right, bottom in shares of the picture: the whole, the middle and the four corners.
_CROPS = (
    (0, 0, 1, 1),
    (0.15, 0.15, 0.85, 0.85),
    (0, 0, 0.7, 0.7),
    (0.3, 0, 1, 0.7),
    (0, 0.3, 0.7, 1),
    (0.3, 0.3, 1, 1),
)


@dataclass(frozen=True, slots=True)
class Item:
    """One picture: a file, or a part of one; `class_id` where a label was given."""

    path: Path
    class_id: int | None = None
    crop: tuple[float, float, float, float] | None = None
    mirrored: bool = False

    def read(self, spec: InputSpec) -> Picture:
        """Engine input.

        Raises:
            RequestError: not a picture.
        """
        body = self.path.read_bytes()
        return preprocess_exact(self._part(body) if self.crop else body, spec, max_pixels=_MAX_PIXELS)

    def _part(self, body: bytes) -> bytes:
        with Image.open(io.BytesIO(body)) as image:
            left, top, right, bottom = self.crop or _CROPS[0]
            width, height = image.size
            part = image.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
        target = io.BytesIO()
        (ImageOps.mirror(part) if self.mirrored else part).save(target, "PNG", compress_level=1)
        return target.getvalue()


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Pictures in a fixed order, and where they came from in words."""

    items: tuple[Item, ...]
    description: str

    def __len__(self) -> int:
        return len(self.items)

    def read(self, spec: InputSpec) -> Iterator[tuple[Item, Picture | None]]:
        """Each item with its engine input, or with None where the file is not a picture."""
        for item in self.items:
            try:
                yield item, item.read(spec)
            except RequestError:
                yield item, None

    def spread(self, count: int) -> PictureSet:
        """At most `count` of them, evenly over the whole: folders are often sorted by class."""
        if len(self.items) <= count:
            return self
        chosen = np.linspace(0, len(self.items) - 1, count).round().astype(int)
        return PictureSet(tuple(self.items[index] for index in chosen), self.description)


def sample_pictures() -> PictureSet:
    """The photographs that come with this package, their parts and mirror images: 48 pictures."""
    items = tuple(
        Item(path, crop=crop, mirrored=mirrored)
        for path in sorted(_SAMPLES.glob("*.jpg"))
        for crop in _CROPS
        for mirrored in (False, True)
    )
    return PictureSet(items, "sample photographs of this package, cropped and mirrored")


@lru_cache(maxsize=4)
def sample_batch(spec: InputSpec) -> Pictures:
    """`sample_pictures` without the mirror images, as one array."""
    return np.stack([item.read(spec) for item in sample_pictures().items if not item.mirrored])


def folder_pictures(folder: Path) -> PictureSet:
    """Every picture file below `folder`, in the order of their names.

    Raises:
        PicturesUnusable: no such folder, or no picture file in it.
    """
    if not folder.is_dir():
        raise PicturesUnusable(f"no folder {folder}; pass one with pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise PicturesUnusable(f"{folder} has no picture files ({', '.join(sorted(_SUFFIXES))}); pass another folder")
    return PictureSet(tuple(Item(path) for path in paths), f"folder {folder.resolve().name}")


def labelled_pictures(folder: Path, labels_csv: Path | None, num_classes: int) -> PictureSet:
    """`folder_pictures` with their classes, where labels were given.

    Args:
        labels_csv: columns `file` (relative to the folder) and `class_id`; by default `labels.csv` in the folder,
            if there is one.
        num_classes: classes of the model, which no label may exceed.

    Raises:
        PicturesUnusable: as `folder_pictures`, or unusable labels.
    """
    pictures = folder_pictures(folder)
    path = labels_csv or folder / LABELS_NAME
    if labels_csv is None and not path.is_file():
        return pictures
    labels = _read_labels_csv(path, num_classes)
    items = tuple(replace(item, class_id=labels.get(_name_in(folder, item))) for item in pictures.items)
    if not any(item.class_id is not None for item in items):
        raise PicturesUnusable(f"{path} names none of the pictures in {folder}; its paths are relative to the folder")
    return replace(pictures, items=items)


def _name_in(folder: Path, item: Item) -> str:
    return item.path.relative_to(folder).as_posix()


def _read_labels_csv(path: Path, num_classes: int) -> dict[str, int]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            labels = {row["file"]: int(row["class_id"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it needs the columns file,class_id"
        raise PicturesUnusable(
            f"labels {path} cannot be read: {reason}; mend it or pass another --labels-csv"
        ) from None
    wrong = [f"{name} ({label})" for name, label in labels.items() if not 0 <= label < num_classes]
    if wrong:
        raise PicturesUnusable(f"labels {path}: no such class of this model's {num_classes}: {wrong[0]}; mend the file")
    return labels
