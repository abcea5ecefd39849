"""What to send, when to send it again, and when to give up: the one core of both clients. Nothing here does any I/O.

An exchange is a generator. It yields `Send` and is sent what came of it, `Reply` or `Broken`; it yields `Wait` and is
sent None once that time has passed; it returns the reply that counts, or raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import BinaryIO, TypeAlias
from urllib.parse import urlsplit

from serve_app.client.answers import Reply, error_of, retry_after_s
from serve_app.client.errors import ClientError, Refused, ServiceFailed, TimeUp, Unreachable, Unreadable
from serve_app.types import Priority

Clock = Callable[[], float]
PictureFile: TypeAlias = bytes | PathLike[str] | BinaryIO
"""A picture file's content, its path, or it opened for binary reading."""

FIELD = "image"
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_RETRIES = 4
CONNECT_S = 5.0
"""Who takes no connection for so long is not there."""
MAX_ATTEMPT_S = 120.0
"""Most that one attempt is given and x-request-timeout-ms says: what services take (`limits.max_timeout_ms`)."""
AWAY_STATUSES = frozenset({502, 503})
"""Nobody behind the proxy, or no warm engine yet: nothing was classified, and it passes."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request; one picture is the body itself, several are a multipart form."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[bytes, ...] = ()

    def files(self) -> list[tuple[str, tuple[str, bytes]]] | None:
        """Parts of the multipart form, None where there is none."""
        return [(FIELD, ("picture", body)) for body in self.pictures] if len(self.pictures) > 1 else None

    def content(self) -> bytes | None:
        """The body, None where it is a form or there is none."""
        return self.pictures[0] if len(self.pictures) == 1 else None


@dataclass(frozen=True, slots=True)
class Policy:
    """How often a request is tried again.

    Attributes:
        retries: after a broken connection.
        refusals: after 429, and after 502 or 503; None is as often as its time allows.
        attempt_s: most time that one attempt is given.
    """

    retries: int = DEFAULT_RETRIES
    refusals: int | None = DEFAULT_RETRIES
    attempt_s: float = MAX_ATTEMPT_S


@dataclass(frozen=True, slots=True)
class Send:
    """Send this, and give up after `timeout_s`."""

    call: Call
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep; `refusal` is the 429 that asked for it, if one did."""

    seconds: float
    refusal: Refused | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """No reply; `Unreachable` says that nothing of one had come."""

    error: ClientError


Steps: TypeAlias = Generator[Send | Wait, Reply | Broken | None, Reply]


@dataclass(frozen=True, slots=True)
class Tried:
    """Attempts so far that were refused, that met nobody behind the proxy or no engine, and that broke."""

    refused: int = 0
    away: int = 0
    broken: int = 0

    def after(self, result: Reply | Broken) -> Tried:
        """With one more, of the kind that `result` is."""
        if isinstance(result, Broken):
            return replace(self, broken=self.broken + 1)
        if result.status in AWAY_STATUSES:
            return replace(self, away=self.away + 1)
        return replace(self, refused=self.refused + 1)


def predict_call(pictures: Sequence[bytes], top_k: int | None, model: str | None, priority: Priority) -> Call:
    """`POST /predict` of one picture or several."""
    wanted = {"top_k": top_k, "model": model}
    params = {name: str(value) for name, value in wanted.items() if value is not None}
    return Call("POST", "/predict", params, {"x-priority": priority}, tuple(pictures))


def exchange(call: Call, timeout_s: float, policy: Policy, clock: Clock) -> Steps:
    """Sends `call` until it is answered, within `timeout_s` for everything together.

    Args:
        timeout_s: for all attempts and the waits between them; each attempt tells the service what is left.

    Returns:
        A reply that is worth no further attempt; its status may still be an error.

    Raises:
        ClientError: nobody answered, the time was up, or it was refused once too often.
    """
    deadline_s = clock() + timeout_s
    tried = Tried()
    while True:
        left_s = min(policy.attempt_s, deadline_s - clock())
        if left_s <= 0:
            raise time_up(timeout_s)
        result = yield Send(with_deadline(call, left_s, tried.refused), left_s)
        assert result is not None
        wait_s = wait_before_next(result, tried, policy)
        if wait_s is None or wait_s >= deadline_s - clock():
            return answered(result)
        tried = tried.after(result)
        yield Wait(wait_s, refusal_of(result))


def wait_before_next(result: Reply | Broken, tried: Tried, policy: Policy) -> float | None:
    """Seconds until the next attempt, None if there shall be none."""
    if isinstance(result, Broken):
        again = isinstance(result.error, Unreachable) and tried.broken < policy.retries
        return backoff_s(tried.broken) if again else None
    most = math.inf if policy.refusals is None else policy.refusals
    if (refusal := refusal_of(result)) is not None:
        return refusal.retry_after_s if tried.refused < most else None
    if result.status in AWAY_STATUSES and tried.away < most:
        announced_s = retry_after_s(result)
        return backoff_s(tried.away) if announced_s is None else announced_s
    return None


def refusal_of(result: Reply | Broken) -> Refused | None:
    """The 429 that `result` is, None if it is something else."""
    error = error_of(result) if isinstance(result, Reply) and result.status == 429 else None
    return error if isinstance(error, Refused) else None


def backoff_s(before: int) -> float:
    """Doubles with each attempt that went wrong before this one."""
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(before, 10))


def with_deadline(call: Call, left_s: float, refused: int) -> Call:
    """`call` with the headers of this attempt: what is left of its time, and how often it was refused."""
    if call.method != "POST":
        return call
    headers = dict(call.headers) | {"x-request-timeout-ms": str(max(1, int(left_s * 1e3)))}
    if refused:
        headers["x-retry-attempt"] = str(refused)
    return replace(call, headers=headers)


def answered(result: Reply | Broken) -> Reply:
    """The reply.

    Raises:
        ClientError: there is none.
    """
    if isinstance(result, Broken):
        raise result.error
    return result


def is_ready(reply: Reply) -> bool:
    """What `GET /readyz` says.

    Raises:
        ClientError: neither yes nor no.
    """
    if reply.status not in (200, 503):
        raise error_of(reply)
    return reply.status == 200


def time_up(timeout_s: float) -> TimeUp:
    return TimeUp(
        "deadline_exceeded",
        f"no answer within {round(timeout_s, 2):g} s; give it more time (timeout_s), or look at its load",
    )


def unreachable(address: str, error: Exception) -> Unreachable:
    reason = str(error) or type(error).__name__
    return Unreachable(
        "unreachable", f"no answer from {address} ({reason}); check the address, and that a service runs there"
    )


def half_an_answer(address: str, error: Exception) -> ServiceFailed:
    return ServiceFailed("half_an_answer", f"{address} began an answer and broke off ({error}); try again")


def base_address(address: str) -> str:
    """`address` with its scheme, and without a slash at its end.

    Raises:
        ValueError: it is no address of an HTTP service.
    """
    base = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(base)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number, or out of range
        good = False
    if not good:
        raise ValueError(f"{address!r} is not the address of a service; it looks like http://localhost:8000")
    return base


def read_picture(picture: PictureFile) -> bytes:
    """The content of a picture file.

    Raises:
        TypeError: `picture` is none of `PictureFile`.
        Unreadable: its file cannot be read.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str):
        raise TypeError("a picture is bytes, a Path or an open binary file; wrap the name in pathlib.Path")
    try:
        content = Path(picture).read_bytes() if isinstance(picture, PathLike) else picture.read()
    except OSError as error:
        raise Unreadable("unreadable", f"{error.strerror or error}; check the file and its permissions") from error
    if not isinstance(content, bytes):
        raise TypeError("the file is open as text; open it for binary reading (mode 'rb')")
    return content
