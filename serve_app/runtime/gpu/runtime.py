"""An engine on a GPU behind the protocol of all engines: any thread may ask, one thread does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue

import numpy as np

from serve_app.errors import GpuFailed
from serve_app.latency import LatencyTable, padded_sizes, table_sizes
from serve_app.runtime.base import GpuOptions, RuntimeInfo
from serve_app.runtime.gpu.device import Device, Execution
from serve_app.runtime.gpu.lanes import Lanes, Slot
from serve_app.runtime.gpu.thread import Answer, Batch, GpuThread
from serve_app.types import GpuMemory, GpuTimes, Logits, Pictures

MEASURED_RUNS = 5
EVERY_SIZE_MS = 50.0
"""Engines that take longer for their largest batch are measured at powers of two only: it would take minutes."""


class GpuRuntime:
    """One engine on one device; satisfies `OverlappingRuntime`.

    It is warm when the constructor returns: every batch size has run, graphs are recorded, and it is known which
    sizes are faster as part of a larger, padded batch.

    Args:
        make_device, make_execution: see `thread.GpuThread`.
        options: of the batches; the execution must take `options.max_batch_size`.
        inference_precision: what the engine computes in.

    Raises:
        GpuFailed: it does not run.
    """

    def __init__(
        self,
        make_device: Callable[[], Device],
        make_execution: Callable[[Device], Execution],
        options: GpuOptions,
        inference_precision: str,
    ) -> None:
        self._options = options
        self._thread = GpuThread(
            make_device, make_execution, slots=options.slots, max_batch_size=options.max_batch_size
        )
        lanes = self._thread.lanes
        self.info = RuntimeInfo("tensorrt", inference_precision, 1, lanes.device.name)
        self.callers = options.slots
        self.buffers: Sequence[Pictures] = tuple(lanes.callers_buffers)
        self._staging = threading.Lock()
        self._closed = False
        self._slots: SimpleQueue[Slot] = SimpleQueue()
        for slot in lanes.slots:
            self._slots.put(slot)
        try:
            self.latency = self._warm_up()
        except BaseException:
            with suppress(GpuFailed):  # the first failure tells more
                self.close()
            raise

    def infer(self, pictures: Pictures) -> Logits:
        """See `Runtime`; may be called by several threads.

        Raises:
            GpuFailed: the GPU or TensorRT refused it, or the engine was closed.
        """
        logits, times = self._run(pictures)
        if self._options.observe:
            self._options.observe(times)
        return logits

    def probe(self, pictures: Pictures) -> Logits:
        """See `OverlappingRuntime`.

        Raises:
            GpuFailed: as `infer`, or the output is stale.
        """
        logits, _ = self._run(pictures, poisoned=True)
        if not np.isfinite(logits).all():
            raise GpuFailed("the engine did not write all of its output, or has no numbers for a black picture")
        return logits

    def memory(self) -> GpuMemory:
        """See `OverlappingRuntime`."""

        def read(lanes: Lanes) -> GpuMemory:
            return GpuMemory(lanes.buffer_bytes, lanes.execution.memory_bytes, *lanes.device.memory_bytes())

        return self._thread.call(read)

    def close(self) -> None:
        """See `Runtime`. What was asked before is answered first; may be called again.

        Raises:
            GpuFailed: the GPU did not come to rest.
        """
        with self._staging:  # the memory of a copy that is on its way goes with the device
            self._closed = True
            self.buffers = ()
        self._thread.close()

    def _run(self, pictures: Pictures, *, poisoned: bool = False, batch_size: int | None = None) -> Answer:
        if len(pictures) > self._options.max_batch_size:
            raise GpuFailed(f"a batch of {len(pictures)} pictures; {self._options.max_batch_size} is the largest")
        slot = self._slots.get()
        try:
            answer: Future[Answer] = Future()
            self._thread.submit(Batch(slot, self._pinned(slot, pictures), poisoned, batch_size, answer))
            return answer.result()
        finally:
            self._slots.put(slot)

    def _pinned(self, slot: Slot, pictures: Pictures) -> Pictures:
        """The pictures in memory that the device reads by itself: where they are, if a caller put them in `buffers`."""
        if any(np.may_share_memory(pictures, buffer) for buffer in self.buffers) and pictures.flags.c_contiguous:
            return pictures
        with self._staging:
            if self._closed:
                raise GpuFailed("the engine was closed")
            staged = slot.staging[: len(pictures)]
            np.copyto(staged, pictures)
        return staged

    def _warm_up(self) -> LatencyTable:
        largest = self._options.max_batch_size
        pictures = np.zeros((largest, *self._thread.lanes.execution.shape), np.uint8)
        # The largest goes first, so that memory is reserved once, and through every slot's buffers.
        for size in [*[largest] * self._options.slots, *range(largest - 1, 0, -1)]:
            self._run(pictures[:size])
        slow = self._measured(pictures) > EVERY_SIZE_MS
        sizes = table_sizes(largest) if slow else list(range(1, largest + 1))
        if self._options.cuda_graphs:
            self._thread.call(lambda lanes: lanes.record_graphs(sizes))
        table = LatencyTable.of({size: self._measured(pictures[:size]) for size in sizes})
        self._thread.lanes.sizes[:] = padded_sizes(table, largest)
        return table

    def _measured(self, pictures: Pictures) -> float:
        """Median milliseconds of the run alone; copies overlap with other batches."""
        times: list[GpuTimes] = [self._run(pictures, batch_size=len(pictures))[1] for _ in range(MEASURED_RUNS)]
        return max(1e-6, sorted(one.run_ms for one in times)[MEASURED_RUNS // 2])
