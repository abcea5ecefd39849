from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import EngineError
from serve_app.golden import (
    AGREEMENT,
    GOLDEN_NAME,
    MEAN_ERROR,
    TIE,
    Difference,
    Golden,
    difference,
    problem,
    read_golden,
    write_golden,
)
from serve_app.manifest import Precision
from tests.fakes import SHAPE

PRECISIONS: list[Precision] = ["fp32", "fp16", "int8"]


def golden(count: int = 10, scale: float = 8.0) -> Golden:
    """Picture i is of class i % 4, by far; the largest logit is `scale`."""
    logits = np.zeros((count, 4), np.float32)
    logits[np.arange(count), np.arange(count) % 4] = scale
    return Golden(np.zeros((count, *SHAPE), np.uint8), logits)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    written = Golden(random.integers(0, 256, (3, *SHAPE), np.uint8), random.normal(size=(3, 4)).astype(np.float32))
    write_golden(tmp_path, written)
    read = read_golden(tmp_path)
    np.testing.assert_array_equal(read.pictures, written.pictures)
    np.testing.assert_array_equal(read.logits, written.logits)
    assert (read.pictures.dtype.name, read.logits.dtype.name) == ("uint8", "float32")


@pytest.mark.parametrize("damage", ["gone", "empty", "text", "cut short", "a lone array", "another archive", "flipped"])
def test_a_missing_or_broken_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / GOLDEN_NAME
    write_golden(tmp_path, golden())
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "a lone array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "another archive":
        np.savez(path, pictures=np.zeros(3))
    else:
        middle = len(whole) // 4
        flipped = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 40]) + whole[middle + 40 :]
        path.write_bytes({"empty": b"", "text": b"text", "cut short": whole[: len(whole) // 2]}.get(damage, flipped))
    with pytest.raises(EngineError, match=rf"{path} cannot be read .*; build the engine again"):
        read_golden(tmp_path)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_answers_are_no_problem(precision: Precision) -> None:
    found = difference(golden(), golden().logits, precision)
    assert found == Difference(1.0, 0.0, 0.0, 8.0)
    assert problem(found, precision) is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("share", "passes"), [(0.99, True), (1.01, False)])
def test_the_mean_error_has_a_bound_for_each_precision(precision: Precision, share: float, passes: bool) -> None:
    logits = golden().logits + np.float32(MEAN_ERROR[precision] * 8 * share)
    wrong = problem(difference(golden(), logits, precision), precision)
    assert (wrong is None) == passes
    if wrong:
        assert f"at most {MEAN_ERROR[precision] * 8:.3g} is allowed" in wrong


def test_bounds_grow_with_the_logits_and_are_no_smaller_than_for_one() -> None:
    for scale, bound in [(100.0, 100 * MEAN_ERROR["fp16"]), (0.01, MEAN_ERROR["fp16"])]:
        found = difference(golden(scale=scale), golden(scale=scale).logits + np.float32(bound * 0.9), "fp16")
        assert problem(found, "fp16") is None
        found = difference(golden(scale=scale), golden(scale=scale).logits + np.float32(bound * 1.1), "fp16")
        assert problem(found, "fp16") is not None


@pytest.mark.parametrize(("precision", "most_wrong"), [("fp32", 0), ("fp16", 0), ("int8", 2)])
def test_so_many_first_classes_may_differ(precision: Precision, most_wrong: int) -> None:
    whole = golden()
    loose = Difference(0, 0.0, 0.0, 8.0)
    for wrong in (most_wrong, most_wrong + 1):
        logits = whole.logits.copy()
        logits[:wrong] = np.roll(logits[:wrong], 1, axis=1)
        found = difference(whole, logits, precision)
        assert found.agreement == pytest.approx(1 - wrong / 10)
        judged = problem(Difference(found.agreement, loose.mean_error, loose.max_error, loose.scale), precision)
        assert (judged is None) == (wrong == most_wrong)
        if judged:
            assert f"not {AGREEMENT[precision]:.0%}" in judged


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tie_counts_as_the_same_class(precision: Precision) -> None:
    for share, same in [(0.9, 1.0), (1.1, 0.0)]:
        expected = np.array([[8.0, 8.0 - 8 * TIE[precision] * share, 0.0]], np.float32)
        logits = expected[:, [1, 0, 2]]
        found = difference(Golden(np.zeros((1, *SHAPE), np.uint8), expected), logits, precision)
        assert found.agreement == same


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_not_a_number_is_a_problem(precision: Precision, value: float) -> None:
    logits = golden().logits.copy()
    logits[3, 3] = value
    assert problem(difference(golden(), logits, precision), precision) is not None
    broken = Golden(golden().pictures, logits)
    assert problem(difference(broken, golden().logits, precision), precision) is not None


def test_stale_answers_are_a_problem() -> None:
    """Zeros, and the rows of another batch."""
    for logits in (np.zeros((10, 4), np.float32), golden().logits[::-1]):
        for precision in PRECISIONS:
            assert problem(difference(golden(), logits, precision), precision) is not None
