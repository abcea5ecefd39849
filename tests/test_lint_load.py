from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.lint import load_config


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_load(tmp_path: Path) -> None:
    text = "base: &base {port: 1}\nhttp_options: {<<: *base, port: 8000}\napplications: []\n"
    config = load_config(write(tmp_path, text))
    assert config == {"base": {"port": 1}, "http_options": {"port": 8000}, "applications": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"line 3: .*; correct it"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", r"line 4: key 'c' is there twice; correct it"),
        ("a: 1\na: 2\n", r"line 2: key 'a' is there twice"),
        ("a: !!python/object:os.system {}\n", r"line 1: .*constructor"),
        ("? [1]\n: 2\n", r"line 1: .*unhashable"),
        ("", "no keys at its top level; start from configs/local.yaml"),
        ("- 1\n", "no keys at its top level"),
        ("a: 1\n---\nb: 2\n", r"line 2: .*document"),
        (b"\xff\xfe\x00a", "not UTF-8"),
        (b"a: \x00", "config.yaml: .*correct it"),
    ],
)
def test_load_refuses(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_load_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; see configs/"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
