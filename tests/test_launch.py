from __future__ import annotations

import copy
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app import launch
from serve_app.errors import ConfigError, EngineError, GpuMissing, SetupError
from serve_app.lint import OUR_APPLICATION
from tests.test_plans import HERE, KEY, add_plan, with_change
from tests.tiny_engine import make_gpu_engine


def test_what_the_user_set_stays() -> None:
    env = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    launch.set_environment(env, logs=False)
    assert env["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert len({env[name] for name in launch._SIDE_PORTS}) == len(launch._SIDE_PORTS)


def test_replicas_of_two_services_serve_grpc_on_ports_of_their_own() -> None:
    ranges = []
    for _ in range(2):
        env: dict[str, str] = {}
        launch.set_environment(env, logs=False)
        ranges.append(range(*(int(env[f"RAY_SERVE_DIRECT_INGRESS_{bound}_GRPC_PORT"]) for bound in ("MIN", "MAX"))))
    assert not set(ranges[0]) & set(ranges[1])
    assert all(len(one) > 64 for one in ranges)
    given = {"RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": "5000", "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": "5100"}
    env = dict(given)
    launch.set_environment(env, logs=False)
    assert {name: env[name] for name in given} == given


GRPC = {"port": 9000, "grpc_servicer_functions": ["serve_app.v2_grpc:add_to_server"], "enable_reflection": False}


def test_grpc_moves_from_a_taken_port_of_the_configuration_but_not_from_one_asked_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        moved = launch.grpc_options({"grpc_options": {**GRPC, "port": port}}, "127.0.0.1", None)
        assert moved is not None
        assert moved["port"] != port
        assert {**moved, "port": 9000} == GRPC
        with pytest.raises(SetupError, match=rf"port {port} is in use by .*: --grpc-port {port + 1}$"):
            launch.grpc_options({"grpc_options": GRPC}, "127.0.0.1", port)
    assert launch.grpc_options({"grpc_options": GRPC}, "127.0.0.1", port) == GRPC | {"port": port}


@pytest.mark.parametrize("config", [{}, {"grpc_options": None}, {"grpc_options": {"port": 9000}}])
def test_without_servicers_there_is_no_grpc(config: dict[str, object]) -> None:
    assert launch.grpc_options(config, "127.0.0.1", None) is None
    with pytest.raises(launch.StartFailed, match="no gRPC"):
        launch.grpc_options(config, "127.0.0.1", 9000)


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
    model |= {"placement": "split", "trained": False, "device": "cpu"}
    assert "WARNING" in launch._described(model)
    assert "WARNING" not in launch._described(model | {"trained": True})


def test_a_cpu_in_place_of_a_gpu_is_announced() -> None:
    model = {"name": "resnet18", "backend": "tensorrt", "precision": "fp16", "num_classes": 5, "preprocess": "exact"}
    model |= {"placement": "split", "trained": True, "device": "stand_in"}
    assert "the CPU stands in for a GPU" in launch._described(model)
    assert "WARNING" not in launch._described(model | {"device": "cuda"})


def gpu_config(**args: Any) -> dict[str, Any]:
    return {"applications": [{"name": "ours", "import_path": OUR_APPLICATION, "args": args}]}


ON_GPU = {"backend": "tensorrt", "precision": "fp16", "model": "fake"}


def test_every_application_of_ours_gets_a_stand_in_and_nothing_else_changes() -> None:
    ours = {"engine": ON_GPU, "runtime": {"threads": 2, "device": "cuda"}}
    config = gpu_config(**ours)
    config["applications"] += [
        {"name": "bare", "import_path": OUR_APPLICATION},
        {"name": "empty", "import_path": OUR_APPLICATION, "args": {"runtime": None}},
        {"name": "other", "import_path": "other:app", "args": {"runtime": {"device": "cuda"}}},
    ]
    before = copy.deepcopy(config)
    changed = launch.with_stand_in(config)
    assert config == before
    first, bare, empty, other = changed["applications"]
    assert first["args"] == {"engine": ON_GPU, "runtime": {"threads": 2, "device": "stand_in"}}
    assert bare["args"] == empty["args"] == {"runtime": {"device": "stand_in"}}
    assert other == before["applications"][3]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"applications": None},
        {"applications": {"a": 1}},
        {"applications": ["text", None, 3]},
        gpu_config() | {"applications": [{"import_path": OUR_APPLICATION, "args": ["a"]}]},
        gpu_config(runtime=["a"]),
    ],
)
def test_what_is_malformed_is_left_for_the_lint_to_name(config: dict[str, Any]) -> None:
    assert launch.with_stand_in(config) == config


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    make_gpu_engine(tmp_path, precision="fp16")
    return tmp_path


def settings(engines_dir: Path, **more: Any) -> dict[str, Any]:
    return gpu_config(engine={**ON_GPU, "engines_dir": str(engines_dir)}, **more)


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver")
def test_a_gpu_engine_is_refused_without_a_gpu_and_rehearsed_with_a_stand_in(engine: Path) -> None:
    with pytest.raises(GpuMissing, match="no NVIDIA driver"):
        launch.check_application(settings(engine))
    launch.check_application(launch.with_stand_in(settings(engine)))
    with pytest.raises(EngineError, match="engine-build"):
        launch.check_application(launch.with_stand_in(settings(engine / "none")))


def test_before_ray_starts_there_is_a_plan_for_this_gpu(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.runtime.tensorrt.machine.this_machine", lambda: HERE)
    folder = engine / "fake" / "tensorrt-fp16"
    with pytest.raises(EngineError, match="not compiled for any GPU yet"):
        launch.check_application(settings(engine))
    onnx_sha256 = make_gpu_engine(engine, "same", precision="fp16")[1].files["model.onnx"]
    key = KEY.model_copy(update={"onnx_sha256": onnx_sha256})
    add_plan(folder, with_change(key, "machine.gpu", "NVIDIA H100"))
    with pytest.raises(EngineError, match=r"gpu \(NVIDIA H100 in the plan, NVIDIA L4 here\)"):
        launch.check_application(settings(engine))
    add_plan(folder, key)
    launch.check_application(settings(engine))
