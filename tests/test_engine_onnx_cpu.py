from __future__ import annotations

import numpy as np
import pytest

from engine_build.onnx_cpu import OnnxCpuRuntime
from engine_build.typed import Precision
from serve_app.runtime import RuntimeInfo
from tests.test_engine_typed import PRECISIONS, pictures, reference, typed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_says_what_it_computes_in(precision: Precision) -> None:
    assert OnnxCpuRuntime(typed(precision), 1).info == RuntimeInfo("onnxruntime", precision, 1)


def test_float32_is_torch() -> None:
    logits = OnnxCpuRuntime(typed("fp32"), 2).infer(pictures()[:4])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference().infer(pictures()[:4]), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_result_is_rounded_to_half(precision: Precision) -> None:
    """onnxruntime drops the rounding of all but the weights, where it is let."""
    runtime = OnnxCpuRuntime(typed(precision), 2)
    logits = runtime.infer(pictures())
    np.testing.assert_array_equal(logits, logits.astype(np.float16))


def test_a_closed_one_does_not_answer() -> None:
    runtime = OnnxCpuRuntime(typed("fp32"), 1)
    runtime.close()
    with pytest.raises(RuntimeError, match="the engine was closed"):
        runtime.infer(pictures()[:1])
