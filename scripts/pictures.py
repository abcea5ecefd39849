"""The picture files of a folder, for scripts that read or send them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def picture_files(folder: Path) -> list[Path]:
    """In order of name; not those of folders inside."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def add_images(parser: argparse.ArgumentParser) -> None:
    """The option `--images DIR`."""
    default = Path(os.environ.get("IMAGES_DIR", Path(__file__).parent.parent / "../shared/images"))
    parser.add_argument("--images", type=Path, default=default, help="default: $IMAGES_DIR")
