"""A newer version of an engine takes the place of an older one while requests go on; or it does not, and that stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serve_app.errors import EngineError, GpuFailed
from serve_app.metrics import Metrics

logger = logging.getLogger("serve_app")


class Versions:
    """Which version of a model's engine a replica serves, and which it was asked for.

    Args:
        model: its name, for the log.
        serving: the version that serves at first.
        take_in: opens, checks and warms a version and puts it in the place of the present one.
        metrics: told of what serves, and of what was refused.
    """

    def __init__(self, model: str, serving: int, take_in: Callable[[int], Awaitable[None]], metrics: Metrics) -> None:
        self.serving = self.wanted = serving
        self.problem = ""
        self._model = model
        self._take_in = take_in
        self._metrics = metrics
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        metrics.version(serving)

    async def want(self, version: int) -> None:
        """Returns when `version` serves, was refused, or is not wanted any more. Never raises for a bad engine: the one
        that serves goes on, which is all the roll-back there is to do."""
        self.wanted = version
        async with self._turn:  # one engine at a time beside the present one, for the memory's sake
            if self.wanted != version:
                return
            if self.serving == version:
                self.problem = ""
                return
            try:
                await self._take_in(version)
            except (EngineError, GpuFailed) as error:
                self._refused(version, str(error))
                return
            logger.info("model %s: version %d has taken the place of version %d", self._model, version, self.serving)
            self.serving, self.problem = version, ""
            self._metrics.version(version)

    def want_soon(self, version: int) -> None:
        """`want` without waiting: Serve sends a replica no requests while it waits for its `reconfigure`."""
        task = asyncio.get_running_loop().create_task(self.want(version))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refused(self, version: int, why: str) -> None:
        what = f"version {version} was not taken in, version {self.serving} goes on"
        logger.error("model %s: %s: %s", self._model, what, why)
        self.problem = f"{what}; the log says why"  # clients see this, and are not told of folders
        self._metrics.version_refused()
