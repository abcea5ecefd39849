"""What the page's shrinking costs: the row that the script prints."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from scripts.shrinking import Compared, photograph, table


def compared(*, same: bool, score: float, change: float) -> Compared:
    return Compared(
        full_bytes=3_000_000, shrunk_bytes=40_000, shrink_ms=100, same=same, score=score, score_change=change
    )


def test_the_row_counts_sure_answers_apart() -> None:
    rows = [
        compared(same=True, score=0.9, change=0.02),
        compared(same=True, score=0.6, change=0.04),
        compared(same=False, score=0.3, change=0.06),
        compared(same=True, score=0.2, change=0.0),
    ]
    heading, _, row = table(rows).splitlines()
    cells = dict(zip(heading.split(" | "), row.split(" | "), strict=True))
    assert cells["same first class"] == "0.750"
    assert cells["same where its score is 0.5 or more"] == "1.000 of 2"
    assert cells["kB shrunk"] == "40 (most 40)"
    assert cells["MB in full"] == "3.00"
    assert cells["change of its score |"] == "0.030 |"


def test_pictures_become_photographs(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    assert Image.open(io.BytesIO(photograph(tmp_path / "a.png"))).size == (4000, 3000)
