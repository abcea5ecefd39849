"""Starting and stopping: what is printed, and what is left behind."""

from __future__ import annotations

import queue
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from scripts.local_service import BIN, grpc_address, load, running, with_args
from tests.service.conftest import MODEL

pytestmark = pytest.mark.service


def processes_with(mark: str) -> list[str]:
    """Names of the processes of this machine that carry `mark` in their environment."""
    found = []
    for process in psutil.process_iter(["name", "status"]):
        try:
            if process.environ().get("IMAGE_SERVE_TEST") == mark and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.info["name"])
        except psutil.Error:
            continue
    return found


def test_ctrl_c_leaves_nothing_behind(workplace: Path, photographs: dict[str, bytes]) -> None:
    mark = uuid.uuid4().hex
    with running(load("local"), workplace, env={"IMAGE_SERVE_TEST": mark}) as address:
        assert httpx.post(f"{address}/predict", content=photographs["cat.jpg"], timeout=30).status_code == 200
        names = processes_with(mark)
        assert {"raylet", "haproxy"} <= set(names), names
    assert processes_with(mark) == []


def best_by_grpc(address: str, body: bytes) -> str:
    """Through the stock proxy, which hands requests to replicas pickled; in a stream too."""
    given = triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([body], object))
    outputs = [triton.InferRequestedOutput("scores", class_count=1)]
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException, match="no model 'nobody'") as refused:
            client.infer("nobody", [given])
        assert refused.value.status() == "StatusCode.NOT_FOUND"
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(MODEL, [given], outputs=outputs)
        streamed = answers.get(timeout=30).as_numpy("scores")
        client.stop_stream()
        answer = client.infer(MODEL, [given], outputs=outputs).as_numpy("scores")
    assert streamed.tolist() == answer.tolist()
    return str(answer[0][0].decode())


@pytest.mark.parametrize("name", ["local", "dev", "cpu"])
def test_serve_run_takes_every_configuration(name: str, workplace: Path, photographs: dict[str, bytes]) -> None:
    """By hand and with the stock proxy, as Ray's own documentation starts a service."""
    command = [str(BIN / "serve"), "run"]
    with running(load(name), workplace, command=command, env={"RAY_ADDRESS": "local"}) as address:
        answer = httpx.post(f"{address}/predict", content=photographs["espresso.jpg"], timeout=30).json()
        assert (answer["model"], answer["predictions"][0]["label"]) == (MODEL, "espresso")
        assert best_by_grpc(grpc_address(address), photographs["espresso.jpg"]).endswith(":espresso")


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "image-serve", "start", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def config_in(folder: Path, args: dict[str, object]) -> str:
    import yaml

    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(with_args(load("local"), args)))
    return str(path)


def test_a_busy_port_is_one_clear_line(workplace: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = start(workplace, config_in(tmp_path, {}), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"port {port} is in use by" in done.stderr
    assert f"make serve PORT={port + 1}" in done.stderr


def test_a_missing_engine_is_one_clear_line(tmp_path: Path) -> None:
    done = start(tmp_path, config_in(tmp_path, {}))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "engine-build build --model auto --backend openvino --precision fp32" in done.stderr


def test_an_engine_that_was_changed_is_refused_by_name(workplace: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engines" / MODEL / "openvino-fp32"
    copy.mkdir(parents=True)
    for file in (workplace / "engines" / MODEL / "openvino-fp32").iterdir():
        (copy / file.name).write_bytes(file.read_bytes() + (b"\0" if file.suffix == ".bin" else b""))
    done = start(tmp_path, config_in(tmp_path, {}))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{MODEL}/openvino-fp32" in done.stderr
    assert "sha256" in done.stderr


def test_a_wrong_key_names_the_right_one(tmp_path: Path) -> None:
    done = start(tmp_path, config_in(tmp_path, {"placment": "split"}))
    assert done.returncode == 1
    assert "did you mean 'placement'" in done.stderr
