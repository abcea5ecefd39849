"""Serves the engine with configs/prod.yaml on a free port, asks it for photographs, loads it, and stops it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from engine_build.pictures import sample_pictures
from scripts.gpu_check.checks import Skip, Wrong
from scripts.gpu_check.options import Engine, Options
from scripts.local_service import BIN, load, running, with_args
from scripts.pictures import picture_files
from serve_app.golden import AGREEMENT
from serve_app.postprocess import softmax
from serve_app.preprocess import make_preprocess
from serve_app.settings import parse_settings

PHOTOGRAPHS, QUICK_PHOTOGRAPHS = 64, 8
SCORE_TIE = {"fp32": 0.01, "fp16": 0.02, "int8": 0.1}
"""How much less likely than its first class a CPU may find the class that the service names first."""


def configuration(options: Options, engine: Engine) -> dict[str, Any]:
    """configs/prod.yaml with this engine, for one GPU."""
    config = with_args(
        load("prod"),
        {
            "engine": {"model": engine.manifest.model, "precision": engine.precision},
            "batching": {"max_batch_size": options.max_batch},
        },
    )
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "Classifier":
            deployment["autoscaling_config"]["max_replicas"] = 1
    return config


def serve(options: Options, engine: Engine) -> Mapping[str, Any]:
    """Answers over HTTP against the CPU's, then throughput by number of clients; nothing runs afterwards.

    Raises:
        Skip: the load generator's packages are missing.
        Wrong: other answers, failed requests, or processes that are left.
    """
    try:
        from scripts.bench.load import Target, closed_loop
    except ImportError as error:
        raise Skip(f"the load generator needs {error.name}; install the bench extra") from None
    photographs = _photographs(options)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    began_s = time.monotonic()
    with _service(options, engine) as address:
        data: dict[str, Any] = {"start_s": round(time.monotonic() - began_s, 1)}
        data |= _compare(address, options, engine, photographs)
        data["load"] = loads = []
        seconds, warmup_s, clients = (1.5, 0.5, (1, 8)) if options.quick else (10.0, 3.0, (1, 16, 64, 128))
        for count in clients:
            target = Target(engine.manifest.engine_name, f"{address}/predict", tuple(photographs))
            result = closed_loop(
                target,
                connections=count,
                seconds=seconds,
                warmup_s=warmup_s,
                progress=sys.stderr.isatty(),
            )
            loads.append({key: value for key, value in result.as_dict().items() if key != "histogram_us"})
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    data["processes_left"] = [child.name() for child in left]
    _judge(data, engine)
    return data


def _photographs(options: Options) -> list[bytes]:
    most = QUICK_PHOTOGRAPHS if options.quick else PHOTOGRAPHS
    files = picture_files(options.images) if options.images else sorted({one.path for one in sample_pictures().items})
    if not files:
        raise Skip(f"{options.images} has no pictures to send; pass another --images DIR")
    chosen = np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int)
    return [files[index].read_bytes() for index in chosen]


@contextmanager
def _service(options: Options, engine: Engine) -> Iterator[str]:
    command = [str(BIN / "image-serve"), "start", *(["--stand-in-gpus", "1"] if options.stand_in else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "engines").symlink_to(options.engines_dir.absolute())
        with running(configuration(options, engine), folder, command=command, timeout_s=600) as address:
            yield address


def _compare(address: str, options: Options, engine: Engine, photographs: Sequence[bytes]) -> dict[str, Any]:
    settings = parse_settings(configuration(options, engine)["applications"][0]["args"])
    preprocess = make_preprocess(settings.preprocess.mode, engine.manifest.input, settings.limits.max_pixels)
    with closing(engine.on_cpu()) as runtime:
        scores = np.concatenate([softmax(runtime.infer(preprocess(body)[np.newaxis])) for body in photographs])
    first = []
    with httpx.Client(base_url=address, timeout=60) as client:
        for body in photographs:
            answer = client.post("/predict", content=body).raise_for_status().json()["predictions"][0]
            first.append((int(answer["class_id"]), float(answer["score"])))
    return agreement(scores, first, engine.precision)


def agreement(scores: np.ndarray, first: Sequence[tuple[int, float]], precision: str) -> dict[str, Any]:
    """How the service's first classes and scores fit the CPU's scores (n, classes)."""
    ids = np.array([class_id for class_id, _ in first])
    rows = np.arange(len(ids))
    gap = scores.max(axis=1) - scores[rows, ids]
    return {
        "photographs": len(ids),
        "same_first_class": float((scores.argmax(axis=1) == ids).mean()),
        "agreement": float((gap <= SCORE_TIE[precision]).mean()),
        "max_score_difference": float(np.abs(scores[rows, ids] - [score for _, score in first]).max()),
    }


def _judge(data: Mapping[str, Any], engine: Engine) -> None:
    if data["agreement"] < AGREEMENT[engine.precision]:
        raise Wrong(f"only {data['agreement']:.0%} of its answers over HTTP are those of the CPU", data)
    if failed := sum(one["shed"] + sum(one["errors"].values()) for one in data["load"]):
        raise Wrong(f"{failed} requests failed under load", data)
    if data["processes_left"]:
        raise Wrong(f"processes are left after its end: {', '.join(data['processes_left'])}", data)
