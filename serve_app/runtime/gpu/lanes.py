"""One batch's way over the device: copy in, run, copy out, in three streams, so that batches overlap.

NVIDIA's Triton overlaps batches of one execution context the same way (`eager_batching` of its TensorRT backend).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from serve_app.errors import GpuFailed
from serve_app.runtime.gpu.device import Device, Event, Execution, Graph, Memory
from serve_app.types import GpuTimes, Logits, Pictures


@dataclass(slots=True)
class Slot:
    """Buffers and events of one batch at a time. Allocated once, for the largest batch.

    Attributes:
        staging: pinned uint8 (max, height, width, 3), for pictures that come in other memory.
        fetched: pinned float32 (max, classes).
        source, target: the same on the device.
        pictures, batch_size: of the batch that is on its way; what the second is larger by is padding.
        held: what that batch reads from.
    """

    staging: Pictures
    fetched: Logits
    source: Memory
    target: Memory
    events: dict[str, Event]
    pictures: int = 0
    batch_size: int = 0
    held: list[Pictures] = field(default_factory=list)

    def is_done(self) -> bool:
        """Whether its batch has come back."""
        return bool(self.events["fetched"].query())

    def free(self) -> None:
        """Gives everything back now, in this thread, whoever still holds the slot."""
        self.source.free()
        self.target.free()
        self.events, self.held = {}, []
        self.staging, self.fetched = np.empty((0, 0, 0, 0), np.uint8), np.empty((0, 0), np.float32)


STALE_BITS = 0x7FC0DEAD
"""A NaN that no arithmetic gives: an engine may well answer NaN for one picture, which is no fault of the GPU."""
_EVENTS = ("begun", "copied", "started", "computed", "fetching", "fetched")


class Lanes:
    """The streams and slots of one engine. Lives in the GPU thread.

    Args:
        device: current in this thread.
        execution: on that device.
        slots: batches at once.
        max_batch_size: of the buffers.
    """

    def __init__(self, device: Device, execution: Execution, *, slots: int, max_batch_size: int) -> None:
        self.device = device
        self.execution = execution
        self.in_lane, self.run_lane, self.out_lane = device.stream(), device.stream(), device.stream()
        shape, classes = (max_batch_size, *execution.shape), execution.classes
        self.callers_buffers: list[Pictures] = [device.pinned(shape, np.uint8) for _ in range(slots)]
        self._stale: Logits = device.pinned((max_batch_size, classes), np.float32)
        self._stale.view(np.uint32).fill(STALE_BITS)
        self.buffer_bytes = 0
        self.slots = [self._slot(shape, classes) for _ in range(slots)]
        self.graphs: dict[tuple[int, int], Graph] = {}
        self.sizes = list(range(max_batch_size + 1))
        """sizes[n] is the batch size that n pictures run in."""

    def _slot(self, shape: tuple[int, ...], classes: int) -> Slot:
        device, nbytes = self.device, int(np.prod(shape))
        self.buffer_bytes += nbytes + shape[0] * classes * 4
        return Slot(
            device.pinned(shape, np.uint8),
            device.pinned((shape[0], classes), np.float32),
            device.allocate(nbytes),
            device.allocate(shape[0] * classes * 4),
            {name: device.event() for name in _EVENTS},
        )

    def submit(self, slot: Slot, pictures: Pictures, *, batch_size: int | None = None, poisoned: bool = False) -> None:
        """Queues the whole way of a batch, and returns at once.

        Args:
            pictures: pinned; they stay as they are until `finish`.
            batch_size: instead of the one planned for so many pictures.
            poisoned: fill the whole output with NaN first, not only its first number.
        """
        n, events = len(pictures), slot.events
        slot.pictures, slot.batch_size = n, batch_size or self.sizes[n]
        slot.held = [pictures]
        # A run may report success and write nothing; what is then fetched would be another picture's answer.
        self.device.copy_in(slot.target, self._stale if poisoned else self._stale[:1, :1], self.in_lane)
        events["begun"].record(self.in_lane)
        self.device.copy_in(slot.source, pictures, self.in_lane)
        events["copied"].record(self.in_lane)
        self.run_lane.wait_for_event(events["copied"])
        events["started"].record(self.run_lane)
        self._run(slot)
        events["computed"].record(self.run_lane)
        self.out_lane.wait_for_event(events["computed"])
        events["fetching"].record(self.out_lane)
        self.device.copy_out(slot.fetched[:n], slot.target, self.out_lane)
        events["fetched"].record(self.out_lane)

    def _run(self, slot: Slot) -> None:
        graph = self.graphs.get((slot.batch_size, int(slot.source)))
        if graph is not None:
            graph.launch(self.run_lane)
        else:
            self.execution.enqueue(slot.batch_size, slot.source, slot.target, self.run_lane)

    def finish(self, slot: Slot) -> tuple[Logits, GpuTimes]:
        """Waits for the slot's batch; returns a copy of its logits, without the padding's.

        Raises:
            GpuFailed: the engine wrote nothing.
        """
        events = slot.events
        events["fetched"].synchronize()
        slot.held = []
        times = GpuTimes(
            slot.pictures,
            slot.batch_size,
            events["copied"].time_since(events["begun"]),
            events["computed"].time_since(events["started"]),
            events["fetched"].time_since(events["fetching"]),
        )
        if slot.fetched[:1, :1].view(np.uint32) == STALE_BITS:
            raise GpuFailed("the engine did not write its output")
        return np.array(slot.fetched[: slot.pictures]), times

    def record_graphs(self, batch_sizes: Sequence[int]) -> None:
        """Records a graph for each batch size and slot.

        Raises:
            GpuFailed: one cannot be recorded.
        """
        for batch_size in batch_sizes:
            for slot in self.slots:
                self.graphs[batch_size, int(slot.source)] = self._graph(slot, batch_size)

    def _graph(self, slot: Slot, batch_size: int) -> Graph:
        def run() -> None:
            self.execution.enqueue(batch_size, slot.source, slot.target, self.run_lane)

        run()  # the first run of a shape prepares memory, which cannot be recorded
        self.run_lane.synchronize()
        return self.device.record(self.run_lane, run)

    def settle(self) -> None:
        """Waits for everything, whatever became of it: afterwards no buffer is used by the device any more."""
        for lane in (self.in_lane, self.run_lane, self.out_lane):
            lane.synchronize()

    def close(self) -> None:
        """Frees everything but the device, the graphs before the engine they run, the buffers last.

        Raises:
            GpuFailed: the device does not even end its work; what it still uses is not freed.
        """
        try:
            self.settle()
        except Exception as error:
            raise GpuFailed(f"the GPU did not come to rest: {error}") from error
        for graph in self.graphs.values():
            graph.close()
        self.graphs.clear()
        self.execution.close()
        for slot in self.slots:
            slot.free()
        self.slots.clear()
        self.callers_buffers.clear()
        # Others may hold this object for longer than its thread lives.
        del self.in_lane, self.run_lane, self.out_lane, self._stale
