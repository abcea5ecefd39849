"""The picture files of a folder, for scripts that send them."""

from __future__ import annotations

from pathlib import Path

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def picture_files(folder: Path) -> list[Path]:
    """In order of name; not those of folders inside."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
