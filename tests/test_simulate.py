"""The engine that only takes time: as written by engine-build, and as the service runs it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from engine_build.cli import main
from engine_build.errors import BuildError
from engine_build.simulate import CLASSES, parse_latency, simulate
from serve_app.engines import open_engine
from serve_app.manifest import read_manifest
from serve_app.runtime import load_runtime
from serve_app.settings import EngineSettings


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 224, 224, 3), np.uint8)


def test_it_answers_by_the_pixels_alone_in_whatever_batch(tmp_path: Path) -> None:
    manifest, folder = simulate("slow", {1: 1.0, 16: 2.0}, tmp_path)
    runtime = load_runtime(folder, manifest, threads=1)
    pictures = noise(9)
    together = runtime.infer(pictures)
    assert together.shape == (9, CLASSES)
    assert [int(runtime.infer(one[None]).argmax()) for one in pictures] == together.argmax(axis=1).tolist()
    assert len(set(together.argmax(axis=1).tolist())) > 1


def test_it_takes_the_time_it_was_told_to(tmp_path: Path) -> None:
    manifest, folder = simulate("slow", {1: 20.0, 11: 120.0}, tmp_path)
    runtime = load_runtime(folder, manifest, threads=1)
    for count, least_s in ((1, 0.020), (6, 0.070)):
        began_s = time.perf_counter()
        runtime.infer(noise(count))
        assert time.perf_counter() - began_s >= least_s


def test_the_service_opens_it_and_says_that_it_is_no_model(tmp_path: Path) -> None:
    simulate("slow", {1: 1.0}, tmp_path)
    settings = EngineSettings(engines_dir=tmp_path, model="slow", backend="simulated")
    engine = open_engine(settings, threads=1, max_batch_size=2, inference_precision="auto")
    assert engine.manifest.trained is False
    assert engine.runtimes[0].info.backend == "simulated"
    assert engine.latency.estimate_ms(1) >= 1.0


def test_the_command_writes_it_and_replaces_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for entries in (["1:20", "16:120"], ["1:5"]):
        assert main(["simulate", "--name", "slow", *entries, "--engines-dir", str(tmp_path)]) == 0
        assert "UNTRAINED" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "slow" / "simulated-fp32")
    assert (tmp_path / "slow" / "simulated-fp32" / manifest.artifact).read_text() == '{"batch_ms": {"1": 5.0}}'


@pytest.mark.parametrize("entries", [["16"], ["x:3"], ["1:fast"], ["0:5"], ["1:0"], ["1:-4"], ["1:nan"]])
def test_what_is_no_table_is_refused(entries: list[str]) -> None:
    with pytest.raises(BuildError):
        parse_latency(entries)


def test_build_does_not_offer_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--backend", "simulated"])
    assert "invalid choice: 'simulated'" in capsys.readouterr().err
