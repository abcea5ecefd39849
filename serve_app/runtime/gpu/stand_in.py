"""A CPU in the place of a GPU: the same thread, streams and buffers, and the engine's ONNX run by OpenVINO.

To rehearse a GPU configuration where there is none. Streams run in threads of their own, so that copies and runs
really are asynchronous, and what is read too early really is stale.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from serve_app.runtime.gpu.device import Memory
from serve_app.runtime.openvino import OpenVinoRuntime


class HostMemory:
    """Bytes of this process that only streams read and write."""

    def __init__(self, nbytes: int) -> None:
        self.content = np.zeros(nbytes, np.uint8)

    def __int__(self) -> int:
        return int(self.content.ctypes.data)

    def free(self) -> None:
        self.content = np.zeros(0, np.uint8)

    def view(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The beginning of it as an array."""
        content: NDArray[Any] = self.content[: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype)
        return content.reshape(shape)


class HostStream:
    """A queue with a thread.

    Args:
        errors: of the whole device. As with CUDA the first one stays, nothing runs any more, and whoever waits hears
            of it.
    """

    def __init__(self, errors: list[Exception]) -> None:
        self.errors = errors
        self.recording: list[Callable[[], None]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._last: Future[None] = Future()
        self._last.set_result(None)

    @property
    def handle(self) -> int:
        return id(self)

    def put(self, work: Callable[[], None], *, even_if_broken: bool = False) -> None:
        """Queues `work`, or records it."""
        if self.recording is not None:
            self.recording.append(work)
        else:
            self._last = self._thread.submit(self._guarded, work, even_if_broken)

    def _guarded(self, work: Callable[[], None], even_if_broken: bool) -> None:
        if self.errors and not even_if_broken:
            return
        try:
            work()
        except Exception as error:
            self.errors.append(error)

    def wait_for_event(self, event: HostEvent) -> None:
        passed = event.passed  # this passing of it, not the next

        def wait() -> None:
            passed.wait()

        self.put(wait)

    def synchronize(self) -> None:
        self._last.result()
        if self.errors:
            raise self.errors[0]

    def __del__(self) -> None:
        self._thread.shutdown(wait=False)


class HostEvent:
    """A point in a stream, and when it was passed."""

    def __init__(self) -> None:
        self.passed = threading.Event()
        self._errors: list[Exception] = []
        self._at_s = 0.0

    def record(self, stream: HostStream) -> None:
        passed = self.passed = threading.Event()
        self._errors = stream.errors

        def mark() -> None:
            self._at_s = time.perf_counter()
            passed.set()

        stream.put(mark, even_if_broken=True)  # nobody is to wait for ever

    def query(self) -> bool:
        return self.passed.is_set()

    def synchronize(self) -> None:
        self.passed.wait()
        if self._errors:
            raise self._errors[0]

    def time_since(self, event: HostEvent) -> float:
        return (self._at_s - event._at_s) * 1e3


@dataclass(slots=True)
class HostGraph:
    """Recorded work."""

    work: list[Callable[[], None]] = field(default_factory=list)

    def launch(self, stream: HostStream) -> None:
        for one in self.work:
            stream.put(one)

    def close(self) -> None:
        self.work.clear()


class HostDevice:
    """This machine's memory and cores; satisfies `device.Device`."""

    name = "CPU in place of a GPU"

    def __init__(self) -> None:
        self._errors: list[Exception] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def allocate(self, nbytes: int) -> HostMemory:
        return HostMemory(nbytes)

    def stream(self) -> HostStream:
        return HostStream(self._errors)

    def event(self) -> HostEvent:
        return HostEvent()

    def copy_in(self, target: Memory, source: NDArray[Any], stream: HostStream) -> None:
        assert isinstance(target, HostMemory)
        stream.put(lambda: np.copyto(target.view(source.shape, source.dtype), source))

    def copy_out(self, target: NDArray[Any], source: Memory, stream: HostStream) -> None:
        assert isinstance(source, HostMemory)
        stream.put(lambda: np.copyto(target, source.view(target.shape, target.dtype)))

    def record(self, stream: HostStream, enqueue: Callable[[], None]) -> HostGraph:
        stream.recording = []
        try:
            enqueue()
            return HostGraph(stream.recording)
        finally:
            stream.recording = None

    def memory_bytes(self) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def close(self) -> None:
        """Nothing to give back."""


class OnnxExecution:
    """The engine's ONNX, compiled for this CPU; satisfies `device.Execution`.

    Args:
        onnx: uint8 NHWC in, float32 logits out.
        shape, classes: of it.
        threads: of the engine.
    """

    def __init__(
        self, onnx: Path, shape: tuple[int, int, int], classes: int, *, max_batch_size: int, threads: int
    ) -> None:
        self.shape, self.classes, self.max_batch_size = shape, classes, max_batch_size
        self.memory_bytes = 0
        self._engine = OpenVinoRuntime(onnx, threads, "fp32", int8_kernels=False)

    def enqueue(self, n: int, source: Memory, target: Memory, stream: HostStream) -> None:
        assert isinstance(source, HostMemory)
        assert isinstance(target, HostMemory)

        def run() -> None:
            target.view((n, self.classes), np.float32)[:] = self._engine.infer(source.view((n, *self.shape), np.uint8))

        stream.put(run)

    def close(self) -> None:
        self._engine.close()
