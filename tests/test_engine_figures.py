"""Which engines are taken in while the service runs, by what was measured when they were built."""

from __future__ import annotations

import re

import pytest

from serve_app.engines import check_figures
from serve_app.errors import EngineError
from serve_app.manifest import Accuracy, Verification
from tests.fakes import manifest


def verified(
    agreement: float = 1.0, error: float = 1e-5, accuracy: tuple[int, float, float] | None = None
) -> Verification:
    """Figures; `accuracy` is of so many pictures, the engine's and torch eager's."""
    found = None
    if accuracy:
        found = Accuracy(pictures=accuracy[0], top1=accuracy[1], top3=1.0, reference_top1=accuracy[2])
    return Verification(
        pictures=48,
        picture_source="a test",
        top1_agreement=agreement,
        max_logit_error=error,
        accuracy=found,
        latency_ms={1: 2.0},
        threads=1,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"verify": verified()},
        {"verify": verified(0.95)},
        {"verify": verified(0.8), "precision": "int8"},
        {"verify": verified(0.1), "precision": "int8", "trained": False},
        {"verify": verified(accuracy=(200, 0.83, 0.88))},
        {"verify": verified(accuracy=(10, 0.7, 0.9))},
        {"verify": verified(accuracy=(200, 0.95, 0.88))},
        {"backend": "simulated", "trained": False},
    ],
)
def test_figures_that_are_good_enough(changes: dict[str, object]) -> None:
    check_figures(manifest(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "never verified against torch eager; run engine-build verify fake@2/openvino-fp32"),
        ({"verify": verified(0.94)}, "for 94.0% of pictures, not for 95%"),
        ({"verify": verified(0.94), "precision": "fp16"}, "not for 95%"),
        ({"verify": verified(0.79), "precision": "int8"}, "not for 80%"),
        ({"verify": verified(0.1), "trained": False}, "not for 95%"),
        ({"verify": verified(float("nan"))}, "for nan% of pictures"),
        ({"verify": verified(error=float("nan"))}, "its logits are not numbers"),
        ({"verify": verified(error=float("inf")), "precision": "int8", "trained": False}, "are not numbers"),
        ({"verify": verified(accuracy=(200, 0.82, 0.88))}, "82.0% where torch eager has 88.0%, on 200 pictures"),
        ({"verify": verified(accuracy=(10, 0.6, 0.9))}, "60.0% where torch eager has 90.0%"),
    ],
)
def test_figures_that_are_not(changes: dict[str, object], said: str) -> None:
    with pytest.raises(EngineError, match=r"engine fake@2/openvino-\w+ is not taken in: .*" + re.escape(said)):
        check_figures(manifest(version=2, **changes))
