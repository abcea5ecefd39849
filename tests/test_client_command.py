"""`image-serve classify` against a scripted server; tests/service/clients has the same against the real service."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.local_service import ROOT
from serve_app.cli import main
from serve_app.client import AsyncClient, ClientError
from serve_app.client.command import PATIENT, summary
from serve_app.client.folder import FolderRun, Totals
from serve_app.client.pace import Pace
from tests.client_server import ABOUT, HANG_UP, Request, Server, failed, fine, http, refused, result, serving
from tests.fakes import FakeClock


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine pictures whose class is their number."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(1, 10):
        (folder / f"{number}.jpg").write_bytes(bytes([number]) + b" picture")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def rows(out: Path) -> list[dict[str, Any]]:
    """Of a file of results, in the order of the pictures."""
    if out.suffix == ".csv":
        with out.open(newline="") as file:
            found: list[dict[str, Any]] = list(csv.DictReader(file))
    else:
        found = [json.loads(line) for line in out.read_text().splitlines()]
    return sorted(found, key=lambda row: row["path"])


def command(server: Server, *arguments: object) -> list[str]:
    return ["classify", "--address", server.address, *map(str, arguments)]


def started(server: Server, *arguments: object, prefix: str = "", **options: Any) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    code = "import sys; from serve_app.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, *command(server, *arguments)]
    if prefix:
        line = ["bash", "-c", f'{prefix}; exec "$0" "$@"', *line]
    # A shell lets what it starts in the background ignore Ctrl-C, and so would the command.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(line, cwd=ROOT, **heard, **options)


def test_a_folder_into_csv(server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.csv"
    (folder / "2.jpg").write_bytes(b"Broken")
    (folder / "3.jpg").unlink()
    (folder / "3.jpg").symlink_to("nowhere")
    (folder / "notes.txt").write_text("x")
    assert main(command(server, folder, "--top", 2, "--out", out)) == 3
    table = rows(out)
    assert [row["path"] for row in table] == [f"{folder}/{number}.jpg" for number in range(1, 10)]
    assert table[0] == {
        "path": f"{folder}/1.jpg", "model": "fake", "version": "2",
        "class_id_1": "1", "label_1": "label, 1", "score_1": "0.5",
        "class_id_2": "2", "label_2": "label, 2", "score_2": "0.25", "error": "", "message": "",
    }  # fmt: skip
    assert [row["error"] for row in table[:4]] == ["", "broken_picture", "unreadable", ""]
    said = capsys.readouterr()
    assert said.out == ""
    left_out, line = said.err.splitlines()  # and no progress bar where there is no terminal
    assert left_out == "image-serve: 1 other files in the folders are left out"
    assert line.startswith("image-serve: 9 pictures in ")
    assert line.endswith("/s): 7 answered, 2 failed (1 broken_picture, 1 unreadable)")
    asked = server.predictions[0]
    assert (asked.headers["x-priority"], asked.headers["x-request-timeout-ms"]) == ("batch", "30000")
    assert asked.query == {"top_k": ["2"]}


def test_to_stdout(server: Server, folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    arguments = ["--model", "fake", "--priority", "interactive", "--concurrency", 4]
    assert main(command(server, folder / "4.jpg", *arguments)) == 0
    [row] = map(json.loads, capsysbinary.readouterr().out.splitlines())
    assert (row["path"], row["predictions"][0]["class_id"], row["timing_ms"]["inference"]) == (f"{folder}/4.jpg", 4, 8)
    [asked] = server.predictions
    assert asked.query == {"model": ["fake"]}  # no --top: the service's own default
    assert asked.headers["x-priority"] == "interactive"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "vgg"], "no model 'vgg' at http://127.0.0.1"),
        (["--top", "6"], "fake has 5 classes"),
        (["--address", "http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
        (["--address", "nonsense://"], "it looks like http://localhost:8000"),
        (["--resume"], "--resume needs a file"),
        (["--out", "results.txt"], ".csv or .jsonl"),
        (["--out", "/dev/null/x.csv"], "cannot write"),
        (["/none"], "no file or folder /none"),
    ],
)
def test_what_cannot_run_is_one_line(
    server: Server, folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(server, folder, *arguments)) == 1
    line = capsys.readouterr().err
    assert said in line
    assert (line.count("\n"), line.startswith("image-serve: ")) == (1, True)
    assert server.predictions == []


def test_somebody_else_at_the_address(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def nginx(request: Request) -> bytes:
        return http(404, b"<html>nginx")

    server.handler = nginx
    assert main(command(server, folder)) == 1
    assert "does not say what it serves: status 404 is not an answer of Image Serve" in capsys.readouterr().err


def test_answers_that_mean_nothing_are_told(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(server, folder, "--model", "flowers")) == 0
    assert "weights of flowers are random" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--top", "0"], ["--top", "x"], ["--concurrency", "0"], ["--patience-s", "-1"], ["--priority", "no"]]
)
def test_a_command_line_that_is_not_understood(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["classify", "x.jpg", *arguments])
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["classify", "--help"])
    assert "3    some pictures failed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_resume_asks_only_for_what_has_no_answer(
    server: Server, folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    good = (folder / "2.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(b"Broken")
    assert main(command(server, *(folder / f"{number}.jpg" for number in (1, 2, 3)), "--out", out)) == 3
    assert main(command(server, folder, "--out", out)) == 1  # it is there
    with out.open("ab") as file:
        file.write(b'{"path": "half a li')  # what a kill leaves

    server.asked.clear()
    (folder / "2.jpg").write_bytes(good)
    assert main(command(server, folder, "--out", out, "--resume")) == 0
    assert sorted(one.body[0] for one in server.predictions) == [2, 4, 5, 6, 7, 8, 9]
    assert [row["path"] for row in rows(out)] == [f"{folder}/{number}.jpg" for number in range(1, 10)]
    assert "7 answered, 2 were answered before" in capsys.readouterr().err

    server.asked.clear()
    assert main(command(server, folder, "--out", out, "--resume")) == 0
    assert server.asked == []
    assert "every picture has its answer" in capsys.readouterr().err


def test_a_service_that_goes_away_stops_the_run(
    server: Server, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def away_after_three(request: Request) -> bytes:
        return HANG_UP if len(server.predictions) > 3 else await fine(request)

    server.handler = away_after_three
    assert main(command(server, folder, "--out", out, "--concurrency", 1)) == 1
    done, why = capsys.readouterr().err.splitlines()
    assert "3 pictures" in done
    assert "no answer from" in why
    assert why.endswith("run it again with --resume to go on")
    assert len(rows(out)) == 3
    assert len(server.predictions) == 3 + 5  # the fourth picture five times, and no other
    server.handler = fine
    assert main(command(server, folder, "--out", out, "--resume")) == 0
    assert len(rows(out)) == 9


class Held:
    """Answers the first `count` pictures and holds the others."""

    def __init__(self, count: int) -> None:
        self._free = count
        self.reached = threading.Event()

    async def __call__(self, request: Request) -> bytes:
        if request.path == "/predict":
            if not self._free:
                self.reached.set()
                await asyncio.sleep(60)
            self._free -= 1
        return await fine(request)


def test_killed_in_the_middle_and_gone_on_with(server: Server, folder: Path, out: Path) -> None:
    server.handler = held = Held(5)
    process = started(server, folder, "--out", out, "--concurrency", 1)
    assert held.reached.wait(30)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert len(rows(out)) == 5  # all that were answered
    server.handler = fine
    server.asked.clear()
    assert main(command(server, folder, "--out", out, "--resume")) == 0
    assert len(server.predictions) == 4
    assert [row["predictions"][0]["class_id"] for row in rows(out)] == list(range(1, 10))


def test_interrupted_with_a_progress_bar_on_a_terminal(server: Server, folder: Path, out: Path) -> None:
    server.handler = held = Held(5)
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 100))
    process = started(server, folder, "--out", out, "--concurrency", 1, stderr=inner)
    os.close(inner)
    assert held.reached.wait(30)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    said = b""
    while piece := _read(outer):
        said += piece
    os.close(outer)
    assert b"5/9" in said
    assert b"interrupted; run it again with --resume to go on" in said
    assert b"5 pictures in" in said
    assert b"Traceback" not in said
    assert len(rows(out)) == 5


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux tells that the other end is closed
        return b""


def test_a_reader_that_goes_away(server: Server, folder: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = started(server, folder, stdout=theirs, stderr=subprocess.PIPE, env=buffered)
    os.close(theirs)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert "cannot write -: Broken pipe; run it again" in said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


def test_a_full_disk(server: Server, folder: Path, out: Path) -> None:
    process = started(server, folder, "--out", out, prefix="ulimit -f 1", stderr=subprocess.PIPE)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert f"cannot write {out}: File too large; run it again with --resume to go on" in said
    assert "Traceback" not in said
    assert 0 < out.stat().st_size <= 1024
    assert main(command(server, folder, "--out", out, "--resume")) == 0
    assert len(rows(out)) == 9


class Narrow:
    """A service with room for `room` pictures at once, of 10 ms each, which refuses the others for 2 s."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._inside = 0
        self.most_inside = 0
        self.refused = 0
        self.came_back = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.came_back += "x-retry-attempt" in request.headers
        if self._inside == self._room:
            self.refused += 1
            return httpx.Response(
                429, headers={"retry-after": "2"}, json={"error": {"code": "overloaded", "message": ""}}
            )
        self._inside += 1
        self.most_inside = max(self.most_inside, self._inside)
        await asyncio.sleep(0.01)
        self._inside -= 1
        return httpx.Response(200, json=ABOUT | result(1))


async def overload(narrow: Narrow, folder: Path, pace: Pace, pictures: int) -> Totals:
    """Runs the nine pictures over and over, without sockets; the waits for refusals take a fake clock's time."""
    clock, results, totals = FakeClock(), list[object](), Totals()

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)
        await asyncio.sleep(0.01)

    http = httpx.AsyncClient(transport=httpx.MockTransport(narrow))
    client = AsyncClient("narrow", timeout_s=1e6, policy=PATIENT, http=http, clock=clock, sleep=sleep)
    run = FolderRun(client, pace, lambda path, result: results.append(result), totals, clock=clock)
    await run.run([f"{folder}/{number % 9 + 1}.jpg" for number in range(pictures)])
    assert (totals.answered, len(results), totals.failed.total()) == (pictures, pictures, 0)
    assert totals.refusals == narrow.refused == narrow.came_back
    assert 0 < totals.waiting_s <= clock.now_s - 1000
    return totals


async def test_concurrency_follows_refusals(folder: Path) -> None:
    narrow, told = Narrow(room=4), Narrow(room=4)
    pace = Pace()
    totals = await overload(narrow, folder, pace, 200)
    assert narrow.most_inside == 4
    assert totals.most_at_once <= 16
    assert 1 <= pace.window <= 8

    fixed = Pace(16, least=16, most=16)
    totals = await overload(told, folder, fixed, 200)
    assert (totals.most_at_once, fixed.window) == (16, 16)
    assert narrow.refused * 3 < told.refused, (narrow.refused, told.refused)


async def test_patience_ends(server: Server, folder: Path) -> None:
    async def full(request: Request) -> bytes:
        return refused("60")

    server.handler = full
    results: list[Any] = []
    totals = Totals()
    async with AsyncClient(server.address, timeout_s=5, policy=PATIENT) as client:
        await FolderRun(client, Pace(), lambda path, result: results.append(result), totals).run([f"{folder}/1.jpg"])
    [result] = results
    assert isinstance(result, ClientError)
    assert (result.code, totals.failed, totals.refusals) == ("overloaded", {"overloaded": 1}, 0)


async def test_faults_of_the_service_are_results(server: Server, folder: Path) -> None:
    server.script = [failed(500, "inference_failed"), failed(504, "deadline_exceeded")]
    totals = Totals()
    async with AsyncClient(server.address) as client:
        paths = [f"{folder}/{number}.jpg" for number in (1, 2, 3)]
        await FolderRun(client, Pace(1), lambda path, result: None, totals).run(paths)
    assert (totals.answered, totals.failed) == (1, {"inference_failed": 1, "deadline_exceeded": 1})


async def test_nothing_is_written_behind_half_a_record(server: Server, folder: Path) -> None:
    told: list[str] = []

    def full(path: str, result: object) -> None:
        told.append(path)
        raise OSError(28, "No space left on device")

    totals = Totals()
    async with AsyncClient(server.address) as client:
        paths = [f"{folder}/{number}.jpg" for number in range(1, 10)]
        with pytest.raises(OSError, match="No space left"):
            await FolderRun(client, Pace(8), full, totals).run(paths)
    assert (len(told), totals.answered) == (1, 0)


async def test_an_engine_that_is_away_for_a_while_is_waited_for(server: Server, folder: Path) -> None:
    clock = FakeClock()

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    server.script = [failed(503, "not_ready", retry_after="1")] * 30
    totals = Totals()
    async with AsyncClient(server.address, policy=PATIENT, timeout_s=600, clock=clock, sleep=sleep) as client:
        await FolderRun(client, Pace(), lambda path, result: None, totals).run([f"{folder}/1.jpg"])
    assert (totals.answered, totals.refusals, clock.now_s) == (1, 0, 1030)


def test_the_summary() -> None:
    totals = Totals()
    totals.answered = 90
    totals.failed.update({"broken_picture": 2, "too_large": 8})
    for now_s in (10.0, 11.0, 20.0):  # 10..12, 11..13, 20..22
        totals.refused(now_s, 2.0)
    assert summary(totals, 20.0, 5) == (
        "100 pictures in 20.0 s (5.0/s): 90 answered, 10 failed (8 too_large, 2 broken_picture), "
        "5 were answered before, refused 3 times, 5.0 s of it waiting for overload to pass"
    )
