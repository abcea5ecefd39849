"""CPU engines: OpenVINO IR and plain ONNX, both run by OpenVINO's CPU plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from serve_app.runtime.base import RuntimeInfo
from serve_app.types import InferencePrecision, Logits, Pictures

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoRuntime:
    """One compiled model with one infer request.

    Args:
        artifact: `model.xml` or `model.onnx`: uint8 NHWC in, logits out, dynamic batch.
        threads: inference threads.
        inference_precision: `auto` lets the plugin choose (bf16 where the CPU computes in it, fp32 elsewhere).
        int8_kernels: False computes Q/DQ pairs as they are written, in fp32. Slow, and exact where the CPU's int8
            kernels add in 16 bits (without VNNI) and the engine was not quantised with that in mind.
    """

    def __init__(
        self,
        artifact: Path,
        threads: int,
        inference_precision: InferencePrecision = "auto",
        *,
        int8_kernels: bool = True,
    ) -> None:
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # Pinning counts cores from 0 in every process: two replicas would share core 0 and leave core 1 idle.
            "ENABLE_CPU_PINNING": False,
        }
        if not int8_kernels:
            options["LP_TRANSFORMS_MODE"] = "NO"
        if inference_precision != "auto":
            options["INFERENCE_PRECISION_HINT"] = _HINTS[inference_precision]
        compiled = ov.Core().compile_model(str(artifact), "CPU", options)
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.info = RuntimeInfo("openvino", {"f32": "fp32"}.get(hint, hint), threads)
        self._request: ov.InferRequest | None = compiled.create_infer_request()

    def infer(self, pictures: Pictures) -> Logits:
        if self._request is None:
            raise RuntimeError("the engine was closed")
        # A tensor over the caller's buffer, set beforehand: `infer([pictures])` copies nothing either, but spends
        # 60 us in Python on every call. The output is copied, since its memory is reused.
        self._request.set_input_tensor(ov.Tensor(np.ascontiguousarray(pictures), shared_memory=True))
        self._request.infer(share_outputs=True)
        return np.array(self._request.get_output_tensor().data, dtype=np.float32)

    def close(self) -> None:
        self._request = None
