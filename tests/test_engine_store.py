from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from engine_build.errors import BuildError
from engine_build.store import EngineId, EngineStore, parse_engine_id

ENGINE = EngineId("any", "openvino", "fp32")


def put(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(text)


def content(store: EngineStore) -> str:
    return (store.folder(ENGINE) / "manifest.json").read_text()


def test_an_engine_appears_whole(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    for text in ("first", "second"):
        with store.lock(ENGINE), store.staging(ENGINE) as staged:
            put(staged, text)
            assert not store.folder(ENGINE).exists() or content(store) == "first"
            store.publish(ENGINE, staged)
        assert content(store) == text
    assert [path.name for path in (tmp_path / "any").iterdir()] == ["openvino-fp32"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    store = EngineStore(tmp_path)

    def fail_halfway() -> None:
        with store.lock(ENGINE), store.staging(ENGINE) as staged:
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
    put(tmp_path / "other" / ".building-onnx-fp32", "half")
    store.sweep()
    assert content(store) == "old"
    assert sorted(path.name for path in tmp_path.glob("*/*") if path.parent.name[0] != ".") == ["openvino-fp32"]
    assert store.folders() == [store.folder(ENGINE)]


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


@pytest.mark.parametrize("text", ["", "resnet18", "resnet18/openvino", "resnet18/tensorrt-fp64", "/openvino-fp32"])
def test_names_that_are_no_engine(text: str) -> None:
    with pytest.raises(BuildError, match="does not name an engine"):
        parse_engine_id(text)


def test_impossible_combinations_name_the_possible_ones() -> None:
    with pytest.raises(BuildError, match="onnx engines are not built in int8; there are openvino/fp32, openvino/int8"):
        EngineId("any", "onnx", "int8").check_buildable()
