"""TCP ports of a service that starts on this machine: free ones, and who has the others."""

from __future__ import annotations

import itertools
import random
import socket
from contextlib import suppress

import psutil

from serve_app.errors import SetupError

_OWN_PORTS = range(20_000, 23_999)
"""Above the ports of Ray's workers (10002 to 19999), below those that Linux gives out by itself (32768 to 60999)."""
_FIRST_COME = 23_999
"""Held by the one start on this machine that may take the usual ports."""
_BLOCKS = range(24_000, 30_000, 100)
_turns = itertools.count(random.randrange(len(_OWN_PORTS)))
_claims: list[socket.socket] = []
_usual: list[socket.socket] = []


class PortTaken(SetupError):
    """A port that is wanted is not to be had."""


def require_free(host: str, port: int, option: str = "make serve PORT=") -> None:
    """Passes where `port` can be bound.

    Args:
        option: how the user chooses another; the number is appended.

    Raises:
        PortTaken: says by whom.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise PortTaken(f"port {port} needs root; choose one above 1023: {option}8000") from None
        except OSError:
            owner = f" by {name}" if (name := _owner(port)) else ""
            raise PortTaken(f"port {port} is in use{owner}; stop that, or choose another: {option}{port + 1}") from None


def _owner(port: int) -> str | None:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens_on = connection.laddr.port if connection.laddr else None
            if connection.status == psutil.CONN_LISTEN and listens_on == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None


def free_port(*preferred: int) -> int:
    """The first of `preferred` that is free, else one that will still be free when HAProxy comes to bind it: the kernel
    does not give it out to anybody who asks for any port, as Ray's processes do many times while they start.

    HAProxy binds them half a minute later. Of several services that start meanwhile only the first takes what is
    preferred.

    Raises:
        PortTaken: there is none.
    """
    others = (_OWN_PORTS[next(_turns) % len(_OWN_PORTS)] for _ in _OWN_PORTS)
    for port in itertools.chain(preferred if preferred and _came_first() else (), others):
        if _is_free(port):
            return port
    raise PortTaken("no free TCP port on this machine; stop something that holds ports")


def _came_first() -> bool:
    """Whether this process has the usual ports of this machine, until it ends."""
    if not _usual and (mark := _mark(_FIRST_COME)):
        _usual.append(mark)
    return bool(_usual)


def claim_ports() -> range:
    """Ports for the gRPC servers of replicas, kept from other services on this machine until this process ends.

    Serve means to bind them exclusively, but gives gRPC that option as text, which gRPC ignores
    (https://github.com/ray-project/ray/pull/64623): two services that start with the same range both bind its first
    port, and the kernel deals connections out to both. So each start has a range of its own; the port before the first
    is held as its mark.

    Raises:
        PortTaken: there is none.
    """
    for first in random.sample(_BLOCKS, len(_BLOCKS)):
        mark = _mark(first)
        if mark is None:
            continue
        ports = range(first + 1, first + _BLOCKS.step)
        if all(map(_is_free, ports)):
            _claims.append(mark)
            return ports
        mark.close()
    raise PortTaken("no range of free TCP ports on this machine; stop other services")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended a moment ago do not count
        probe.bind(("0.0.0.0", port))
        return True
    return False


def _mark(port: int) -> socket.socket | None:
    """A socket that has the port, which without SO_REUSEADDR nobody else can bind, though it does not listen."""
    mark = socket.socket()
    try:
        mark.bind(("0.0.0.0", port))
    except OSError:
        mark.close()
        return None
    return mark
