"""Steps that are tried one after the other, whatever became of those before, and what came of each."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]
Data = Mapping[str, Any]


class Skip(Exception):
    """A step that cannot be done here; the message says why, and what would make it possible."""


class Wrong(Exception):
    """A step that was done and found something wrong; `data` is what it measured nevertheless."""

    def __init__(self, message: str, data: Data | None = None) -> None:
        super().__init__(message)
        self.data: Data = data or {}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one step.

    Attributes:
        step: the part of the whole it belongs to.
        reason: why it failed or was skipped.
        data: JSON-ready.
    """

    step: str
    name: str
    status: Status
    reason: str
    seconds: float
    data: Data = field(default_factory=dict)


class Checks:
    """Does steps, says how each went, and keeps the outcomes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.outcomes: list[Outcome] = []
        self.interrupted = False
        self._say = say

    def do(self, step: str, name: str, action: Callable[[], Data]) -> Data | None:
        """One step; its data, or None where it did not pass.

        Raises:
            KeyboardInterrupt: during the step; the outcome says so.
        """
        self._say(f"{step}: {name} ...")
        began_s = time.monotonic()
        try:
            data: Data = action()
        except Skip as skip:
            self._end(step, name, "skipped", str(skip), began_s)
        except KeyboardInterrupt:
            self.interrupted = True
            self._end(step, name, "skipped", "interrupted by Ctrl-C", began_s)
            raise
        except Wrong as wrong:
            self._end(step, name, "failed", str(wrong), began_s, wrong.data)
        except Exception as error:
            reason = str(error) or type(error).__name__
            self._end(step, name, "failed", reason, began_s, {"traceback": traceback.format_exc()})
        else:
            self._end(step, name, "passed", "", began_s, data)
            return data
        return None

    def skip(self, step: str, name: str, reason: str) -> None:
        """A step that is not even tried."""
        self._end(step, name, "skipped", reason, time.monotonic())

    def succeeded(self) -> bool:
        """Something ran, nothing that ran failed, and nobody interrupted it."""
        return has_passed(self.outcomes) and not self.interrupted

    def _end(self, step: str, name: str, status: Status, reason: str, began_s: float, data: Data | None = None) -> None:
        outcome = Outcome(step, name, status, reason, round(time.monotonic() - began_s, 2), data or {})
        self.outcomes.append(outcome)
        self._say(f"  {status} after {outcome.seconds:.1f} s{f': {reason}' if reason else ''}")


def has_passed(outcomes: Iterable[Outcome]) -> bool:
    """At least one passed and none failed."""
    statuses = [outcome.status for outcome in outcomes]
    return "passed" in statuses and "failed" not in statuses
