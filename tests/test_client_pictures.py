from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.client.pictures import find_pictures
from serve_app.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As seen from within it."""
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/c.webp", "sub/deep/d.avif", ".trash/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub" / "round").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_in_the_order_of_names(folder: Path) -> None:
    found = find_pictures([Path()])
    assert found.paths == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.avif"]
    assert found.other_files == 1


def test_not_the_folders_within(folder: Path) -> None:
    assert find_pictures([folder], recursive=False).paths == [f"{folder}/a.PNG", f"{folder}/b.jpg"]


def test_a_named_file_may_be_called_anything_and_comes_once(folder: Path) -> None:
    found = find_pictures([Path("notes.txt"), Path("sub"), Path("sub/c.webp"), Path("./notes.txt")])
    assert found.paths == ["notes.txt", "sub/c.webp", "sub/deep/d.avif"]


def test_what_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no file or folder none"):
        find_pictures([Path("none")])
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=r"no picture files.*\.jpg"):
        find_pictures([Path("empty")])
