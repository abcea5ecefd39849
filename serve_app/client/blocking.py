"""The client for ordinary code, one request at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

import httpx

from serve_app.client import exchange as core
from serve_app.client.answers import (
    Answer,
    LiveView,
    Model,
    Reply,
    parse_answer,
    parse_answers,
    parse_live,
    parse_models,
)
from serve_app.client.errors import ClientError, Rejected, Unreachable, Unreadable
from serve_app.client.exchange import Broken, Call, PictureFile, Policy, Send, Wait
from serve_app.types import Priority

PICTURES_PER_REQUEST = 16
BYTES_PER_REQUEST = 8 * 2**20
"""Well below what a service takes by default (64 pictures, 20 MiB): larger requests are not faster."""


class Client:
    """Asks one service.

    Follows 429: waits as long as `Retry-After` says and comes back marked as a retry, which the service lets in before
    newcomers. Tries again when a connection breaks before anything was answered, and on 502 and 503. Never repeats a
    request whose picture or parameters were rejected. Use it as a context manager, or close it.

    Args:
        address: as `http://localhost:8000`.
        timeout_s: for one call with all its attempts and waits.
        retries: how often a request is tried again when it is refused, and how often when it breaks.
        http: a client of your own, for proxies, certificates or authentication; it is not closed.
        clock: monotonic seconds.
        sleep: waits for seconds.

    Raises:
        ValueError: `address` is none.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = core.DEFAULT_TIMEOUT_S,
        retries: int = core.DEFAULT_RETRIES,
        http: httpx.Client | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = core.base_address(address)
        self._timeout_s = timeout_s
        self._policy = Policy(retries, retries)
        self._http = http or httpx.Client()
        self._owned = http is None
        self._clock = clock
        self._sleep = sleep

    def classify(
        self,
        picture: PictureFile,
        *,
        top_k: int | None = None,
        model: str | None = None,
        priority: Priority = "interactive",
        timeout_s: float | None = None,
    ) -> Answer:
        """Classifies one picture.

        Args:
            top_k: how many classes; None is 3, or all of a model that has fewer.
            model: by public name; None is the default one.
            priority: batch pictures let interactive ones pass.
            timeout_s: instead of the client's.

        Raises:
            ClientError: one of its subclasses, see `serve_app.client.errors`.
            TypeError: `picture` is neither bytes, a path nor a binary file.
        """
        call = core.predict_call([core.read_picture(picture)], top_k, model, priority)
        return parse_answer(self._run(call, timeout_s))

    def classify_many(
        self,
        pictures: Iterable[PictureFile],
        *,
        top_k: int | None = None,
        model: str | None = None,
        priority: Priority = "interactive",
        timeout_s: float | None = None,
        per_request: int = PICTURES_PER_REQUEST,
    ) -> Iterator[Answer | ClientError]:
        """Yields one answer per picture, in order; the error of a picture that failed stands in its place.

        Pictures are read as they are needed and sent several per request, at most `per_request` and 8 MiB; a request
        that is too large for the service nevertheless is sent again in halves.

        Args:
            timeout_s: for each request.

        Raises:
            Unreachable: nobody answers; what was yielded before stands.
        """

        def ask(bodies: list[bytes]) -> list[Answer | ClientError]:
            try:
                reply = self._run(core.predict_call(bodies, top_k, model, priority), timeout_s)
                return parse_answers(reply) if len(bodies) > 1 else [parse_answer(reply)]
            except Unreachable:
                raise
            except ClientError as error:
                if not (isinstance(error, Rejected) and error.status == 413 and len(bodies) > 1):
                    return [error] * len(bodies)
            half = len(bodies) // 2
            return ask(bodies[:half]) + ask(bodies[half:])

        for chunk in _chunks(pictures, per_request):
            yield from [chunk] if isinstance(chunk, ClientError) else ask(chunk)

    def models(self) -> tuple[Model, ...]:
        """What is served, the default model first."""
        return parse_models(self._run(Call("GET", "/models")))

    def ready(self) -> bool:
        """Whether every engine is loaded and warmed; False also where nobody answers yet. Does not retry."""
        try:
            return core.is_ready(self._run(Call("GET", "/readyz"), policy=Policy(0, 0)))
        except Unreachable:
            return False

    def live(self) -> LiveView:
        """Rates and backlog of the last seconds."""
        return parse_live(self._run(Call("GET", "/live")))

    def close(self) -> None:
        """Closes its connections."""
        if self._owned:
            self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call, timeout_s: float | None = None, policy: Policy | None = None) -> Reply:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        steps = core.exchange(call, timeout_s, policy or self._policy, self._clock)
        result: Reply | Broken | None = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Wait):
                self._sleep(step.seconds)
                result = None
            else:
                result = self._send(step)

    def _send(self, step: Send) -> Reply | Broken:
        call, end_s = step.call, self._clock() + step.timeout_s
        answering = False
        try:
            with self._http.stream(
                call.method,
                self.address + call.path,
                params=call.params,
                headers=call.headers,
                content=call.content(),
                files=call.files(),
                timeout=httpx.Timeout(step.timeout_s, connect=min(step.timeout_s, core.CONNECT_S)),
            ) as response:
                answering = True
                pieces = []
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    if self._clock() > end_s:
                        return Broken(core.time_up(step.timeout_s))
                return Reply(response.status_code, response.headers, b"".join(pieces))
        except httpx.ConnectTimeout as error:
            return Broken(core.unreachable(self.address, error))
        except httpx.TimeoutException:
            return Broken(core.time_up(step.timeout_s))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            make = core.half_an_answer if answering else core.unreachable
            return Broken(make(self.address, error))


def _chunks(pictures: Iterable[PictureFile], per_request: int) -> Iterator[list[bytes] | ClientError]:
    """Pictures of one request after the other; the error of one that cannot be read stands between them."""
    chunk: list[bytes] = []
    for picture in pictures:
        try:
            body = core.read_picture(picture)
        except Unreadable as error:
            if chunk:
                yield chunk
            chunk = []
            yield error
            continue
        if chunk and (len(chunk) == per_request or sum(map(len, chunk)) + len(body) > BYTES_PER_REQUEST):
            yield chunk
            chunk = []
        chunk.append(body)
    if chunk:
        yield chunk
