from __future__ import annotations

from serve_app.recent import RecentlySeen
from tests.fakes import FakeClock


def test_names_count_once_and_only_while_they_are_seen() -> None:
    clock = FakeClock()
    seen = RecentlySeen(10, clock)
    assert [seen.saw(name) for name in ("a", "b", "a", "c")] == [1, 2, 2, 3]
    clock.advance(6)
    assert seen.saw("a") == 3
    clock.advance(6)
    assert seen.saw("b") == 2  # c was last seen 12 s ago
    clock.advance(3600)
    assert seen.saw("c") == 1
