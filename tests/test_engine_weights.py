from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_build.download import fetch
from engine_build.errors import BuildError, CheckpointMismatch, WeightsUnavailable
from engine_build.weights import load_into, read_labels, read_state, untrained_weights
from engine_build.zoo import Download, custom_spec, new_module

CONTENT = np.random.default_rng(0).bytes(700_000)
NAME = f"tiny-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT at /NAME, with ranges; other paths misbehave in their own way."""

    ranges: list[str | None]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        type(self).ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and "norange" not in self.path else 0
        if "missing" in self.path:
            return self.send_error(404)
        if start >= len(CONTENT):
            return self.send_error(416)
        body = bytes(reversed(CONTENT)) if "wrong" in self.path else CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "cut" in self.path else body)
        return None

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.ranges = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_good_file_is_fetched_once(server: str, tmp_path: Path) -> None:
    source = Download(f"{server}/{NAME}")
    assert fetch(source, tmp_path / "new").read_bytes() == CONTENT
    assert fetch(source, tmp_path / "new").read_bytes() == CONTENT
    assert Handler.ranges == [None]
    assert files(tmp_path / "new") == {NAME}


def test_a_cached_file_that_was_changed_is_fetched_again(server: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"damaged")
    assert fetch(Download(f"{server}/{NAME}"), tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_thrown_away(server: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="does not match its hash"):
        fetch(Download(f"{server}/wrong/{NAME}"), tmp_path)
    assert files(tmp_path) == set()


def test_a_broken_connection_is_resumed_where_it_broke(server: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="connection broke after 350000 of 700000 bytes"):
        fetch(Download(f"{server}/cut/{NAME}"), tmp_path)
    assert files(tmp_path) == {f"{NAME}.part"}
    assert fetch(Download(f"{server}/{NAME}"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [None, "bytes=350000-"]
    assert files(tmp_path) == {NAME}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        pytest.param("norange/", CONTENT[:1000], id="server without ranges"),
        pytest.param("", CONTENT, id="all there"),
        pytest.param("", CONTENT + b"more", id="too long"),
    ],
)
def test_leftovers_of_every_kind_end_in_the_right_file(server: str, tmp_path: Path, path: str, part: bytes) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(part)
    assert fetch(Download(f"{server}/{path}{NAME}"), tmp_path).read_bytes() == CONTENT


def test_http_errors_say_what_to_do(server: str, tmp_path: Path) -> None:
    url = f"{server}/missing/{NAME}"
    with pytest.raises(WeightsUnavailable) as caught:
        fetch(Download(url), tmp_path)
    message = str(caught.value)
    assert "HTTP 404" in message
    assert f"copy {NAME} from {url} into {tmp_path}, or pass --weights FILE" in message
    assert "\n" not in message


def test_no_connection_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(WeightsUnavailable, match=r"cannot be fetched \(Connection refused\); copy"):
            fetch(Download(f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}"), tmp_path)


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(WeightsUnavailable, match="timed out"):
            fetch(Download(f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}"), tmp_path, timeout_s=0.2)


SEVEN = tuple("abcdefg")


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_checkpoints_are_read_as_training_scripts_save_them(tmp_path: Path, key: str | None) -> None:
    state = {f"module.{name}": value for name, value in new_module("shufflenet_v2_x1_0", 7).state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "weights.pt")
    target = new_module("shufflenet_v2_x1_0", 7)
    load_into(target, read_state(tmp_path / "weights.pt"), "weights.pt")
    assert torch.equal(target.state_dict()["fc.weight"], state["module.fc.weight"])


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2", "efficientnet_lite0"])
def test_another_number_of_classes_is_named(architecture: str) -> None:
    state = new_module(architecture, 7).state_dict()
    with pytest.raises(CheckpointMismatch, match=r"w\.pt has 7 classes, the labels are 5"):
        load_into(new_module(architecture, 5), state, "w.pt")


def test_another_architecture_is_named() -> None:
    with pytest.raises(CheckpointMismatch, match=r"w\.pt does not fit the architecture: it lacks .*check --arch"):
        load_into(new_module("resnet18", 7), new_module("mobilenet_v2", 7).state_dict(), "w.pt")


def test_missing_counters_of_old_files_are_no_mismatch() -> None:
    state = {name: value for name, value in new_module("resnet18", 7).state_dict().items() if "num_batches" not in name}
    load_into(new_module("resnet18", 7), state, "w.pt")


@pytest.mark.parametrize("content", [b"", b"not torch at all", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="not a torch weights file; save one with"):
        read_state(tmp_path / "weights.pt")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save(new_module("shufflenet_v2_x1_0", 7), tmp_path / "module.pt")
    with pytest.raises(CheckpointMismatch, match="not a torch weights file"):
        read_state(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb\n", "line 2 is empty"), ("a\nb\na\n", "line 3 repeats 'a' of line 1"), ("", "is empty")],
)
def test_bad_labels_name_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(BuildError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_untrained_weights_are_the_same_every_time() -> None:
    spec = custom_spec("any", "shufflenet_v2_x1_0", SEVEN)
    torch.manual_seed(5)
    first = untrained_weights(spec).record
    torch.manual_seed(6)
    assert untrained_weights(spec).record == first
    assert first.source == "untrained"
    assert untrained_weights(custom_spec("any", "shufflenet_v2_x1_0", SEVEN[:6])).record.sha256 != first.sha256
