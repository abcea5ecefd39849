from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.errors import EngineError
from serve_app.manifest import MANIFEST_NAME, Manifest, engine_folder, read_manifest, sha256_of, write_manifest
from tests.fakes import manifest


def engine(folder: Path) -> Manifest:
    (folder / "model.xml").write_text("<net/>")
    written = manifest(files={"model.xml": sha256_of(folder / "model.xml")})
    write_manifest(folder, written)
    return written


def test_a_manifest_reads_back_as_written(tmp_path: Path) -> None:
    written = engine(tmp_path)
    assert read_manifest(tmp_path) == written


def test_a_manifest_from_before_there_were_versions_is_of_the_first(tmp_path: Path) -> None:
    engine(tmp_path)
    document = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert document.pop("version") == 1
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    assert read_manifest(tmp_path).version == 1


def test_later_versions_have_a_number_in_name_and_path() -> None:
    assert manifest().engine_name == "fake/openvino-fp32"
    assert manifest(version=12).engine_name == "fake@12/openvino-fp32"
    root = Path("engines")
    assert engine_folder(root, "fake", 1, "openvino-fp32") == root / "fake" / "openvino-fp32"
    assert engine_folder(root, "fake", 12, "openvino-fp32") == root / "fake" / "12" / "openvino-fp32"


def test_a_missing_engine_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="engine-build"):
        read_manifest(tmp_path / "none")


def test_a_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    engine(tmp_path)
    (tmp_path / "model.xml").write_text("<net></net>")
    with pytest.raises(EngineError, match=r"fake/openvino-fp32 .*model\.xml.*sha256"):
        read_manifest(tmp_path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    engine(tmp_path)
    (tmp_path / "model.xml").unlink()
    with pytest.raises(EngineError, match=r"lacks its file model\.xml"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"backend": "magic"}, "backend"),
        ({"artifact": "other.xml"}, "other.xml"),
        ({"format_version": 2}, "format_version"),
        ({"version": 0}, "version"),
        ({"files": {"model.xml": "short"}}, "model.xml"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, change: dict[str, object], named: str) -> None:
    engine(tmp_path)
    document = json.loads((tmp_path / MANIFEST_NAME).read_text()) | change
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(EngineError, match=named):
        read_manifest(tmp_path)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    write_manifest(folder, manifest(artifact="../secret", files={"../secret": sha256_of(tmp_path / "secret")}))
    with pytest.raises(EngineError, match="plain file name"):
        read_manifest(folder)


def test_half_a_manifest_is_refused(tmp_path: Path) -> None:
    engine(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text((tmp_path / MANIFEST_NAME).read_text()[:100])
    with pytest.raises(EngineError, match="build it again"):
        read_manifest(tmp_path)
