"""`image-serve classify` and the Python client against the running service."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.local_service import BIN
from serve_app.cli import main
from serve_app.client import Answer, AsyncClient, Client, ClientError, Rejected
from tests.service.conftest import MODEL, SAMPLES

pytestmark = pytest.mark.service
PHOTOGRAPHS = sorted(SAMPLES.glob("*.jpg"))


@pytest.fixture
def client(clients_address: str) -> Iterator[Client]:
    with Client(clients_address) as started:
        yield started


def best(result: Answer | ClientError) -> int | str:
    return result.code if isinstance(result, ClientError) else result.predictions[0].class_id


def test_a_folder_with_a_broken_file(
    clients_address: str, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "photographs", tmp_path / "results.csv"
    shutil.copytree(SAMPLES, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / "broken.jpg").write_bytes((folder / "cat.jpg").read_bytes()[:5000])
    assert main(["classify", str(folder), "--out", str(out), "--top", "2", "--address", clients_address]) == 3
    with out.open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert set(rows) == {path.name for path in PHOTOGRAPHS} | {"broken.jpg"}
    assert rows["broken.jpg"]["error"] == "broken_picture"
    for path in PHOTOGRAPHS:
        answer = client.classify(path, top_k=2)
        row = rows[path.name]
        assert (row["model"], row["version"], row["error"]) == (answer.model, str(answer.version), "")
        for place, one in enumerate(answer.predictions, 1):
            assert (row[f"class_id_{place}"], row[f"label_{place}"]) == (str(one.class_id), one.label)
            assert float(row[f"score_{place}"]) == pytest.approx(one.score, abs=1e-3)
    assert "4 answered, 1 failed (1 broken_picture)" in capsys.readouterr().err


def test_killed_in_the_middle_and_gone_on_with(clients_address: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "photographs", tmp_path / "results.jsonl"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.jpg").symlink_to(PHOTOGRAPHS[number % 4])
    command = ["classify", str(folder), "--out", str(out), "--address", clients_address]
    process = subprocess.Popen([BIN / "image-serve", *command, "--concurrency", "1"])
    deadline_s = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline_s
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    before = out.read_bytes()
    with out.open("ab") as file:
        file.write(b'{"path": "half')  # as if it had been killed while it wrote
    assert main([*command, "--resume"]) == 0
    assert out.read_bytes().startswith(before)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["path"] for row in rows) == [f"{folder}/{number:02}.jpg" for number in range(40)]
    classes = {(int(Path(row["path"]).stem) % 4, row["predictions"][0]["class_id"]) for row in rows}
    assert len(classes) == 4  # equal pictures are answered equally, before and after


def test_one_request_with_several_and_requests_side_by_side_answer_alike(client: Client) -> None:
    pictures = [*PHOTOGRAPHS, b"no picture"]
    together = [best(one) for one in client.classify_many(pictures)]
    alone = [best(client.classify(path)) for path in PHOTOGRAPHS]
    assert together == [*alone, "unsupported_format"]


async def test_the_async_client_answers_as_the_other(clients_address: str, client: Client) -> None:
    async with AsyncClient(clients_address) as other:
        side_by_side = [best(one) async for one in other.classify_many(PHOTOGRAPHS, at_once=4)]
        assert await other.ready()
    assert side_by_side == [best(client.classify(path)) for path in PHOTOGRAPHS]


def test_what_the_service_says_of_itself(client: Client) -> None:
    assert client.ready()
    first, *others = client.models()
    assert (first.name, first.trained, first.num_classes, first.default) == (MODEL, True, 1000, True)
    for other in others:
        assert not other.default
        assert client.classify(PHOTOGRAPHS[0], model=other.name).model == other.name
    view = client.live()
    assert view.replicas_reporting >= 1
    assert MODEL in view.models
    assert view.stages


def test_errors_carry_what_the_service_said(client: Client) -> None:
    with pytest.raises(Rejected, match=MODEL) as caught:
        client.classify(PHOTOGRAPHS[0], model="vgg")
    assert (caught.value.status, caught.value.code) == (404, "unknown_model")
