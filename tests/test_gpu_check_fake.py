from __future__ import annotations

import pytest

from tests.gpu.fakecuda import Cases

CASES = Cases("../gpu_check_cases.py")


@pytest.mark.parametrize("case", CASES.names())
def test_on_a_stand_in_for_the_driver(case: str) -> None:
    CASES.check(case)
