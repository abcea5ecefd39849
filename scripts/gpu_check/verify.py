"""Holds an engine on the GPU against the same network on the CPU, and tries what must not work."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engine_build.pictures import labelled_pictures
from engine_build.progress import bar
from scripts.gpu_check.checks import Skip, Wrong
from scripts.gpu_check.options import Engine, Options
from scripts.local_service import ROOT
from serve_app.errors import EngineError, GpuFailed
from serve_app.golden import Golden, difference, problem, read_golden
from serve_app.plans import find_plan
from serve_app.runtime import GpuOptions, Runtime, load_plan
from serve_app.types import Logits, Pictures

PHOTOGRAPHS, QUICK_PHOTOGRAPHS = 600, 32
CPU_BATCH = 16
HEALTH_S = 15.0
"""As in configs/prod.yaml: a replica whose probe takes longer is replaced."""


def answers(options: Options, engine: Engine) -> Mapping[str, Any]:
    """Logits of the GPU against those of the CPU, on the known pictures and the photographs; accuracy where known.

    Raises:
        Wrong: they differ more than `serve_app.golden` allows.
    """
    pictures, classes = _pictures(options, engine)
    with closing(engine.open(GpuOptions(options.max_batch, options.device))) as runtime:
        logits = _logits(runtime, pictures, options.max_batch, "on the GPU")
    with closing(engine.on_cpu()) as runtime:
        expected = _logits(runtime, pictures, CPU_BATCH, "on the CPU")
    found = difference(Golden(pictures, expected), logits, engine.precision)
    same = float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean())
    known = classes >= 0
    data = {"pictures": len(pictures), "same_first_class": same, **asdict(found), "labelled": int(known.sum())}
    if known.any():
        data |= {
            "top1": float((logits.argmax(axis=1) == classes)[known].mean()),
            "top1_on_cpu": float((expected.argmax(axis=1) == classes)[known].mean()),
        }
    if wrong := problem(found, engine.precision):
        raise Wrong(wrong, data)
    return data


def _pictures(options: Options, engine: Engine) -> tuple[Pictures, np.ndarray]:
    """Engine input, and classes, -1 where nobody knows them."""
    golden = read_golden(engine.folder)
    found, classes = list(golden.pictures), [-1] * len(golden.pictures)
    if options.images:
        chosen = labelled_pictures(options.images, None, engine.manifest.num_classes).spread(
            QUICK_PHOTOGRAPHS if options.quick else PHOTOGRAPHS
        )
        for item, picture in bar(chosen.read(engine.manifest.input), total=len(chosen), title="reading photographs"):
            if picture is not None:
                found.append(picture)
                classes.append(-1 if item.class_id is None else item.class_id)
    return np.stack(found), np.array(classes)


def _logits(runtime: Runtime, pictures: Pictures, most: int, title: str) -> Logits:
    starts = range(0, len(pictures), most)
    return np.concatenate(
        [
            runtime.infer(np.ascontiguousarray(pictures[at : at + most]))
            for at in bar(starts, total=len(starts), title=title)
        ]
    )


def second_process(options: Options, engine: Engine) -> Mapping[str, Any]:
    """Another process loads the engine from its files, as a replica on another day does.

    Raises:
        Wrong: it does not, or answers otherwise.
    """
    command = [sys.executable, "-m", "scripts.gpu_check.second_process", str(engine.folder.absolute())]
    done = subprocess.run(
        [*command, options.device, str(options.max_batch)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    try:
        data = dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        said = done.stderr.strip()
        raise Wrong(
            f"it ended with status {done.returncode}: {said.splitlines()[-1] if said else 'without a word'}",
            {"stderr": said[-4000:]},
        ) from None
    if data["problem"] or done.returncode:
        raise Wrong(str(data["problem"] or f"it ended with {done.returncode}"), data)
    return data


def refusals(options: Options, engine: Engine) -> Mapping[str, Any]:
    """A plan for another GPU, TensorRT or network is not found, and one that was cut short does not load.

    Raises:
        Skip: no GPU.
        Wrong: one of them is taken.
    """
    if options.stand_in:
        raise Skip("plans are for GPUs; the CPU runs the ONNX itself")
    from serve_app.runtime.tensorrt.machine import this_machine

    here = this_machine()
    plan, _ = find_plan(engine.folder, engine.manifest, here)
    other_onnx = {**engine.manifest.files, engine.manifest.artifact: "0" * 64}
    tries = {
        "gpu": (engine.manifest, here.model_copy(update={"gpu": "another GPU"})),
        "tensorrt": (engine.manifest, here.model_copy(update={"tensorrt": "0.0"})),
        "onnx_sha256": (engine.manifest.model_copy(update={"files": other_onnx}), here),
    }
    said = {}
    for field, (manifest, machine) in tries.items():
        try:
            find_plan(engine.folder, manifest, machine)
        except EngineError as error:
            said[field] = str(error)
            if f"{field} (" not in said[field]:
                raise Wrong(f"a plan with another {field} is refused, but not for that: {error}", said) from None
        else:
            raise Wrong(f"a plan for another {field} is taken", said)
    said["cut short"] = _cut_short(plan, engine, options)
    return said


def _cut_short(plan: Path, engine: Engine, options: Options) -> str:
    with tempfile.TemporaryDirectory() as name:
        half = Path(name) / plan.name
        half.write_bytes(plan.read_bytes()[: plan.stat().st_size // 2])
        try:
            load_plan(half, engine.manifest, GpuOptions(options.max_batch)).close()
        except GpuFailed as error:
            return str(error)
    raise Wrong("half a plan is loaded as if it were whole")


def health(options: Options, engine: Engine) -> Mapping[str, Any]:
    """The replica's health check: an inference into a poisoned buffer, within its time; and memory in use.

    Raises:
        Wrong: it answers otherwise than `infer`, or takes too long.
    """
    golden = read_golden(engine.folder)
    with closing(engine.open(GpuOptions(options.max_batch, options.device))) as runtime:
        expected = runtime.infer(golden.pictures[:1])
        began_s = time.monotonic()
        probed = runtime.probe(golden.pictures[:1])
        probe_s = time.monotonic() - began_s
        data = {"probe_s": probe_s, "memory": asdict(runtime.memory()), "device": runtime.info.device}
    if not np.allclose(probed, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        raise Wrong("probe() answers otherwise than infer()", data)
    if probe_s > HEALTH_S:
        raise Wrong(f"probe() takes {probe_s:.1f} s, and a replica has {HEALTH_S:g}", data)
    return data
