"""What TensorRT logs, kept: it is the only reason that most of its failures give."""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import lru_cache

import tensorrt as trt

logger = logging.getLogger(__name__)
KEPT_LINES = 200


class CollectedLog(trt.ILogger):
    """A TensorRT logger, called from any of its threads; passes lines on to Python's logging, by severity."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lock = threading.Lock()
        self._lines: deque[tuple[int, bool, str]] = deque(maxlen=KEPT_LINES)
        self._count = 0

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """TensorRT's hook."""
        is_error = severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
        if is_error or severity == trt.ILogger.Severity.WARNING:
            with self._lock:
                self._count += 1
                self._lines.append((self._count, is_error, msg.strip()))
            logger.warning("TensorRT: %s", msg.strip())

    def mark(self) -> int:
        """Where the log is now, for the two below."""
        with self._lock:
            return self._count

    def errors_since(self, mark: int) -> list[str]:
        """Error lines after `mark`; where there are none, the warnings."""
        with self._lock:
            lines = [(is_error, text) for number, is_error, text in self._lines if number > mark]
        errors = [text for is_error, text in lines if is_error]
        return errors or [text for _, text in lines]

    def lines_since(self, mark: int) -> list[str]:
        """Warnings and errors after `mark`."""
        with self._lock:
            return [text for number, _, text in self._lines if number > mark]


@lru_cache(maxsize=1)
def collected_log() -> CollectedLog:
    """The one of this process. TensorRT keeps the first logger it is given, and it must outlive everything."""
    return CollectedLog()
