"""The small interface between the GPU thread and a GPU, or what stands in for one.

All of it is called by one thread, between entering and leaving `Device.current()`. Names and meanings of streams and
events are pycuda's, so that its objects need no wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, SupportsInt

from numpy.typing import NDArray


class Memory(SupportsInt, Protocol):
    """An allocation on the device; `int()` is its address."""

    def free(self) -> None: ...


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Any) -> Any: ...

    def query(self) -> bool:
        """Whether it is passed."""
        ...

    def synchronize(self) -> Any:
        """Waits until it is passed."""
        ...

    def time_since(self, event: Any) -> float:
        """Milliseconds from an earlier event to this one, both passed."""
        ...


class Stream(Protocol):
    """Work that runs in the order it was queued; different streams overlap."""

    @property
    def handle(self) -> int: ...

    def synchronize(self) -> Any:
        """Waits until all of it is done."""
        ...

    def wait_for_event(self, event: Any) -> Any:
        """What is queued from now on begins when the event is passed."""
        ...


class Graph(Protocol):
    """Recorded work, queued again as a whole."""

    def launch(self, stream: Any) -> None: ...

    def close(self) -> None: ...


class Device(Protocol):
    """A GPU. What it refuses is raised as an exception of its library."""

    name: str

    def current(self) -> AbstractContextManager[None]:
        """Makes the device the calling thread's for the length of the block."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A host array that the device copies from and to by itself."""
        ...

    def allocate(self, nbytes: int) -> Memory:
        """Device memory, aligned to 256 bytes."""
        ...

    def stream(self) -> Stream: ...

    def event(self) -> Event: ...

    def copy_in(self, target: Memory, source: NDArray[Any], stream: Any) -> None:
        """Queues a copy of the whole pinned, C-contiguous `source`, which must stay as it is until that is done."""
        ...

    def copy_out(self, target: NDArray[Any], source: Memory, stream: Any) -> None:
        """Queues a copy that fills the whole pinned, C-contiguous `target`."""
        ...

    def record(self, stream: Any, enqueue: Callable[[], None]) -> Graph:
        """Records what `enqueue` queues in `stream`, instead of doing it."""
        ...

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        ...

    def close(self) -> None:
        """Gives the device back; after everything that was made on it is gone, outside `current`."""
        ...


class Execution(Protocol):
    """An engine on a device: uint8 (n, *shape) at an input address -> float32 (n, classes) at an output address.

    Attributes:
        shape: height, width, 3.
        max_batch_size: largest n.
        memory_bytes: work space it holds on the device.
    """

    shape: tuple[int, int, int]
    classes: int
    max_batch_size: int
    memory_bytes: int

    def enqueue(self, n: int, source: Memory, target: Memory, stream: Any) -> None:
        """Queues one run in `stream`.

        Raises:
            GpuFailed: it was refused.
        """
        ...

    def close(self) -> None:
        """Frees the engine, while the device is current."""
        ...
