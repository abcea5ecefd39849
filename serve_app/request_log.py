"""One line of the log for each request, or for those that the service failed: what it was, and what became of it.

Never the picture, nor what it was taken for. The event loop only fills in what it knows anyway; lines are made and
written by a thread of their own.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, Literal

from serve_app import tracing
from serve_app.errors import ServeError
from serve_app.types import Input, Priority, Timing

logger = logging.getLogger("serve_app.requests")
Wanted = Literal["none", "errors", "all"]
WRITE_EVERY_S = 0.5
MAX_WAITING = 10_000
"""Lines that wait to be written; more are dropped, and counted."""
GONE = 499
"""The status of a request whose client went away before its answer, as nginx writes it."""
FAULT = 500
"""The least status of an answer by which the service failed a request."""

_OPTIONAL = frozenset(
    ("trace_id", "model", "version", "error", "formats", "largest_bytes", "queue_ms", "preprocess_ms", "inference_ms")
)
"""Fields that a line has only where they are known."""


@dataclass(slots=True)
class RequestEntry:
    """What is known of one request; filled in while it is answered, and not changed any more once it is noted.

    Attributes:
        request_id: what the client sent, or got, as X-Request-ID.
        route: such as `POST /predict`, without what clients write into a path.
        priority, retry: as the client asked, see the native API's headers.
        request_bytes: of the body; of its pictures where it does not say.
        trace_id: "" unless the request's trace is recorded.
        model, version: public name, and the version that answered; "" and 0 where it did not come so far.
        status: of the answer, that of HTTP also for gRPC.
        error: code of the answer, or of its first picture that failed.
        pictures, failed: how many there were, and how many of them got no answer.
        formats: how many pictures of each.
        largest_bytes: of the largest picture.
        queue_ms, preprocess_ms, inference_ms: the longest of its pictures.
        total_ms: from the request's head to its answer.
        ended_unix_s: then.
    """

    request_id: str
    route: str
    priority: Priority = "interactive"
    retry: bool = False
    request_bytes: int = 0
    trace_id: str = ""
    model: str = ""
    version: int = 0
    status: int = GONE
    error: str = ""
    pictures: int = 0
    failed: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    largest_bytes: int = 0
    queue_ms: float = 0.0
    preprocess_ms: float = 0.0
    inference_ms: float = 0.0
    total_ms: float = 0.0
    ended_unix_s: float = 0.0
    is_fault: bool = False

    def asked(self, model: str, inputs: Sequence[Input], priority: Priority) -> None:
        """Its pictures are known."""
        self.model, self.priority, self.pictures = model, priority, len(inputs)
        total = 0
        for one in inputs:
            kind, size = tracing.described(one)
            self.formats[kind] = self.formats.get(kind, 0) + 1
            self.largest_bytes = max(self.largest_bytes, size)
            total += size
        self.request_bytes = self.request_bytes or total

    def answered(self, timing: Timing, version: int) -> None:
        """One of its pictures was."""
        self.version = version
        self.queue_ms = max(self.queue_ms, timing.queue)
        self.preprocess_ms = max(self.preprocess_ms, timing.preprocess)
        self.inference_ms = max(self.inference_ms, timing.inference)

    def picture_failed(self, error: ServeError) -> None:
        """One of its pictures did."""
        self.failed += 1
        self._has(error)

    def refused(self, error: ServeError) -> None:
        """All of it was, or failed."""
        self.status = int(error.status)
        self._has(error)

    def _has(self, error: ServeError) -> None:
        self.error = self.error or error.code
        self.is_fault = self.is_fault or error.status >= FAULT


_WRITTEN = tuple(one.name for one in fields(RequestEntry) if one.name not in ("ended_unix_s", "is_fault"))
_current: contextvars.ContextVar[RequestEntry | None] = contextvars.ContextVar("request_entry", default=None)


def current() -> RequestEntry | None:
    """The entry of the request that is being answered; None where no lines are wanted."""
    return _current.get()


def of_model(name: str) -> None:
    """The request that is being answered is for this one."""
    if entry := _current.get():
        entry.model = name


class _Answering:
    """See `RequestLog.request`; a class, since a generator costs a third of the whole here."""

    __slots__ = ("_began_s", "_clock", "_entry", "_log", "_token", "_unix")

    def __init__(
        self, log: RequestLog, entry: RequestEntry, clock: Callable[[], float], unix: Callable[[], float]
    ) -> None:
        self._log, self._entry, self._clock, self._unix = log, entry, clock, unix

    def __enter__(self) -> RequestEntry:
        self._began_s = self._clock()
        self._entry.trace_id = tracing.trace_id()
        self._token = _current.set(self._entry)
        return self._entry

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        if isinstance(error, ServeError):
            self._entry.refused(error)
        elif isinstance(error, Exception):
            self._entry.refused(ServeError())
        self._entry.total_ms = (self._clock() - self._began_s) * 1e3
        self._entry.ended_unix_s = self._unix()
        self._log.note(self._entry)


class RequestLog:
    """Writes what is wanted through the logger `serve_app.requests`.

    Args:
        wanted: of `settings.LogSettings`.
        about: fields of every line.
        clock: monotonic seconds.
        unix: seconds since 1970.
    """

    def __init__(
        self,
        wanted: Wanted,
        about: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self.wanted = wanted
        self._about = dict(about or {})
        self._clock = clock
        self._unix = unix
        self._waiting: deque[RequestEntry] = deque()
        self._dropped = 0

    def start(self) -> None:
        """Writes from now on what was noted, by a thread."""
        if self.wanted != "none":
            threading.Thread(target=self._write_forever, name="request log", daemon=True).start()

    def request(self, entry: RequestEntry) -> _Answering:
        """A context for the length of one request: `current` is its entry inside, and it is noted at the end."""
        return _Answering(self, entry, self._clock, self._unix)

    def note(self, entry: RequestEntry) -> None:
        """Has a line written soon, if such are wanted."""
        is_fault = entry.is_fault or entry.status >= FAULT
        if self.wanted == "none" or (self.wanted == "errors" and not is_fault):
            return
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(entry)

    def flush(self) -> None:
        """Writes what was noted so far."""
        for _ in range(len(self._waiting)):
            self._write(self._waiting.popleft())
        dropped, self._dropped = self._dropped, 0
        if dropped:
            logger.warning("%d requests have no line here: they came faster than lines can be written", dropped)

    def _write_forever(self) -> None:
        while True:
            time.sleep(WRITE_EVERY_S)
            self.flush()

    def _write(self, entry: RequestEntry) -> None:
        level = logging.ERROR if entry.is_fault or entry.status >= FAULT else logging.INFO
        # Serve's filters describe the request that a thread works for, and this thread works for none.
        extra = {**self._about, **_fields(entry), "skip_context_filter": True}
        record = logger.makeRecord(logger.name, level, __file__, 0, _line(entry), (), None, "request", extra)
        record.created = entry.ended_unix_s
        record.msecs = entry.ended_unix_s % 1 * 1e3
        if logger.isEnabledFor(level):
            logger.handle(record)


def _fields(entry: RequestEntry) -> dict[str, Any]:
    """Of a line in JSON; what is not known is left out."""
    found: dict[str, Any] = {"event": "request"}
    for name in _WRITTEN:
        value = getattr(entry, name)
        if value or name not in _OPTIONAL:
            found[name] = round(value, 3) if isinstance(value, float) else value
    return found


def _line(entry: RequestEntry) -> str:
    """For people, where lines are no JSON."""
    parts = [f"{entry.route} {entry.status} {entry.error}".rstrip() + f" in {entry.total_ms:.1f} ms"]
    if entry.model:
        parts.append(entry.model + (f" version {entry.version}" if entry.version else ""))
    if entry.pictures:
        formats = ", ".join(f"{count} {name}" for name, count in entry.formats.items())
        failed = f", {entry.failed} failed" if entry.failed else ""
        parts.append(f"{entry.pictures} picture(s) ({formats}{failed}), {entry.request_bytes} bytes")
    if entry.version:
        parts.append(
            f"queue {entry.queue_ms:.1f}, preprocess {entry.preprocess_ms:.1f}, inference {entry.inference_ms:.1f} ms"
        )
    parts.extend(word for word in (entry.priority, "retry" * entry.retry) if word not in ("interactive", ""))
    parts.extend([f"trace {entry.trace_id}"] if entry.trace_id else [])
    return "; ".join(parts)
