"""The classification extension: the best classes as text in place of the scores.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serve_app.oip.values import BYTES, Tensor
from serve_app.types import Prediction


def classified(name: str, rows: Sequence[Iterable[Prediction]]) -> Tensor:
    """BYTES (pictures, classes) of `score:index:label`, best first.

    Args:
        name: of the output.
        rows: one per picture, all of the same length.
    """
    texts = [[_text(one) for one in row] for row in rows]
    flat = [text for row in texts for text in row]
    return Tensor(name, BYTES, (len(texts), len(texts[0])), flat)


def _text(one: Prediction) -> bytes:
    """Six decimals, as Triton has them."""
    return f"{one.score:f}:{one.class_id}:{one.label}".encode()
