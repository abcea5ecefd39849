from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from serve_app.engines import EngineThread, find_engine, open_engine
from serve_app.errors import EngineError
from serve_app.manifest import MANIFEST_NAME
from serve_app.runtime import RuntimeInfo
from serve_app.settings import EngineSettings
from tests.fakes import SHAPE, picture, scores_of
from tests.tiny_engine import expected, make_engine


def wanted(engines_dir: Path, model: str = "auto") -> EngineSettings:
    return EngineSettings(engines_dir=engines_dir, model=model, backend="onnx", precision="fp32")


def test_auto_prefers_the_flagship_and_never_a_stand_in(tmp_path: Path) -> None:
    make_engine(tmp_path, "efficientnet_lite0")
    make_engine(tmp_path, "resnet18", trained=False)
    assert find_engine(wanted(tmp_path))[1].model == "efficientnet_lite0"
    assert find_engine(wanted(tmp_path, "resnet18"))[1].trained is False


def test_auto_takes_a_trained_flagship(tmp_path: Path) -> None:
    make_engine(tmp_path, "efficientnet_lite0")
    make_engine(tmp_path, "resnet18")
    assert find_engine(wanted(tmp_path))[1].model == "resnet18"


def test_no_engine_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="engine-build build --model auto --backend onnx --precision fp32"):
        find_engine(wanted(tmp_path))
    with pytest.raises(EngineError, match=str(tmp_path / "mine")):
        find_engine(wanted(tmp_path, "mine"))


@pytest.mark.parametrize("change", [{"model": "other"}, {"precision": "int8"}])
def test_an_engine_in_the_wrong_folder_is_refused_by_name(tmp_path: Path, change: dict[str, str]) -> None:
    folder, _ = make_engine(tmp_path, "mine")
    document = json.loads((folder / MANIFEST_NAME).read_text()) | change
    (folder / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(EngineError, match="not what its path says"):
        find_engine(wanted(tmp_path, "mine"))


def test_open_warms_and_measures(tmp_path: Path) -> None:
    make_engine(tmp_path)
    engine = open_engine(wanted(tmp_path, "fake"), threads=1, max_batch_size=6, inference_precision="fp32")
    assert engine.latency.sizes == (1, 2, 4, 6)
    assert engine.latency.best_pictures_per_s() > 0


def test_copies_give_the_same_answers_and_add_up(tmp_path: Path) -> None:
    make_engine(tmp_path)
    engine = open_engine(wanted(tmp_path, "fake"), threads=1, max_batch_size=2, inference_precision="fp32", copies=3)
    pictures = np.stack([picture(3), picture(9)])
    first, second, third = (runtime.infer(pictures) for runtime in engine.runtimes)
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    assert engine.best_pictures_per_s() == 3 * engine.latency.best_pictures_per_s()


def test_an_engine_with_other_classes_than_its_manifest_is_refused(tmp_path: Path) -> None:
    make_engine(tmp_path, labels=("only", "two"))
    with pytest.raises(EngineError, match=r"\(2, 5\) where its manifest says \(2, 2\)"):
        open_engine(wanted(tmp_path, "fake"), threads=1, max_batch_size=2, inference_precision="fp32")


async def test_an_engine_thread_runs_the_engine(tmp_path: Path) -> None:
    make_engine(tmp_path)
    engine = open_engine(wanted(tmp_path, "fake"), threads=1, max_batch_size=2, inference_precision="fp32")
    thread = EngineThread(engine.runtimes[0])
    pictures = np.stack([picture(3), picture(9)])
    logits, inference_ms = await thread.run(pictures)
    np.testing.assert_allclose(logits, expected(pictures), rtol=1e-4, atol=1e-2)
    assert inference_ms > 0
    thread.close()


class SlowRuntime:
    """Waits for `release`, and counts how many run at once."""

    info = RuntimeInfo("slow", "fp32", 1)

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = threading.Event()
        self.running = self.most = 0

    def infer(self, pictures: np.ndarray) -> np.ndarray:
        self.running += 1
        self.most = max(self.most, self.running)
        self.entered.set()
        self.release.wait(10)
        scores = scores_of(pictures)
        self.running -= 1
        return scores

    def close(self) -> None:
        pass


async def test_a_cancelled_call_keeps_its_buffer_until_the_engine_is_done() -> None:
    runtime = SlowRuntime()
    thread = EngineThread(runtime)
    pictures = np.zeros((1, *SHAPE), np.uint8)
    gone = asyncio.create_task(thread.run(pictures))
    await asyncio.to_thread(runtime.entered.wait, 10)
    gone.cancel()
    await asyncio.sleep(0.02)
    assert not gone.done()
    runtime.release.set()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert runtime.running == 0
    logits, _ = await thread.run(pictures)
    assert len(logits) == 1
    assert runtime.most == 1
    thread.close()
