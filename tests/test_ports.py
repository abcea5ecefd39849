from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from serve_app import ports


def test_a_free_port_passes_and_a_taken_one_names_its_owner() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(ports.PortTaken, match=rf"port {port} is in use by .*pid {os.getpid()}.* PORT={port + 1}"):
            ports.require_free("127.0.0.1", port)
    ports.require_free("127.0.0.1", port)


def test_a_taken_port_is_replaced() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = ports.free_port(port)
    assert other != port
    assert ports.free_port(port) == port


def test_other_ports_are_not_among_those_that_the_kernel_gives_to_anybody() -> None:
    """Ray's processes take dozens of them while they start: one was taken between its choice and HAProxy's bind."""
    found = [ports.free_port() for _ in range(20)]
    assert len(set(found)) == 20
    assert all(20_000 <= port < 32_000 for port in found)


def test_claimed_ports_are_no_ones_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two services that run at once, one of which is served by the other's replicas otherwise."""
    monkeypatch.setattr(ports, "_BLOCKS", range(24_000, 24_200, 100))
    monkeypatch.setattr(ports, "_claims", [])
    mine = ports.claim_ports()
    with socket.socket() as replica:
        replica.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gRPC binds
        replica.bind(("0.0.0.0", mine[0]))
        replica.listen()
        script = "from serve_app import ports; ports._BLOCKS = range(24_000, 24_200, 100); print(*ports.claim_ports())"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    theirs = [int(port) for port in done.stdout.split()]
    assert {mine.start, theirs[0]} == {24_001, 24_101}
    assert len(theirs) == len(mine) == 99
    for mark in ports._claims:
        mark.close()


def test_a_claim_ends_with_its_process_but_not_before_its_ports_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that is killed may leave replicas for a while."""
    monkeypatch.setattr(ports, "_BLOCKS", range(24_200, 24_300, 100))
    monkeypatch.setattr(ports, "_claims", [])
    with socket.socket() as replica:
        replica.bind(("0.0.0.0", 24_250))
        replica.listen()
        with pytest.raises(ports.PortTaken, match="stop other services"):
            ports.claim_ports()
    assert ports.claim_ports() == range(24_201, 24_300)
    with pytest.raises(ports.PortTaken):
        ports.claim_ports()
    ports._claims.pop().close()
    assert ports.claim_ports() == range(24_201, 24_300)
    ports._claims.pop().close()
