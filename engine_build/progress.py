"""Numbered step lines with their time on stdout; bars go to stderr, where tqdm draws them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def say(text: str) -> None:
    """One line for the user, at once."""
    print(text, flush=True)


def bar(items: Iterable[T], *, total: int, title: str) -> Iterable[T]:
    """`items`, with a progress bar that goes away when it is full."""
    return tqdm(
        items, total=total, desc=f"      {title}", unit="picture", leave=False, disable=None, dynamic_ncols=True
    )


class Steps:
    """Counts the steps of one build."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    @contextmanager
    def step(self, title: str, *, has_bar: bool = False) -> Iterator[None]:
        """Prints `[2/5] title ... 5.1 s`; a step that draws a bar gets its time on a line of its own."""
        self._done += 1
        started_s = time.perf_counter()
        print(f"[{self._done}/{self._total}] {title} ...", end="\n" if has_bar else " ", flush=True)
        try:
            yield
        except BaseException:
            if not has_bar:
                say("")
            raise
        say(f"{'      done in ' if has_bar else ''}{time.perf_counter() - started_s:.1f} s")
