"""The engine as every peer here runs it: OpenVINO, one thread, as little Python around a run as there can be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

TOP = 3
Answer = list[dict[str, float]]

ENGINE = Path(os.environ.get("ENGINE", "model.xml"))
"""`model.xml` of an engine folder of this project: uint8 NHWC in, logits out, normalisation inside, dynamic batch."""

MAX_BATCH = int(os.environ.get("MAX_BATCH", "8"))
WAIT_MS = int(os.environ.get("WAIT_MS", "3"))


class Engine:
    """One compiled model, warmed for every batch size up to `MAX_BATCH`."""

    def __init__(self) -> None:
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": int(os.environ.get("NT", "1")),
            # Pinning counts cores from 0 in every process: all workers would share core 0.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = ov.Core().compile_model(str(ENGINE), "CPU", options)
        self._request = compiled.create_infer_request()
        self._batch = np.zeros((MAX_BATCH, 224, 224, 3), np.uint8)
        for size in range(1, MAX_BATCH + 1):
            self._infer(size)

    def classify(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        """At most `MAX_BATCH` pictures -> for each the three likeliest classes and their probabilities."""
        np.stack(pictures, out=self._batch[: len(pictures)])
        logits = self._infer(len(pictures))
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        top = np.argpartition(scores, -TOP, axis=1)[:, -TOP:]
        top_scores = np.take_along_axis(scores, top, axis=1)
        return [_answer(*one) for one in zip(top.tolist(), top_scores.tolist(), strict=True)]

    def _infer(self, size: int) -> NDArray[np.float32]:
        self._request.set_input_tensor(ov.Tensor(self._batch[:size], shared_memory=True))
        self._request.infer(share_outputs=True)
        logits: NDArray[np.float32] = self._request.get_output_tensor().data
        return logits


def _answer(classes: list[int], scores: list[float]) -> Answer:
    best_first = sorted(zip(scores, classes, strict=True), reverse=True)
    return [{"class_id": class_id, "score": score} for score, class_id in best_first]
