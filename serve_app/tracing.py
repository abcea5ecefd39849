"""Spans of our own inside the traces that Ray Serve makes of requests: what each picture went through.

Serve has `tracing_config`, and makes a span of each request and each call between deployments. Ours hang below the
one of the request: `picture`, and below it `decode`, `queue` and `engine`. A batch has as many parents as it has
pictures, so each of them gets an engine span of its own with the batch's size: every trace is whole by itself, also in
tools that know no links. Where tracing is off, everything here is one look at a variable.
"""

from __future__ import annotations

import contextvars
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.errors import ConfigError, ServeError
from serve_app.types import Input, Priority, Timing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider

TRACES_DIR = "IMAGE_SERVE_TRACES_DIR"
SERVICE_NAME = "image-serve"
FILE_DELAY_MS = 500
"""Spans are in their file so long after they ended, at the latest."""
_PREFIX = "image_serve."
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
"""https://www.w3.org/TR/trace-context/#traceparent-header"""
_KINDS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG", "png"),
    (b"RIFF", "webp"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Parent:
    """The span of a picture whose trace is recorded, and what is said of everything below it."""

    span: SpanContext
    about: Attributes = field(default_factory=dict)

    @property
    def traceparent(self) -> str:
        """For another process; see `parent_of`."""
        return f"00-{self.span.trace_id:032x}-{self.span.span_id:016x}-01"


@dataclass(frozen=True, slots=True)
class _Recording:
    tracer: Tracer
    about: Attributes


_recording: _Recording | None = None
_parent: contextvars.ContextVar[Parent | None] = contextvars.ContextVar("picture", default=None)


def begin(about: Mapping[str, str], provider: TracerProvider | None = None) -> None:
    """Records from now on, if tracing is on: before Serve makes a replica, it sets up a provider or none.

    Args:
        about: what all spans of this process say besides, such as the replica's name.
        provider: instead of the one that was set up.
    """
    global _recording
    from opentelemetry import trace

    provider = provider or trace.get_tracer_provider()
    off = isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)
    _recording = None if off else _Recording(provider.get_tracer("serve_app"), _named(about))


def end() -> None:
    """Records no more."""
    global _recording
    _recording = None


def on() -> bool:
    """Whether anything is recorded; if so, `here` says of which pictures."""
    return _recording is not None


def here() -> Parent | None:
    """The span of the picture that this code works for; None unless its trace is recorded."""
    return None if _recording is None else _parent.get()


def parent_of(traceparent: str, about: Attributes | None = None) -> Parent | None:
    """What another process, or a client, says in `traceparent`; None unless it is one of a trace that is recorded."""
    from opentelemetry.trace import SpanContext, TraceFlags

    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or not int(found[3], 16) & TraceFlags.SAMPLED:
        return None
    span = SpanContext(int(found[1], 16), int(found[2], 16), True, TraceFlags(TraceFlags.SAMPLED))
    return Parent(span, about or {}) if span.is_valid else None


def trace_id() -> str:
    """Of the request that is being answered, 32 hexadecimal digits; "" unless its trace is recorded."""
    if _recording is None:
        return ""
    from opentelemetry import trace

    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.trace_flags.sampled else ""


@contextmanager
def request(name: str, traceparent: str) -> Iterator[None]:
    """Continues the client's trace where Serve does not: behind its own HTTP proxies it reads the header only if
    they, which know no `tracing_config`, trace by environment variables.

    Args:
        name: of the span, which is made only then.
        traceparent: the client's header, "" where there is none.
    """
    client = parent_of(traceparent) if traceparent else None
    if _recording is None or client is None or trace_id() == f"{client.span.trace_id:032x}":
        yield
        return
    from opentelemetry import trace

    span = _recording.tracer.start_span(
        name, _below(client.span), trace.SpanKind.SERVER, attributes=dict(_recording.about)
    )
    with trace.use_span(span, end_on_exit=True):
        yield


class Traced:
    """The span of one picture while it is in work."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, timing: Timing, version: int) -> None:
        """With the engine of this version."""
        times = {"queue_ms": timing.queue, "preprocess_ms": timing.preprocess, "inference_ms": timing.inference}
        self._span.set_attributes(_named({**times, "version": version}))

    def failed(self, error: ServeError) -> None:
        """An error of the client is no failure of the service."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("error.type", error.code)
        if error.status >= 500:
            self._span.set_status(Status(StatusCode.ERROR, str(error)))


@contextmanager
def picture(model: str, version: int, one: Input, priority: Priority) -> Iterator[Traced | None]:
    """A span for one picture of the present request, which `here` names inside; None unless its trace is recorded.

    Args:
        model: its public name.
        version: of its engine, which may be another by the time it runs.
        one: nothing of it is recorded but its size and format.
    """
    from opentelemetry import trace

    outer = trace.get_current_span().get_span_context()
    if _recording is None or not outer.trace_flags.sampled:
        yield None
        return
    about = _named({"model": model, "version": version})
    said = _named({**about_picture(one), "priority": priority})
    span = _recording.tracer.start_span("picture", _below(outer), attributes={**_recording.about, **about, **said})
    token = _parent.set(Parent(span.get_span_context(), about))
    try:
        yield Traced(span)
    finally:
        _parent.reset(token)
        span.end()


def record(
    name: str,
    parent: Parent,
    clock: Callable[[], float],
    began_s: float,
    ended_s: float,
    about: Attributes | None = None,
) -> None:
    """A span of something that is over.

    Args:
        clock: on which it began and ended.
        about: attributes.
    """
    if _recording is None:
        return
    now_ns, now_s = time.time_ns(), clock()
    span = _recording.tracer.start_span(
        name,
        _below(parent.span),
        attributes={**_recording.about, **parent.about, **_named(about or {})},
        start_time=now_ns - int((now_s - began_s) * 1e9),
    )
    span.end(now_ns - int((now_s - ended_s) * 1e9))


def context_below(parents: Sequence[Parent]) -> contextvars.Context:
    """A context for a call on behalf of several pictures, empty but for the trace of the first one that is recorded.

    Where none is, the call's trace is not to be recorded either: Serve would begin one of its own.
    """
    context = contextvars.Context()
    if _recording is not None:
        from opentelemetry.context import attach
        from opentelemetry.trace import SpanContext

        context.run(attach, _below(parents[0].span if parents else SpanContext(1, 1, is_remote=False)))
    return context


def described(one: Input) -> tuple[str, int]:
    """A picture's format, by its first bytes, and its bytes."""
    if not isinstance(one, bytes):
        return "tensor", one.nbytes
    for start, kind in _KINDS:
        if one.startswith(start):
            return kind, len(one)
    return ("avif" if one[4:12] == b"ftypavif" else "other"), len(one)


def about_picture(one: Input) -> dict[str, str | int]:
    """Nothing but what `described` says."""
    kind, size = described(one)
    return {"format": kind, "bytes": size}


def otlp_exporter() -> list[SpanProcessor]:
    """For `tracing_config.exporter_import_path`: to a collector, as the variables OTEL_EXPORTER_OTLP_* say.

    Raises:
        ConfigError: the extra `tracing` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(
            "traces go to a collector through opentelemetry-exporter-otlp-proto-http, which is not installed; "
            'run: pip install "image-serve[tracing]"'
        ) from None
    return [_without_chores(OTLPSpanExporter())]


def file_exporter() -> list[SpanProcessor]:
    """For `tracing_config.exporter_import_path`: JSON lines, one span each, one file per process, in the folder that
    IMAGE_SERVE_TRACES_DIR names. The files grow for as long as the process lives.

    Raises:
        ConfigError: it names none, or one that cannot be written.
    """
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    class Lines(ConsoleSpanExporter):
        def shutdown(self) -> None:
            self.out.close()

    named = os.environ.get(TRACES_DIR)
    if not named:
        raise ConfigError(f"traces go to the folder that {TRACES_DIR} names, which is not set; set it on every node")
    try:
        Path(named).mkdir(parents=True, exist_ok=True)
        file = (Path(named) / f"spans-{socket.gethostname()}-{os.getpid()}.jsonl").open("a")
    except OSError as error:
        raise ConfigError(f"traces cannot be written to {named} ({error}); let {TRACES_DIR} name a folder") from None
    exporter = Lines(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
    return [_without_chores(exporter, FILE_DELAY_MS)]


def _without_chores(exporter: SpanExporter, delay_ms: float | None = None) -> SpanProcessor:
    """Exports what belongs to requests.

    What replicas ask each other for their own sake (reports, readiness), and chunks of which no picture is recorded,
    would be traces of one span: Serve decides about each of them anew.
    """
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    class Requests(BatchSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            about = span.attributes or {}
            is_call = about.get("route") == ""  # between deployments, and not on behalf of one request
            if not is_call or (span.parent is not None and about.get("call_method") == "classify"):
                super().on_end(span)

    # Serve makes the provider next, and says nothing of the service's name.
    os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)
    return Requests(exporter, schedule_delay_millis=delay_ms)


def _below(parent: SpanContext) -> Any:
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(parent))


def _named(about: Mapping[str, Any]) -> dict[str, Any]:
    return {_PREFIX + name: value for name, value in about.items()}
