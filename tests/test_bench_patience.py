from __future__ import annotations

import math

import pytest

from scripts.bench.patience import Patience, patient_crowd
from tests.load_server import LoadServer, Write, answer, serving


def test_promises_are_compared_with_what_came() -> None:
    seen = Patience(promised_s=[1, 2, 4, 1], waited_s=[1, 3, 9, 2])
    assert seen.ratios() == [1, 1.5, 2.25, 2]
    assert seen.within(2) == 0.75
    assert seen.median_ratio() == 1.75
    assert math.isnan(Patience().within(2))


def test_a_refused_client_comes_back_when_it_was_told_to_and_not_before() -> None:
    refused: list[bytes] = []

    async def handler(server: LoadServer, write: Write) -> bool:
        if len(refused) < 2:
            refused.append(server.heads[-1])
            write(answer(429, b"{}", "Retry-After: 1"))
        else:
            write(answer(200))
        return True

    with serving(handler) as server:
        seen = patient_crowd(server.url, b"x", clients=1, seconds=0.1)
    assert (seen.answered, seen.refusals, seen.errors) == (1, 2, [])
    assert seen.promised_s == [1.0]
    assert seen.waited_s[0] >= 2.0  # two refusals of a second each


@pytest.mark.parametrize("status", [500, 503, 400])
def test_anything_else_is_an_error(status: int) -> None:
    async def handler(server: LoadServer, write: Write) -> bool:
        write(answer(status, b"why"))
        return True

    with serving(handler) as server:
        seen = patient_crowd(server.url, b"x", clients=1, seconds=0.05)
    assert seen.answered == 0
    assert set(seen.errors) == {f"{status}: why"}
