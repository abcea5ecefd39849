"""Loads to replay: five generated shapes, or a recorded one from a CSV file; and the pictures that arrive under them.

Generated shapes are drawn in replicas' worth of the slower stage, so that they load any profile alike.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np

from serve_app.errors import ConfigError

Points: TypeAlias = Sequence[tuple[float, float]]
"""(seconds, rate) in order; between them the rate is on the line, two points of one time are a jump."""

NOISE = 0.2
"""Turns of a load that are smaller than this share of its range are no change of load."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A load over time; points are (seconds, pictures per second)."""

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        return self.points[-1][0]

    def load_changes(self) -> int:
        """How often the load itself turns from growing to shrinking or back."""
        rates = [rate for _, rate in self.points]
        return turns(rates, NOISE * (max(rates) - min(rates)))


def turns(values: Sequence[float], tolerance: float = 0.0) -> int:
    """How often the direction of change turns, counting only changes above `tolerance`."""
    count, direction, anchor = 0, 0, values[0] if values else 0.0
    for value in values:
        change = value - anchor
        if direction * change > 0:
            anchor = value
        elif abs(change) > tolerance:
            count += direction != 0
            direction, anchor = (1 if change > 0 else -1), value
    return count


def arrivals(trace: Trace, seed: int, step_s: float) -> list[int]:
    """Pictures that arrive in each step: Poisson, the same ones for the same seed."""
    times_s = (np.arange(round(trace.seconds / step_s)) + 0.5) * step_s
    at_s, rates = zip(*trace.points, strict=True)
    expected = np.interp(times_s, at_s, rates) * step_s
    return [int(count) for count in np.random.default_rng(seed).poisson(expected)]


def generated(name: str, replica_per_s: float) -> Trace:
    """One of `SHAPES`, for a slower stage whose replicas do `replica_per_s` pictures per second each."""
    return Trace(name, tuple((at_s, replicas * replica_per_s) for at_s, replicas in SHAPES[name]))


def read_csv(path: Path) -> Trace:
    """A file `seconds,pictures_per_s`: each rate holds until the next line, the last line only ends the trace.

    Raises:
        ConfigError: one line that names the file, and the line where one is wrong.
    """
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None
    if not rows or [title.strip() for title in rows[0]] != ["seconds", "pictures_per_s"]:
        raise ConfigError(f"{path}: the first line must be seconds,pictures_per_s")
    lines = [_line(path, number, row) for number, row in enumerate(rows[1:], start=2)]
    if len(lines) < 2:
        raise ConfigError(f"{path}: a trace needs at least two lines of figures, the last one ends it")
    start_s = lines[0][0]
    points: list[tuple[float, float]] = []
    for (from_s, rate), (until_s, _) in pairwise(lines):
        if until_s <= from_s:
            raise ConfigError(f"{path}: seconds must increase, but {until_s:g} follows {from_s:g}")
        points += [(from_s - start_s, rate), (until_s - start_s, rate)]
    return Trace(path.stem, tuple(points))


def _line(path: Path, number: int, row: Sequence[str]) -> tuple[float, float]:
    try:
        at_s, rate = (float(cell) for cell in row)
    except ValueError:
        raise ConfigError(f"{path}, line {number}: not two numbers: {','.join(row)}") from None
    if not (math.isfinite(at_s) and math.isfinite(rate) and rate >= 0):
        raise ConfigError(f"{path}, line {number}: {','.join(row)} is not a time and a rate of at least 0")
    return at_s, rate


def _plateaus(*parts: tuple[float, float]) -> Points:
    """From (seconds, rate) pieces, one after the other, with jumps between them."""
    points, at_s = [], 0.0
    for seconds, rate in parts:
        points += [(at_s, rate), (at_s + seconds, rate)]
        at_s += seconds
    return points


def _day(seconds: float, night: float, noon: float) -> Points:
    """One day from midnight to midnight, as a cosine."""
    return [
        (at_s, night + (noon - night) * (1 - math.cos(2 * math.pi * at_s / seconds)) / 2)
        for at_s in np.linspace(0.0, seconds, 181).tolist()
    ]


SHAPES: dict[str, Points] = {
    "step": _plateaus((120, 2.5), (180, 10), (180, 2.5)),
    "ramp": [(0, 1.5), (60, 1.5), (300, 12), (360, 12), (600, 1.5), (660, 1.5)],
    "burst": _plateaus(
        *((60, 2), (30, 8), (60, 2), (20, 8), (70, 2), (40, 10), (80, 2), (25, 8), (90, 2), (35, 9), (90, 2))
    ),
    "diurnal": _day(1800, 1.4, 11.2),
    "flash": [(0, 1.4), (120, 1.4), (130, 11.2), (250, 1.4), (420, 1.4)],
}
"""Name -> (seconds, load in replicas of the slower stage): x4 and back; slowly up and down; several short bursts; a
day in half an hour; x8 within ten seconds that decays over two minutes."""
