from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from engine_build.errors import BuildError
from engine_build.store import EngineId, EngineStore, parse_engine_id
from serve_app.manifest import write_manifest
from tests.tiny_engine import make_engine

ENGINE = EngineId("any", "openvino", "fp32")
SECOND = EngineId("any", "openvino", "fp32", version=2)


def put(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(text)


def content(store: EngineStore, engine: EngineId = ENGINE) -> str:
    return (store.folder(engine) / "manifest.json").read_text()


def test_an_engine_appears_whole(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    for text in ("first", "second"):
        with store.lock(ENGINE), store.staging(ENGINE) as staged:
            put(staged, text)
            assert not store.folder(ENGINE).exists() or content(store) == "first"
            store.publish(ENGINE, staged)
        assert content(store) == text
    assert [path.name for path in (tmp_path / "any").iterdir()] == ["openvino-fp32"]


def test_versions_stand_side_by_side(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    tenth = EngineId("any", "openvino", "fp32", version=10)
    for engine in (tenth, SECOND, ENGINE):
        with store.lock(engine), store.staging(engine) as staged:
            put(staged, str(engine))
            store.publish(engine, staged)
    assert [content(store, engine) for engine in (ENGINE, SECOND, tenth)] == [
        "any/openvino-fp32",
        "any@2/openvino-fp32",
        "any@10/openvino-fp32",
    ]
    put(tmp_path / "any" / "plans" / "openvino-fp32", "not a version")
    assert store.folders() == [store.folder(ENGINE), store.folder(SECOND), store.folder(tenth)]
    assert store.folder(SECOND) == tmp_path / "any" / "2" / "openvino-fp32"
    for engine in (ENGINE, SECOND):
        assert EngineStore.holding(store.folder(engine), engine).root == tmp_path.resolve()


def test_an_engine_of_another_version_than_its_folder_is_not_found(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    folder, written = make_engine(tmp_path, "any", version=2)
    wanted = EngineId("any", "onnx", "fp32", version=2)
    assert store.find(wanted) == written
    write_manifest(folder, written.model_copy(update={"version": 3}))
    assert store.find(wanted) is None
    assert EngineId.of(written) == wanted


def test_versions_do_not_wait_for_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = EngineStore(tmp_path)
    with store.lock(ENGINE), store.staging(ENGINE) as first, store.lock(SECOND), store.staging(SECOND) as second:
        assert first != second
        store.sweep()
        assert first.exists()
        assert second.exists()
    assert "waiting" not in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("engine", [ENGINE, SECOND], ids=str)
def test_a_failed_build_leaves_nothing(tmp_path: Path, error: type[BaseException], engine: EngineId) -> None:
    store = EngineStore(tmp_path)

    def fail_halfway() -> None:
        with store.lock(engine), store.staging(engine) as staged:
            put(staged, "half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert not (tmp_path / "any").exists()


def test_a_failed_rebuild_leaves_the_old_engine(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    put(store.folder(ENGINE), "old")
    with pytest.raises(ValueError, match="no"), store.lock(ENGINE), store.staging(ENGINE):
        raise ValueError("no")
    assert content(store) == "old"


def test_what_dead_builds_left_is_mended(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    put(tmp_path / "any" / ".building-openvino-fp32", "half")
    put(tmp_path / "any" / ".old-openvino-fp32", "old")  # died between the two renames of a replacement
    put(tmp_path / "any" / "2" / ".old-openvino-fp32", "old 2")
    put(tmp_path / "any" / "3" / ".building-openvino-fp32", "half")
    put(tmp_path / "other" / ".building-onnx-fp32", "half")
    put(tmp_path / "other" / "2" / ".building-onnx-fp32", "half")
    store.sweep()
    assert content(store) == "old"
    assert content(store, SECOND) == "old 2"
    assert sorted(path.name for path in tmp_path.glob("*/*") if path.parent.name[0] != ".") == ["2", "openvino-fp32"]
    assert store.folders() == [store.folder(ENGINE), store.folder(SECOND)]


def hold(root: str, held: object, release: object) -> None:
    with EngineStore(Path(root)).lock(ENGINE), EngineStore(Path(root)).staging(ENGINE):
        held.set()  # type: ignore[attr-defined]
        release.wait(20)  # type: ignore[attr-defined]


def test_two_builds_of_one_engine_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), held, release))
    other.start()
    try:
        assert held.wait(20)
        store = EngineStore(tmp_path)
        store.sweep()
        assert (tmp_path / "any" / ".building-openvino-fp32").exists(), "a living build lost its folder"
        with store.lock(EngineId("any", "onnx", "fp32")):
            pass  # another engine does not wait
        assert "waiting" not in capsys.readouterr().out
        started_s = time.monotonic()
        context.Process(target=_release_later, args=(release,)).start()
        with store.lock(ENGINE):
            assert time.monotonic() - started_s > 0.3
        assert "another build of any/openvino-fp32 is running, waiting" in capsys.readouterr().out
    finally:
        release.set()
        other.join(20)


def _release_later(release: object) -> None:
    time.sleep(0.4)
    release.set()  # type: ignore[attr-defined]


def test_a_killed_holder_does_not_block(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), held, release))
    other.start()
    assert held.wait(20)
    other.kill()
    other.join(20)
    store = EngineStore(tmp_path)
    with store.lock(ENGINE):
        assert not (tmp_path / "any").exists()


@pytest.mark.parametrize(
    ("text", "model", "version"),
    [
        ("birds/onnx-fp32", "birds", 1),
        ("birds@2/onnx-fp32", "birds", 2),
        ("birds@1/onnx-fp32", "birds", 1),
        ("birds/20/onnx-fp32/", "birds", 20),
        ("some/where/birds/onnx-fp32", "birds", 1),
        ("/some/where/birds/3/onnx-fp32", "birds", 3),
    ],
)
def test_names_of_engines(text: str, model: str, version: int) -> None:
    engine = parse_engine_id(text)
    assert engine == EngineId(model, "onnx", "fp32", version)
    assert parse_engine_id(str(engine)) == engine


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resnet18",
        "resnet18/openvino",
        "resnet18/tensorrt-fp64",
        "/openvino-fp32",
        "resnet18@0/openvino-fp32",
        "resnet18@/openvino-fp32",
        "resnet18@new/openvino-fp32",
        "@2/openvino-fp32",
    ],
)
def test_names_that_are_no_engine(text: str) -> None:
    with pytest.raises(BuildError, match="does not name an engine"):
        parse_engine_id(text)


def test_impossible_combinations_name_the_possible_ones() -> None:
    with pytest.raises(BuildError, match="onnx engines are not built in int8; there are openvino/fp32, openvino/int8"):
        EngineId("any", "onnx", "int8").check_buildable()
