"""Files of results: whatever was written is read again, wherever a kill cut it off."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.client import Answer, ClientError, Prediction, Refused, Rejected, Timing
from serve_app.client.results import Csv, Format, JsonLines, append, format_of, prepare
from serve_app.errors import ConfigError

ANSWER = Answer(
    "fake", 2, True, (Prediction(3, "tench, Tinca tinca", 0.75), Prediction(1, 'a "fish"', 0.125)), Timing(0.5, 2, 8)
)
ERROR = Rejected("broken_picture", "it is\nbroken; send it whole", 422)
FORMATS: list[Format] = [JsonLines(), Csv(2)]
both = pytest.mark.parametrize("format", FORMATS, ids=["jsonl", "csv"])


def write(path: Path, format: Format, results: dict[str, Answer | ClientError]) -> None:
    path.write_bytes(format.header() + b"".join(format.record(name, one) for name, one in results.items()))


def names(path: Path, format: Format) -> list[tuple[str, bool]]:
    with path.open("rb") as file:
        return [(record.path, record.failed) for record in format.records(file)]


def test_json_lines() -> None:
    assert json.loads(JsonLines().record("a.jpg", ANSWER)) == {
        "path": "a.jpg",
        "model": "fake",
        "version": 2,
        "trained": True,
        "predictions": [
            {"class_id": 3, "label": "tench, Tinca tinca", "score": 0.75},
            {"class_id": 1, "label": 'a "fish"', "score": 0.125},
        ],
        "timing_ms": {"queue": 0.5, "preprocess": 2, "inference": 8},
    }
    assert json.loads(JsonLines().record("a.jpg", ERROR)) == {
        "path": "a.jpg",
        "error": {"code": "broken_picture", "message": "it is\nbroken; send it whole"},
    }


def test_csv_columns_are_stable() -> None:
    format = Csv(2)
    text = (format.header() + format.record("a.jpg", ANSWER) + format.record("b.jpg", ERROR)).decode()
    header, answer, error = csv.reader(io.StringIO(text, newline=""))
    assert ",".join(header) == (
        "path,model,version,class_id_1,label_1,score_1,class_id_2,label_2,score_2,error,message"
    )
    assert answer == ["a.jpg", "fake", "2", "3", "tench, Tinca tinca", "0.75", "1", 'a "fish"', "0.125", "", ""]
    assert error == ["b.jpg", *[""] * 8, "broken_picture", "it is\nbroken; send it whole"]


def test_a_model_of_fewer_classes_leaves_columns_blank() -> None:
    [row] = csv.reader(io.StringIO(Csv(3).record("a.jpg", ANSWER).decode()))
    assert (len(row), row[9:12]) == (14, ["", "", ""])


# Any name that a file may have on Linux: any bytes but NUL.
file_names = st.binary(min_size=1, max_size=30).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"-")))


@both
@settings(deadline=None)
@given(name=file_names)
@example(name="a,b\"c'\r\n.jpg")
@example(name="\udcff\r.jpg")
@example(name="猫.jpg")
def test_any_file_name_comes_back(format: Format, name: str) -> None:
    raw = format.header() + format.record(name, ANSWER) + format.record(name, ERROR)
    assert [(one.path, one.failed) for one in format.records(io.BytesIO(raw))] == [(name, False), (name, True)]


@both
def test_cut_off_anywhere_whole_records_are_kept(format: Format, tmp_path: Path) -> None:
    path = tmp_path / "out"
    results: dict[str, Answer | ClientError] = {"a\n.jpg": ANSWER, "b.jpg": ANSWER, 'c"\n".jpg': ANSWER}
    whole = format.header() + b"".join(format.record(name, one) for name, one in results.items())
    ends = [len(format.header())]
    for name, one in results.items():
        ends.append(ends[-1] + len(format.record(name, one)))
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends[1:])
        assert prepare(path, format, resume=True) == set(list(results)[:complete]), cut
        assert path.read_bytes() == whole[: ends[complete]], cut
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@both
def test_failures_are_taken_out_to_be_tried_again(format: Format, tmp_path: Path) -> None:
    path = tmp_path / "out"
    refusal = Refused("overloaded", "later", 429, 2.0)
    write(path, format, {"a.jpg": ANSWER, "b.jpg": ERROR, "c.jpg": refusal, "d.jpg": ANSWER})
    path.chmod(0o640)
    assert prepare(path, format, resume=True) == {"a.jpg", "d.jpg"}
    assert names(path, format) == [("a.jpg", False), ("d.jpg", False)]
    assert path.stat().st_mode & 0o777 == 0o640


@both
def test_a_new_file_and_one_that_is_there(format: Format, tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert prepare(path, format, resume=True) == set()
    assert path.read_bytes() == format.header()
    write(path, format, {"a.jpg": ANSWER})
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="--resume"):
        prepare(path, format, resume=False)
    assert path.read_bytes() == before


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    prepare(tmp_path / "link", Csv(1), resume=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == Csv(1).header()


@pytest.mark.parametrize(
    ("format", "content", "said"),
    [
        (JsonLines(), b"hello\n", "not a file of these results"),
        (JsonLines(), b'{"name": "a"}\n', "no path"),
        (JsonLines(), b"[1]\n", "no path"),
        (Csv(3), Csv(2).header(), "--top 3"),
        (Csv(2), b"path,label\na.jpg,cat\n", "other columns"),
        (Csv(2), Csv(2).header() + b"a.jpg,cat\n", "other columns"),
    ],
)
def test_somebody_elses_file_is_left_alone(format: Format, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        prepare(path, format, resume=True)
    assert path.read_bytes() == content


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "out.csv"):
        with pytest.raises(ConfigError, match="cannot write"):
            prepare(path, Csv(1), resume=True)


def test_the_name_says_the_format() -> None:
    assert isinstance(format_of("-", 3), JsonLines)
    assert isinstance(format_of("a.b.jsonl", 3), JsonLines)
    assert isinstance(format_of("results.csv", 3), Csv)
    with pytest.raises(ConfigError, match=r"\.csv or \.jsonl"):
        format_of("results.txt", 3)


def test_a_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb") as file:
        append(file, b"record\n")
        assert path.read_bytes() == b"record\n"


def test_what_is_written_in_pieces_is_written_whole() -> None:
    class Narrow(io.BytesIO):
        def write(self, data: object) -> int:
            return super().write(bytes(data)[:3])  # type: ignore[call-overload]

    file = Narrow()
    append(file, b"0123456789")
    assert file.getvalue() == b"0123456789"
