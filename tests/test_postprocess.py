from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from serve_app.postprocess import labelled, rank, softmax
from serve_app.types import Prediction

LABELS = [f"label {index}" for index in range(7)]


def top_k(logits: np.ndarray, labels: list[str], k: int) -> tuple[Prediction, ...]:
    """Of one picture; the ranking holds one more where there is one, as it does where pictures want different k."""
    [ranking] = rank(logits[None], min(k + 1, len(labels)))
    return labelled(ranking, labels, k)


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


@given(npst.arrays(np.float32, (3, 40), elements=st.sampled_from([0.0, 1.0, 2.0])), st.integers(1, 12))
def test_a_chunk_is_ranked_as_its_pictures_alone_and_as_a_stable_sort_would(logits: np.ndarray, k: int) -> None:
    rankings = rank(logits, k)
    for row, ranking in zip(logits, rankings, strict=True):
        assert ranking.class_ids == np.argsort(-softmax(row), kind="stable")[:k].tolist()
        assert ranking == rank(row[None], k)[0]
