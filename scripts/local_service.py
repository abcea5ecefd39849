"""Starts the real service as a user would, for scripts and tests: a subprocess, an address, a clean end."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))
from serve_app import ports

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


class NotStarted(Exception):
    """The service ended or timed out before it was ready; carries what it printed."""


class NotStopped(Exception):
    """The service did not end when it was told to."""


def free_port() -> int:
    """A TCP port nobody listens on, nor will by accident."""
    return ports.free_port()


_grpc_ports: dict[int, int] = {}
"""Of services started here, by their HTTP port."""


def grpc_address(address: str) -> str:
    """`127.0.0.1:PORT` of the gRPC of a service that is `running` at `address`; its configuration must have gRPC."""
    return f"127.0.0.1:{_grpc_ports[int(address.rpartition(':')[2])]}"


def load(name: str) -> dict[str, Any]:
    """configs/NAME.yaml as a dictionary of the caller's own."""
    return dict(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()))


def with_args(config: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration whose first application's `args` are changed, section by section."""
    changed = copy.deepcopy(dict(config))
    own = changed["applications"][0].setdefault("args", {})
    for key, value in args.items():
        own[key] = {**own.get(key, {}), **value} if isinstance(value, Mapping) else value
    return changed


@contextmanager
def running(
    config: Mapping[str, Any],
    folder: Path,
    *,
    command: list[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 240,
) -> Iterator[str]:
    """The service with `config`, from ready to gone.

    Args:
        config: a Serve configuration; its ports are replaced by free ones, see also `grpc_address`.
        folder: where the service runs (relative engine paths count from here) and its output is kept.
        command: instead of `image-serve start`; the configuration's path is appended.
        env: added to the environment.

    Yields:
        Its address, `http://127.0.0.1:PORT`.
    """
    port = free_port()
    path = folder / f"config-{port}.yaml"
    moved = {"http_options": {"host": "127.0.0.1", "port": port}}
    if options := config.get("grpc_options"):
        moved["grpc_options"] = {**options, "port": free_port()}
        _grpc_ports[port] = moved["grpc_options"]["port"]
    path.write_text(yaml.safe_dump({**config, **moved}))
    output = folder / f"service-{port}.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [*(command or [str(BIN / "image-serve"), "start"]), str(path)],
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell lets what it starts in the background ignore Ctrl-C, and so would the service.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}", output, timeout_s)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    """Ctrl-C; after `timeout_s` the end of every process below it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        raise NotStopped(f"it did not end within {timeout_s:g} s of Ctrl-C, and was killed") from None


def _wait(process: subprocess.Popen[bytes], address: str, output: Path, timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise NotStarted(f"exit code {process.poll()}; its output ends with:\n{output.read_text()[-3000:]}")
