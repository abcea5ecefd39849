from __future__ import annotations

import asyncio
import logging

import pytest

from serve_app.errors import EngineError, GpuFailed
from serve_app.metrics import NoMetrics
from serve_app.versions import Versions


class Noted(NoMetrics):
    def __init__(self) -> None:
        self.serving: list[int] = []
        self.refused_versions = 0

    def version(self, version: int) -> None:
        self.serving.append(version)

    def version_refused(self) -> None:
        self.refused_versions += 1


class Engines:
    """Takes versions in; those in `broken` it does not. While `gate` is closed, all wait."""

    def __init__(self, **broken: Exception) -> None:
        self.asked: list[int] = []
        self.broken = {int(name.removeprefix("v")): error for name, error in broken.items()}
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = self.most_at_once = 0

    async def take_in(self, version: int) -> None:
        self.asked.append(version)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            if version in self.broken:
                raise self.broken[version]
        finally:
            self.at_once -= 1


async def test_a_good_version_serves() -> None:
    engines, metrics = Engines(), Noted()
    versions = Versions("cats", 1, engines.take_in, metrics)
    await versions.want(2)
    assert (versions.serving, versions.problem, metrics.serving) == (2, "", [1, 2])
    await versions.want(2)
    assert engines.asked == [2]  # it serves already


@pytest.mark.parametrize("error", [EngineError("its figures are bad"), GpuFailed("no memory")])
async def test_a_bad_version_leaves_the_old_one(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    engines, metrics = Engines(v3=error), Noted()
    versions = Versions("cats", 1, engines.take_in, metrics)
    with caplog.at_level(logging.ERROR, "serve_app"):
        await versions.want(3)
    assert versions.serving == 1
    assert versions.problem == "version 3 was not taken in, version 1 goes on; the log says why"
    assert f"model cats: version 3 was not taken in, version 1 goes on: {error}" in caplog.text
    assert (metrics.serving, metrics.refused_versions) == ([1], 1)
    await versions.want(1)  # the configuration was set back
    assert (versions.serving, versions.problem) == (1, "")


async def test_only_the_newest_wish_is_carried_out_and_one_at_a_time() -> None:
    engines = Engines()
    engines.gate.clear()
    versions = Versions("cats", 1, engines.take_in, Noted())
    wishes = [asyncio.create_task(versions.want(version)) for version in (2, 3, 4)]
    await asyncio.sleep(0)
    engines.gate.set()
    await asyncio.gather(*wishes)
    assert versions.serving == 4
    assert 3 not in engines.asked
    assert engines.most_at_once == 1


async def test_it_can_be_asked_for_without_waiting() -> None:
    engines = Engines()
    engines.gate.clear()
    versions = Versions("cats", 1, engines.take_in, Noted())
    versions.want_soon(2)
    await asyncio.sleep(0)
    assert (versions.serving, versions.wanted) == (1, 2)
    engines.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert versions.serving == 2
