"""The one thread of a replica that touches its GPU, and the queue of batches in front of it."""

from __future__ import annotations

import atexit
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any, TypeVar

from serve_app.errors import GpuFailed, SetupError
from serve_app.runtime.gpu.device import Device, Execution
from serve_app.runtime.gpu.lanes import Lanes, Slot
from serve_app.types import GpuTimes, Logits, Pictures

logger = logging.getLogger(__name__)
T = TypeVar("T")
POLL_S = 0.0002
"""While a batch is on the device and there is place for another: how soon its end is noticed."""
CLOSE_TIMEOUT_S = 30.0
"""A device that has not done by then what was queued will not."""
EXIT_TIMEOUT_S = 5.0
"""The same, for a process that ends with an open engine."""
Answer = tuple[Logits, GpuTimes]


@dataclass(slots=True, eq=False)
class Batch:
    """Pictures in pinned memory that a caller waits for."""

    slot: Slot
    pictures: Pictures
    poisoned: bool = False
    batch_size: int | None = None
    answer: Future[Answer] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Task:
    """Something else to do on the device, when no batch is on it."""

    do: Callable[[Lanes], object]
    answer: Future[object] = field(default_factory=Future)


class GpuThread:
    """Owns a device from the first to the last call on it: context, streams, engine, buffers.

    A GPU context belongs to the thread it was pushed in, and objects that are freed elsewhere leak; so everything is
    made, used and freed here, in this order reversed.

    Args:
        make_device: called in the thread.
        make_execution: called in the thread, the device being current.
        slots, max_batch_size: see `lanes.Lanes`.

    Raises:
        SetupError, GpuFailed: as the two raise them, any other error as a GpuFailed; the thread is gone then, and the
            device given back.
    """

    def __init__(
        self,
        make_device: Callable[[], Device],
        make_execution: Callable[[Device], Execution],
        *,
        slots: int,
        max_batch_size: int,
    ) -> None:
        self._make_device, self._make_execution = make_device, make_execution
        self._size = {"slots": slots, "max_batch_size": max_batch_size}
        # Not a SimpleQueue: its `get` may wait for ever if the time is up before it waits (seen in CPython 3.11.7).
        self._queue: Queue[Batch | _Task | None] = Queue()
        self._closing = threading.Lock()
        self._closed = False
        self._failure: BaseException | None = None
        self._unanswered: set[Future[Any]] = set()
        opened: Future[Lanes] = Future()
        self._thread = threading.Thread(target=self._main, args=(opened,), name="gpu", daemon=True)
        self._thread.start()
        try:
            self.lanes = opened.result()
        except BaseException:
            self._closed = True
            self._thread.join()
            raise
        atexit.register(self._close_at_exit)

    def submit(self, batch: Batch) -> None:
        """Queues a batch; its answer comes in `batch.answer`.

        Raises:
            GpuFailed: the engine was closed.
        """
        self._put(batch)

    def call(self, do: Callable[[Lanes], T], timeout_s: float | None = None) -> T:
        """Runs `do` in the thread, when no batch is on the device, and returns what it returns."""
        task = _Task(do)
        self._put(task)
        return task.answer.result(timeout_s)  # type: ignore[return-value]

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Finishes what was queued, frees everything and ends the thread. May be called again.

        Raises:
            GpuFailed: the device did not come to rest, or not in time; whoever waited for it was told so.
        """
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            what = f"the GPU did not come to rest within {timeout_s:g} s; end this process"
            self._give_up(what)
            raise GpuFailed(what)
        atexit.unregister(self._close_at_exit)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _close_at_exit(self) -> None:
        # Python ends daemon threads where they are, and pycuda aborts the process if a context is pushed there.
        with suppress(GpuFailed):
            self.close(EXIT_TIMEOUT_S)

    def _put(self, item: Batch | _Task) -> None:
        with self._closing:
            if self._closed:
                raise GpuFailed("the engine was closed")
            self._unanswered.add(item.answer)
            item.answer.add_done_callback(self._unanswered.discard)
            self._queue.put(item)

    def _give_up(self, why: str) -> None:
        for answer in list(self._unanswered):
            _tell(answer, GpuFailed(why))

    def _main(self, opened: Future[Lanes]) -> None:
        try:
            self._own_device(opened)
        except BaseException as error:
            self._failure = _freed(error)
            _tell(opened, self._failure)
        with self._closing:
            self._closed = True
        self._give_up("the engine was closed")

    def _own_device(self, opened: Future[Lanes]) -> None:
        device = self._make_device()
        try:
            # A thread that ends with a pushed context aborts the whole process, so this block is the whole of its life.
            with device.current():
                self._live(device, opened)
        finally:
            device.close()

    def _live(self, device: Device, opened: Future[Lanes]) -> None:
        # Errors end here: their frames keep what was made on the device, and must go while it is current.
        try:
            lanes = self._open(device)
        except BaseException as error:
            opened.set_exception(_freed(error))
            return
        opened.set_result(lanes)
        try:
            self._serve(lanes)
            lanes.close()
        except BaseException as error:
            self._failure = _freed(error)

    def _open(self, device: Device) -> Lanes:
        execution = self._make_execution(device)
        del self._make_execution  # it may hold the whole plan
        try:
            return Lanes(device, execution, **self._size)
        except BaseException:
            execution.close()
            raise

    def _serve(self, lanes: Lanes) -> None:
        flying: deque[Batch] = deque()
        while True:
            item = self._next(lanes, flying)
            if isinstance(item, Batch):
                if _begin(lanes, item):
                    flying.append(item)
                continue
            while flying:
                _end(lanes, flying.popleft())
            if item is None:
                return
            _do(lanes, item)

    def _next(self, lanes: Lanes, flying: deque[Batch]) -> Batch | _Task | None:
        """The next thing to do; batches that come to their end meanwhile are answered."""
        while flying:
            if len(flying) == len(lanes.slots):
                _end(lanes, flying.popleft())
                continue
            try:
                return self._queue.get(timeout=POLL_S)
            except Empty:
                if _is_done(flying[0]):
                    _end(lanes, flying.popleft())
        return self._queue.get()


def _begin(lanes: Lanes, batch: Batch) -> bool:
    """Queues a batch on the device; one that is refused is answered with the error, and the device brought to rest."""
    try:
        lanes.submit(batch.slot, batch.pictures, batch_size=batch.batch_size, poisoned=batch.poisoned)
    except Exception as error:
        _settle(lanes)  # part of it may be queued, and would still use its buffers
        _tell(batch.answer, _as_failure(error))
        return False
    return True


def _end(lanes: Lanes, batch: Batch) -> None:
    try:
        answer = lanes.finish(batch.slot)
    except Exception as error:
        _settle(lanes)  # its buffers go to the next batch
        _tell(batch.answer, _as_failure(error))
    else:
        _tell(batch.answer, answer)


def _is_done(batch: Batch) -> bool:
    try:
        return batch.slot.is_done()
    except Exception:  # `_end` meets it again, and answers it
        return True


def _do(lanes: Lanes, task: _Task) -> None:
    try:
        answer = task.do(lanes)
    except Exception as error:
        _tell(task.answer, _as_failure(error))
    else:
        _tell(task.answer, answer)


def _tell(answer: Future[Any], outcome: object) -> None:
    """Unless it was told before: `close` does not wait for ever."""
    with suppress(InvalidStateError):
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


def _settle(lanes: Lanes) -> None:
    # A broken device never comes to rest; the next batch and the health check say so.
    with suppress(Exception):
        lanes.settle()


def _as_failure(error: Exception) -> GpuFailed:
    """An error of the device's library as ours."""
    if isinstance(error, GpuFailed):
        return GpuFailed(error.what, error.lines)
    # As text: a log record that some handler keeps would keep the frames, and with them what is on the device.
    logger.error("the GPU failed\n%s", "".join(traceback.format_exception(error)))
    said = " ".join(str(error).split())  # messages are one line
    return GpuFailed(f"the GPU failed: {type(error).__name__}: {said}")


def _freed(error: BaseException) -> BaseException:
    """Without its traceback, whose frames would keep what was made on the device until another thread drops it."""
    if isinstance(error, Exception) and not isinstance(error, GpuFailed | SetupError):
        return _as_failure(error)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
