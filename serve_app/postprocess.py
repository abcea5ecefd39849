"""From logits to labelled answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.types import Logits, Prediction, Ranking

_FEW = 8
"""Up to here k passes over the classes are faster than sorting them."""


def softmax(logits: Logits) -> NDArray[np.float32]:
    """Along the last axis; float32, same shape, rows sum to 1."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), np.float32)


def rank(logits: Logits, k: int) -> list[Ranking]:
    """The k likeliest classes of each picture, best first; equal scores in order of class id.

    For a whole chunk at once: on one row numpy's overhead is most of the time.

    Args:
        logits: float32 (n, classes).
        k: 1..classes.
    """
    scores = softmax(logits)
    ids = _first_of(scores, k) if k <= _FEW else np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, ids, axis=1)
    return [Ranking(*row) for row in zip(ids.tolist(), best.tolist(), strict=True)]


def _first_of(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Not argpartition: on equal scores it may pick any of them, and an answer must not depend on the batch."""
    left, rows = scores.copy(), np.arange(len(scores))
    ids = np.empty((len(scores), k), np.intp)
    for place in range(k):
        ids[:, place] = left.argmax(axis=1)  # the first of equal ones
        left[rows, ids[:, place]] = -1.0
    return ids


def labelled(ranking: Ranking, labels: Sequence[str], k: int) -> tuple[Prediction, ...]:
    """The first k of a ranking, with names; `labels` has one per class."""
    pairs = zip(ranking.class_ids[:k], ranking.scores[:k], strict=True)
    return tuple(Prediction(class_id, labels[class_id], score) for class_id, score in pairs)
