from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from serve_app import launch
from serve_app.errors import ConfigError


def test_a_free_port_passes_and_a_taken_one_names_its_owner() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(launch.StartFailed, match=rf"port {port} is in use by .*pid {os.getpid()}"):
            launch._require_free("127.0.0.1", port)
    launch._require_free("127.0.0.1", port)


def test_a_taken_side_port_is_replaced() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = launch._free_port(port)
    assert other != port
    assert launch._free_port(port) == port


def test_what_the_user_set_stays() -> None:
    env = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    launch.set_environment(env, logs=False)
    assert env["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert len({env[name] for name in launch._SIDE_PORTS}) == len(launch._SIDE_PORTS)


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_orphans_of_children_are_ended_too() -> None:
    """The middle process dies at once; its child must be found all the same, though it ignores SIGTERM."""
    script = """
import subprocess, sys, time
from serve_app import launch
launch._adopt_orphans()
ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
subprocess.run([sys.executable, "-c", f'''
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {ignoring!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
'''], check=True)
launch._end_children()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    pid = int(done.stdout)
    until_s = time.monotonic() + 5
    while psutil.pid_exists(pid) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("config", [{}, {"applications": []}])
def test_a_configuration_without_applications_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"configs/local\.yaml"):
        launch.check_application(config)


def test_the_telling_line_of_a_traceback_is_shown() -> None:
    trace = "Traceback ...\n  File x, line 3, in Error\nserve_app.errors.EngineError: no engine at X; build one\nmore"
    assert launch._reason(trace) == "serve_app.errors.EngineError: no engine at X; build one"
    assert launch._reason("nothing telling") == "nothing telling"


def test_untrained_weights_are_announced() -> None:
    model = {"name": "resnet18", "backend": "onnx", "precision": "fp32", "num_classes": 5, "preprocess": "exact"}
    model |= {"placement": "split", "trained": False}
    assert "WARNING" in launch._described(model)
    assert "WARNING" not in launch._described(model | {"trained": True})
