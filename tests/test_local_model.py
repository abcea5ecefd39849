"""A model in the process that decodes, with simulated engines: versions come and go, answers stay right."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from engine_build.simulate import ARTIFACT, simulate
from serve_app.admission import ByteBudget
from serve_app.colocated import Colocated
from serve_app.engines import Engine, open_engine
from serve_app.errors import EngineError
from serve_app.local_model import LocalModel, open_version
from serve_app.manifest import read_manifest, sha256_of, write_manifest
from serve_app.metrics import NoMetrics
from serve_app.pipeline import Classified
from serve_app.runtime import Runtime
from serve_app.settings import BatchingSettings, Settings, parse_settings


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 300), (9, 9, 9)).save(file, "PNG")
    return file.getvalue()


def settings(folder: Path) -> Settings:
    engine = {"backend": "simulated", "model": "cats", "engines_dir": str(folder)}
    return parse_settings({"engine": engine, "batching": {"max_batch_size": 2}})


class Opened:
    """Opens engines as a replica does, and remembers them."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []

    async def __call__(self, wanted: Settings) -> Engine:
        engine = await asyncio.to_thread(
            partial(open_engine, wanted.engine, threads=1, max_batch_size=2, inference_precision="auto", copies=2)
        )
        self.engines.append(engine)
        return engine


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
async def model(tmp_path: Path, opened: Opened) -> AsyncIterator[LocalModel]:
    for version in (1, 2):
        simulate("cats", {1: 1.0, 2: 2.0}, tmp_path, version)
    own = settings(tmp_path)
    model = LocalModel("cats", own, await opened(own), opened, NoMetrics(), ByteBudget(2**20))
    yield model
    await model.pipeline.close()


async def answered(model: LocalModel) -> Classified:
    pipeline = model.pipeline
    with pipeline.admission.ticket() as ticket:
        [outcome] = await pipeline.classify([png()], 1, pipeline.deadline_s(None), ticket)
    assert isinstance(outcome, Classified)
    return outcome


async def test_requests_under_way_are_answered_by_the_version_they_met(model: LocalModel, opened: Opened) -> None:
    before = [asyncio.create_task(answered(model)) for _ in range(8)]
    await asyncio.sleep(0)
    await model.versions.want(2)
    assert {one.manifest.version for one in await asyncio.gather(*before)} <= {1, 2}
    assert (await answered(model)).manifest.version == 2
    assert model.pipeline.manifest.version == 2
    assert [engine.manifest.version for engine in opened.engines] == [1, 2]


async def test_what_was_changed_of_batching_holds_for_the_next_version_too(model: LocalModel) -> None:
    model.tune(BatchingSettings(max_batch_size=1))
    before = model.pipeline.stages
    await model.versions.want(2)
    after = model.pipeline.stages
    assert isinstance(before, Colocated)
    assert isinstance(after, Colocated)
    assert after is not before
    assert after._tuner.batching == before._tuner.batching == BatchingSettings(max_batch_size=1)


async def test_the_engine_that_went_is_closed(
    model: LocalModel, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Runtime] = []
    kind = type(opened.engines[0].runtimes[0])
    monkeypatch.setattr(kind, "close", lambda runtime: closed.append(runtime))
    await model.versions.want(2)
    assert set(closed) == set(opened.engines[0].runtimes)


async def test_a_version_that_does_not_run_leaves_the_other(
    model: LocalModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    simulate("cats", {1: 1.0}, tmp_path, 3)
    folder = tmp_path / "cats" / "3" / "simulated-fp32"
    (folder / ARTIFACT).write_text(json.dumps({"batch_ms": {}}))
    manifest = read_manifest(folder, check_files=False)
    write_manifest(folder, manifest.model_copy(update={"files": {ARTIFACT: sha256_of(folder / ARTIFACT)}}))
    await model.versions.want(3)
    assert model.versions.serving == 1
    assert "does not run" in caplog.text
    await model.versions.want(9)
    assert "build one with engine-build" in caplog.text
    assert str(tmp_path) not in model.versions.problem
    assert (await answered(model)).manifest.version == 1


async def test_figures_are_asked_before_an_engine_is_opened(
    model: LocalModel, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(manifest: object) -> None:
        raise EngineError("its figures are bad")

    monkeypatch.setattr("serve_app.local_model.check_figures", never)
    with pytest.raises(EngineError, match="figures are bad"):
        await open_version(settings(tmp_path), 2, opened.engines[0], opened)
    assert len(opened.engines) == 1
