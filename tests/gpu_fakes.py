"""A device that only does what was queued when somebody waits for it: what is read or overwritten too early shows.

It keeps a journal, counts what is on its way, watches which thread frees what, and fails where it is told to.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.runtime.gpu.device import Device, Execution, Memory
from tests.fakes import CLASSES, SHAPE
from tests.tiny_engine import expected

PATIENCE_S = 20.0
"""Only a test that fails waits for so long."""


class FakeGpuError(Exception):
    """As a GPU library would raise it."""


class Mark:
    """One passing of an event."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.passed = False
        self.at_ms = 0.0


class FakeStream:
    """Work in order, done by whoever waits for it."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.work: deque[Callable[[], None] | Mark] = deque()
        self.recording: list[Callable[[], None]] | None = None
        self.handle = id(self)

    def put(self, work: Callable[[], None]) -> None:
        (self.work if self.recording is None else self.recording).append(work)

    def wait_for_event(self, event: FakeEvent) -> None:
        mark = event.mark
        self.put(lambda: self.device.run_to(mark))

    def synchronize(self) -> None:
        self.device.calls("synchronize")
        while self.work:
            self.step()
        self.device.raise_if_broken()

    def step(self) -> None:
        work = self.work.popleft()
        if isinstance(work, Mark):
            work.passed, work.at_ms = True, self.device.now_ms
            return
        if self.device.broken is None:
            try:
                work()
            except FakeGpuError as error:
                self.device.broken = str(error)


class FakeEvent:
    """A point in a stream."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.mark = Mark(FakeStream(device))

    def record(self, stream: FakeStream) -> None:
        self.mark = Mark(stream)
        stream.work.append(self.mark)

    def query(self) -> bool:
        self.device.calls("query")
        if self.device.counts["copy_in"] >= self.device.idle_until_copies:
            self.device.run_to(self.mark)
        return self.mark.passed

    def synchronize(self) -> None:
        self.device.calls("synchronize")
        self.device.run_to(self.mark)
        self.device.raise_if_broken()

    def time_since(self, event: FakeEvent) -> float:
        return self.mark.at_ms - event.mark.at_ms


class FakeMemory:
    """An allocation; its bytes are 255 until something is written."""

    addresses = itertools.count(256, 256)

    def __init__(self, device: FakeDevice, nbytes: int) -> None:
        self.device = device
        self.content = np.full(nbytes, 255, np.uint8)
        self.address = next(self.addresses)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.device.calls("free")
        self.content = np.empty(0, np.uint8)
        self.device.released(self)

    def view(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        content: NDArray[Any] = self.content[: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype)
        return content.reshape(shape)


class FakeGraph:
    """Recorded work."""

    def __init__(self, device: FakeDevice, work: list[Callable[[], None]]) -> None:
        self.device, self.work = device, work

    def launch(self, stream: FakeStream) -> None:
        self.device.calls("launch")
        for one in self.work:
            stream.put(one)

    def close(self) -> None:
        self.device.calls("close_graph")


class FakeDevice:
    """Satisfies `device.Device`.

    Attributes:
        journal: every call, in order; `calls` counts them.
        freed: what was freed, by which thread, and whether the device was current there.
        strays: calls from another thread than the one that made the device, or without the device being current.
        idle_until_copies: `query` finds nothing done before so many copies were queued.
        stuck: while not set, who waits for the device waits for ever.
        run_ms: of a batch of so many.
        fail_runs: so many runs fail, after they were queued without an error.
        broken: after an error in queued work: why.
        most_on_their_way: batches that were queued and not yet copied out, at most.
    """

    name = "fake GPU"

    def __init__(self, *, run_ms: Callable[[int], float] = lambda n: 1.0 + n) -> None:
        self.journal: list[str] = []
        self.counts: Counter[str] = Counter()
        self.freed: list[tuple[str, str, bool]] = []
        self.strays: list[str] = []
        self.idle_until_copies = 0
        self.stuck = threading.Event()
        self.stuck.set()
        self.run_ms = run_ms
        self.now_ms = 0.0
        self.broken: str | None = None
        self.most_on_their_way = self._on_their_way = 0
        self.fail_runs = 0
        self._armed: set[tuple[str, int]] = set()
        self._watched: list[weakref.ref[Any]] = []
        self._owner: threading.Thread | None = None
        self._depth = 0

    def arm(self, call: str, nth: int = 1) -> FakeDevice:
        """The nth `call` from now on raises."""
        self._armed.add((call, self.counts[call] + nth))
        return self

    def make(self) -> FakeDevice:
        """As `make_device` of a thread."""
        self._owner = threading.current_thread()
        self.calls("make", current=False)
        return self

    def calls(self, call: str, *, current: bool = True) -> None:
        if threading.current_thread() is not self._owner or (current and not self._depth):
            self.strays.append(f"{call} in {threading.current_thread().name}")
        self.counts[call] += 1
        self.journal.append(call)
        if call in ("synchronize", "query") and not self.stuck.wait(PATIENCE_S):
            raise AssertionError("nobody freed the stuck device")
        if (call, self.counts[call]) in self._armed:
            raise FakeGpuError(call)  # a new one: an old one would keep the frames it went through

    @contextmanager
    def current(self) -> Iterator[None]:
        self.calls("enter", current=False)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self.calls("leave", current=False)

    def watched(self, made: Any) -> Any:
        """Notes where it is freed."""
        kind = type(made).__name__

        def gone(_: object) -> None:
            self.freed.append((kind, threading.current_thread().name, bool(self._depth)))

        self._watched.append(weakref.ref(made, gone))
        return made

    def released(self, made: Any) -> None:
        """It was given back; who keeps the empty object does not matter."""
        self._watched = [one for one in self._watched if one() is not made]

    def alive(self) -> list[str]:
        """What was made on the device and is there yet."""
        return [type(made).__name__ for one in self._watched if (made := one()) is not None]

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        self.calls("pinned")
        array: NDArray[Any] = self.watched(np.zeros(shape, dtype))
        return array

    def allocate(self, nbytes: int) -> FakeMemory:
        self.calls("allocate")
        memory: FakeMemory = self.watched(FakeMemory(self, nbytes))
        return memory

    def stream(self) -> FakeStream:
        self.calls("stream")
        stream: FakeStream = self.watched(FakeStream(self))
        return stream

    def event(self) -> FakeEvent:
        self.calls("event")
        event: FakeEvent = self.watched(FakeEvent(self))
        return event

    def copy_in(self, target: Memory, source: NDArray[Any], stream: FakeStream) -> None:
        # Numbers go in only to poison an output.
        self.calls("poison" if source.dtype == np.float32 else "copy_in")
        assert source.flags.c_contiguous
        assert isinstance(target, FakeMemory)

        def copy() -> None:
            self.now_ms += 0.25 if source.dtype != np.float32 else 0
            np.copyto(target.view(source.shape, source.dtype), source)

        stream.put(copy)

    def copy_out(self, target: NDArray[Any], source: Memory, stream: FakeStream) -> None:
        self.calls("copy_out")
        self._on_their_way += 1
        self.most_on_their_way = max(self.most_on_their_way, self._on_their_way)
        assert isinstance(source, FakeMemory)

        def copy() -> None:
            self.now_ms += 0.125
            self._on_their_way -= 1
            self.journal.append("copied_out")
            np.copyto(target, source.view(target.shape, target.dtype))

        stream.put(copy)

    def record(self, stream: FakeStream, enqueue: Callable[[], None]) -> FakeGraph:
        self.calls("record")
        stream.recording = []
        try:
            enqueue()
            graph: FakeGraph = self.watched(FakeGraph(self, stream.recording))
            return graph
        finally:
            stream.recording = None

    def memory_bytes(self) -> tuple[int, int]:
        self.calls("memory")
        return 30, 100

    def close(self) -> None:
        self.calls("close_device", current=False)

    def run_to(self, mark: Mark) -> None:
        while not mark.passed:
            mark.stream.step()

    def raise_if_broken(self) -> None:
        if self.broken is not None:
            raise FakeGpuError(self.broken)


class FakeExecution:
    """The tiny engine on a fake device; satisfies `device.Execution`.

    Attributes:
        batches: sizes that were enqueued.
        writes: whether it writes its output.
    """

    def __init__(self, device: Device) -> None:
        assert isinstance(device, FakeDevice)
        device.calls("make_execution")
        device.watched(self)
        self.device = device
        self.shape, self.classes, self.max_batch_size = SHAPE, CLASSES, 64
        self.memory_bytes = 7
        self.batches: list[int] = []
        self.writes = True

    def enqueue(self, n: int, source: Memory, target: Memory, stream: Any) -> None:
        self.device.calls("enqueue")
        self.batches.append(n)
        assert isinstance(source, FakeMemory)
        assert isinstance(target, FakeMemory)
        device = self.device

        def run() -> None:
            device.now_ms += device.run_ms(n)
            device.journal.append(f"run {n}")
            if device.fail_runs:
                device.fail_runs -= 1
                raise FakeGpuError("run")
            if self.writes:
                target.view((n, CLASSES), np.float32)[:] = expected(source.view((n, *SHAPE), np.uint8))

        stream.put(run)

    def close(self) -> None:
        self.device.calls("close_execution")


def fits(device: FakeDevice, execution: FakeExecution) -> tuple[Device, Execution]:
    """For the type checker: both satisfy what the GPU thread wants."""
    return device, execution


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def assert_answers(logits: NDArray[np.float32], pictures: NDArray[np.uint8]) -> None:
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(pictures), rtol=1e-4, atol=0.1)
