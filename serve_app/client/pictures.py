"""Which files the paths of a command line mean."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import ConfigError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"}
)
"""Of files taken from folders; a file that is named itself may be called anything."""


@dataclass(frozen=True, slots=True)
class Found:
    """Paths as they will stand in the results, each once; `other_files` of the folders do not look like pictures."""

    paths: list[str]
    other_files: int


def find_pictures(paths: Iterable[Path], *, recursive: bool = True) -> Found:
    """Files named, and picture files in folders named, folder by folder in the order of their names.

    Hidden files and folders are left out, and links to folders are not followed.

    Raises:
        ConfigError: a path is not there, or nothing was found.
    """
    found: dict[str, None] = {}
    other_files = 0
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise ConfigError(f"no file or folder {path}; check the path")
            found[str(path)] = None
            continue
        for one in _files_in(path, recursive):
            if os.path.splitext(one)[1].lower() in SUFFIXES:
                found[one] = None
            else:
                other_files += 1
    if not found:
        raise ConfigError(f"no picture files in the folders given; they end in {' '.join(sorted(SUFFIXES))}")
    return Found(list(found), other_files)


def _files_in(folder: Path, recursive: bool) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise ConfigError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        yield from (str(Path(parent, name)) for name in sorted(files) if not name.startswith("."))
