"""Frozen TorchScript engines, for comparison and for models that no other backend converts.

torch is not part of the base install: these engines need the `build` extra where they are served.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.errors import EngineError
from serve_app.runtime.base import RuntimeInfo
from serve_app.types import Logits, Pictures


class TorchScriptRuntime:
    """One frozen module on the CPU.

    Args:
        artifact: `model.pt`: uint8 NHWC in, logits out, dynamic batch.
        threads: intra-op threads; torch has one such number per process.
    """

    def __init__(self, artifact: Path, threads: int) -> None:
        try:
            import torch
        except ImportError:
            raise EngineError(
                "torchscript engines need torch where they run: pip install 'image-serve[build]'"
            ) from None
        self._torch = torch
        torch.set_num_threads(threads)
        with warnings.catch_warnings():
            # torch.jit is deprecated but works, and it is the only torch format that needs no model code to load.
            warnings.simplefilter("ignore")
            self._module: Any = torch.jit.load(str(artifact), map_location="cpu")  # type: ignore[no-untyped-call]
        self.info = RuntimeInfo("torchscript", "fp32", threads)

    def infer(self, pictures: Pictures) -> Logits:
        if self._module is None:
            raise RuntimeError("the engine was closed")
        with self._torch.inference_mode():
            return np.asarray(self._module(self._torch.from_numpy(pictures)).numpy(), dtype=np.float32)

    def close(self) -> None:
        self._module = None
