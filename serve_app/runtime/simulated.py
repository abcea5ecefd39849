"""An engine that takes its time and computes nothing: to rehearse scaling, overload and failures without a model.

It uses no CPU while it "runs", so two cores can stand for a cluster. Its manifest says untrained, and so does every
answer. The class it answers depends on the pixels alone, so that an answer to another picture is noticed.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import orjson

from serve_app.latency import LatencyTable
from serve_app.runtime.base import RuntimeInfo
from serve_app.types import Logits, Pictures


class SimulatedRuntime:
    """Sleeps as long as its table says.

    Args:
        artifact: `latency.json`: `{"batch_ms": {"1": 20.0, "16": 120.0}}`, milliseconds by batch size.
        classes: columns of the logits.
    """

    def __init__(self, artifact: Path, classes: int) -> None:
        document = orjson.loads(artifact.read_bytes())
        self._table = LatencyTable.of({int(size): float(ms) for size, ms in document["batch_ms"].items()})
        self._classes = classes
        self.info = RuntimeInfo("simulated", "fp32", 1)

    def infer(self, pictures: Pictures) -> Logits:
        ends_s = time.perf_counter() + self._table.estimate_ms(len(pictures)) / 1e3
        logits = np.zeros((len(pictures), self._classes), np.float32)
        sums = pictures.reshape(len(pictures), -1).sum(axis=1, dtype=np.int64)
        logits[np.arange(len(pictures)), sums % self._classes] = 10.0
        time.sleep(max(0.0, ends_s - time.perf_counter()))
        return logits

    def close(self) -> None:
        """Nothing to free."""
