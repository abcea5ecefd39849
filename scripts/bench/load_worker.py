"""The load process: raw HTTP/1.1 over keep-alive connections, as little work per request as Python allows.

Started by load.py, never by hand: reads a pickled Job from stdin, writes pickled messages to stdout.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import cast

import uvloop

from scripts.bench.alarm import Alarm
from scripts.bench.http_answer import AnswerParser, Malformed
from scripts.bench.load import Counts, Job, Progress
from scripts.bench.tally import Tally
from scripts.bench.traffic import arrivals, reachable, request_stream

TICK_S = 0.5
RETRY_S = 0.05
"""Pause after a refused connection, or a closed loop without a server would spin."""
Report = Callable[[Progress | Counts | str], None]


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way; a request may be given before it is open."""

    __slots__ = ("_driver", "_parser", "_request", "_transport", "alive", "busy", "due_s")

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._parser = AnswerParser()
        self._transport: asyncio.Transport | None = None
        self._request = b""
        self.alive = True
        self.busy = False
        self.due_s = 0.0

    def send(self, request: bytes, due_s: float) -> None:
        """Sends now, or as soon as the connection is open."""
        self.busy, self.due_s = True, due_s
        if self._transport is None:
            self._request = request
        else:
            self._parser.start()
            self._transport.write(request)

    def close(self) -> None:
        """Ends the connection; a request under way stays unanswered."""
        self.alive = False
        if self._transport is not None:
            self._transport.abort()

    def fail(self, kind: str) -> None:
        """Gives up the request under way, and the connection with it."""
        if self.busy:
            self.busy = False
            self.close()
            self._driver.failed(self, kind)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.busy:
            self._transport.write(self._request)
        else:  # given up meanwhile
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self.busy:  # bytes nobody asked for
            self.close()
            return
        try:
            complete = self._parser.feed(data)
        except Malformed:
            self.fail("malformed")
            return
        if complete:
            self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self.busy and exc is None and self._parser.ends_with_connection():
            self._answered()
        elif self.busy:
            self.fail("reset")
        else:
            self._driver.connections.discard(self)

    def _answered(self) -> None:
        self.busy = False
        parser = self._parser
        if parser.close:
            self.close()
        self._driver.answered(self, parser.status, parser.body)


class Driver(ABC):
    """What both loops share: connections, window, timeouts, progress. Subclasses decide when a request is sent."""

    def __init__(self, job: Job, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self.job, self.clock, self._report = job, clock, report
        self.requests = request_stream(job.target, job.seed)
        self.connections: set[Connection] = set()
        self.most_connections = 0
        self.max_lag_s = 0.0
        self.stopping = False
        self.tally = Tally(0.0, 0.0, by_due=job.mode == "open")
        self.all_done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._address = reachable(job.target.url)

    @abstractmethod
    def begin(self) -> None:
        """Starts sending; `tally` has its window by then."""

    @abstractmethod
    def free(self, connection: Connection) -> None:
        """`connection` has nothing under way any more; it may be dead."""

    def waiting(self) -> int:
        """How many requests have no connection yet."""
        return 0

    async def run(self) -> Counts:
        """Warm-up, window, the last answers."""
        job, start_s = self.job, self.clock()
        window_s = float("inf") if job.seconds is None else job.seconds
        self.tally.begin_s = self.tally.last_end_s = start_s + job.warmup_s
        self.tally.end_s = self.tally.begin_s + window_s
        ticks = asyncio.create_task(self._tick(start_s))
        self.begin()
        await self._until(self.tally.begin_s)
        self._report("begin")
        cpu_s = time.process_time()
        await (self.all_done.wait() if job.seconds is None else self._until(self.tally.end_s))
        cpu_s = time.process_time() - cpu_s
        self._report("end")
        await self._drain()
        ticks.cancel()
        return self._counts(cpu_s)

    def open(self, due_s: float) -> None:
        """A new connection, and the next request on it."""
        connection = Connection(self)
        connection.send(next(self.requests), due_s)
        self.connections.add(connection)
        self.most_connections = max(self.most_connections, len(self.connections))
        task = asyncio.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        self.tally.answered(status, connection.due_s, self.clock(), body)
        self._finished(connection)

    def failed(self, connection: Connection, kind: str) -> None:
        self.tally.failed(kind, connection.due_s, self.clock())
        if kind == "connect" and not self.stopping:
            self.connections.discard(connection)
            asyncio.get_running_loop().call_later(RETRY_S, self._finished, connection)
        else:
            self._finished(connection)

    def _finished(self, connection: Connection) -> None:
        if not connection.alive:
            self.connections.discard(connection)
        if self.job.requests is not None and self.tally.done >= self.job.requests:
            self.all_done.set()
        self.free(connection)

    async def _connect(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self.job.timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: connection, *self._address)
        except (OSError, TimeoutError):
            connection.fail("connect")

    async def _until(self, when_s: float) -> None:
        await asyncio.sleep(max(0.0, when_s - self.clock()))

    async def _tick(self, start_s: float) -> None:
        while True:
            await asyncio.sleep(min(TICK_S, self.job.timeout_s / 4))
            self.give_up(self.clock() - self.job.timeout_s)
            self._report(Progress(self.clock() - start_s, self.tally.done))

    def give_up(self, due_before_s: float) -> None:
        """Times out the requests that were due before this."""
        for connection in [one for one in self.connections if one.busy and one.due_s < due_before_s]:
            connection.fail("timeout")

    async def _drain(self) -> None:
        """Waits for the answers that are outstanding, so that nothing measured next pays for them."""
        self.stopping = True
        until_s = self.clock() + self.job.timeout_s
        while self.clock() < until_s and (self.waiting() or any(one.busy for one in self.connections)):
            await asyncio.sleep(0.01)
        self.give_up(float("inf"))
        for connection in list(self.connections):
            connection.close()

    def _counts(self, cpu_s: float) -> Counts:
        tally = self.tally
        return Counts(
            latencies_us=tally.latencies_us,
            seconds=(tally.last_end_s - tally.begin_s) if self.job.seconds is None else self.job.seconds,
            ended_in_window=tally.ended_in_window,
            shed=tally.shed,
            errors=dict(tally.errors),
            samples=[text for _, texts in sorted(tally.samples.items()) for text in texts],
            connections=self.most_connections,
            client_cpu_s=cpu_s,
            max_lag_s=self.max_lag_s,
        )


class ClosedLoop(Driver):
    """Each connection sends again as soon as it is free."""

    def begin(self) -> None:
        self._unsent = self.job.requests
        for _ in range(self.job.connections):
            self._send(None)

    def free(self, connection: Connection) -> None:
        if self.stopping or self._unsent == 0:
            connection.close()
        else:
            self._send(connection if connection.alive else None)

    def _send(self, connection: Connection | None) -> None:
        if self._unsent is not None:
            self._unsent -= 1
        if connection is None:
            self.open(self.clock())
        else:
            connection.send(next(self.requests), self.clock())


class OpenLoop(Driver):
    """Sends on a schedule, whatever was answered; where no connection may be opened any more, arrivals queue."""

    def begin(self) -> None:
        self._idle: list[Connection] = []
        self._queue: deque[float] = deque()
        self._schedule = arrivals(self.job.rate_per_s or 0.0, self.tally.begin_s - self.job.warmup_s, self.job.seed)
        self._next_s = next(self._schedule)
        self._alarm = Alarm(self._arrive)
        self._alarm.set(self._next_s)

    def free(self, connection: Connection) -> None:
        if self._queue:
            if connection.alive:
                connection.send(next(self.requests), self._queue.popleft())
            else:
                self.open(self._queue.popleft())
        elif connection.alive:
            self._idle.append(connection)

    def waiting(self) -> int:
        return len(self._queue)

    def give_up(self, due_before_s: float) -> None:
        while self._queue and self._queue[0] < due_before_s:
            self.tally.failed("timeout", self._queue.popleft(), self.clock())
        super().give_up(due_before_s)

    def _arrive(self) -> None:
        while (now_s := self.clock()) >= self._next_s and self._next_s < self.tally.end_s:
            self.max_lag_s = max(self.max_lag_s, now_s - self._next_s)
            self._assign(self._next_s)
            self._next_s = next(self._schedule)
        if self._next_s < self.tally.end_s:
            self._alarm.set(self._next_s)
        else:
            self._alarm.close()

    def _assign(self, due_s: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.alive:
                connection.send(next(self.requests), due_s)
                return
        if len(self.connections) < self.job.connections:
            self.open(due_s)
        else:
            self._queue.append(due_s)


def main() -> None:
    job: Job = pickle.load(sys.stdin.buffer)

    def report(message: Progress | Counts | str) -> None:
        try:
            pickle.dump(message, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # nobody waits for the result any more: send no load either
            os._exit(1)

    async def drive() -> Counts:
        return await (ClosedLoop if job.mode == "closed" else OpenLoop)(job, report).run()

    gc.disable()  # a collection would be in the latencies; nothing here makes cycles in numbers
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report(runner.run(drive()))


if __name__ == "__main__":
    main()
