"""`python -m scripts.gpu_check.second_process FOLDER DEVICE MAX_BATCH`: loads an engine that another process made, and
prints as JSON how its answers differ from the known ones."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from scripts.gpu_check.options import Engine
from serve_app.golden import difference, problem, read_golden
from serve_app.manifest import read_manifest
from serve_app.runtime import GpuOptions
from serve_app.runtime.base import Device


def main(folder: Path, device: Device, max_batch: int) -> int:
    """1 where the answers differ too much."""
    engine = Engine(folder, read_manifest(folder))
    golden = read_golden(folder)
    began_s = time.monotonic()
    runtime = engine.open(GpuOptions(max_batch, device))
    ready_s = time.monotonic() - began_s
    logits = runtime.infer(golden.pictures[:max_batch])
    runtime.close()
    known = type(golden)(golden.pictures[:max_batch], golden.logits[:max_batch])
    found = difference(known, logits, engine.precision)
    wrong = problem(found, engine.precision)
    print(json.dumps({"ready_s": ready_s, "pictures": len(logits), "problem": wrong, **asdict(found)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    [wanted] = [one for one in get_args(Device) if one == sys.argv[2]]
    sys.exit(main(Path(sys.argv[1]), wanted, int(sys.argv[3])))
