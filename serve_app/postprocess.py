"""From logits to labelled answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.types import Logits, Prediction


def softmax(logits: Logits) -> NDArray[np.float32]:
    """Along the last axis; float32, same shape, rows sum to 1."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), np.float32)


def top_k(logits: Logits, labels: Sequence[str], k: int) -> tuple[Prediction, ...]:
    """The k likeliest classes of one picture, best first; equal scores in order of class id.

    Args:
        logits: float32 (classes,).
        labels: one per class.
        k: 1..classes.
    """
    scores = softmax(logits)
    # Not argpartition: on equal scores it may pick any of them, and an answer must not depend on the batch.
    order = np.argsort(-scores, kind="stable")[:k]
    return tuple(Prediction(int(index), labels[index], float(scores[index])) for index in order)
