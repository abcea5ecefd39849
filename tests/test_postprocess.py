from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from serve_app.postprocess import softmax, top_k

LABELS = [f"label {index}" for index in range(7)]
LOGITS = npst.arrays(np.float32, 7, elements=st.floats(-80, 80, width=32))


@given(LOGITS, st.integers(1, 7))
def test_top_k_is_sorted_complete_and_labelled(logits: np.ndarray, k: int) -> None:
    best = top_k(logits, LABELS, k)
    scores = [one.score for one in best]
    assert len(best) == k
    assert scores == sorted(scores, reverse=True)
    assert all(one.label == LABELS[one.class_id] for one in best)
    assert best[0].score == softmax(logits).max()


@given(LOGITS)
def test_all_scores_sum_to_one(logits: np.ndarray) -> None:
    assert sum(one.score for one in top_k(logits, LABELS, 7)) == pytest.approx(1, abs=1e-5)


def test_equal_scores_are_in_order_of_class() -> None:
    assert [one.class_id for one in top_k(np.zeros(7, np.float32), LABELS, 3)] == [0, 1, 2]


def test_large_logits_do_not_overflow() -> None:
    assert softmax(np.array([1000.0, 0.0], np.float32)).tolist() == [1.0, 0.0]
