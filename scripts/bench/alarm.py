"""A timer of microseconds for an event loop; libuv's own rounds to milliseconds, which a latency would then contain."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_Spec = ctypes.c_long * 4  # struct itimerspec: interval s, ns; value s, ns


class Alarm:
    """One-shot Linux timerfd on the clock of time.monotonic(); Python has them itself from 3.13 on."""

    def __init__(self, callback: Callable[[], None]) -> None:
        """`callback` runs in the running event loop, and must `set` again or `close`: else it runs on and on."""
        self._descriptor = _LIBC.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = _Spec()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, callback)

    def set(self, at_s: float) -> None:
        """Fires at `at_s`, at once if that is past; replaces what was set before, and saves reading the descriptor."""
        self._spec[2], self._spec[3] = divmod(max(1, int(at_s * 1e9)), 1_000_000_000)  # all zero would mean never
        if _LIBC.timerfd_settime(self._descriptor, _ABSOLUTE, self._spec, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never fires again."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
