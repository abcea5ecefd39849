"""Files of results: one record per picture, as CSV or JSON lines, and how a file that was cut off is gone on with."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from serve_app.client.answers import Answer
from serve_app.client.errors import ClientError
from serve_app.errors import ConfigError

ERROR_COLUMNS = ["error", "message"]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file that is there already."""

    raw: bytes
    path: str
    failed: bool


class Format(Protocol):
    """How results are written; a path may be any name the file system has, valid UTF-8 or not."""

    def header(self) -> bytes:
        """What stands once, at the beginning."""
        ...

    def record(self, path: str, result: Answer | ClientError) -> bytes:
        """One picture, with the end of its last line."""
        ...

    def records(self, file: BinaryIO) -> Iterator[Record]:
        """The complete records of a file; a half-written last one is left out.

        Raises:
            ValueError: the file has something else in it.
        """
        ...


class JsonLines:
    """`{"path", "model", "version", "trained", "predictions": [...], "timing_ms"}` or `{"path", "error"}`, by line."""

    def header(self) -> bytes:
        return b""

    def record(self, path: str, result: Answer | ClientError) -> bytes:
        document: dict[str, object] = {"path": path}
        if isinstance(result, ClientError):
            document["error"] = {"code": result.code, "message": result.message}
        else:
            document |= {"model": result.model, "version": result.version, "trained": result.trained}
            document["predictions"] = [asdict(one) for one in result.predictions]
            document["timing_ms"] = asdict(result.timing)
        try:
            return json.dumps(document, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # a file name that is not UTF-8
            return json.dumps(document).encode() + b"\n"

    def records(self, file: BinaryIO) -> Iterator[Record]:
        for line in file:
            if line.endswith(b"\n"):
                document = json.loads(line)
                if not (isinstance(document, dict) and isinstance(document.get("path"), str)):
                    raise ValueError("a line has no path")
                yield Record(line, document["path"], failed="predictions" not in document)


class Csv:
    """Columns path, model, version, then class_id_N, label_N, score_N for the best `top_k` classes, error, message."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        places = range(1, top_k + 1)
        ranks = [f"{name}_{place}" for place in places for name in ("class_id", "label", "score")]
        self._columns = ["path", "model", "version", *ranks, *ERROR_COLUMNS]

    def header(self) -> bytes:
        return self._line(self._columns)

    def record(self, path: str, result: Answer | ClientError) -> bytes:
        if isinstance(result, ClientError):
            blank = [""] * (len(self._columns) - 1 - len(ERROR_COLUMNS))
            return self._line([path, *blank, result.code, result.message])
        ranks = [str(value) for one in result.predictions for value in (one.class_id, one.label, one.score)]
        ranks += [""] * (3 * self._top_k - len(ranks))  # of a model with fewer classes
        return self._line([path, result.model, str(result.version), *ranks, "", ""])

    def records(self, file: BinaryIO) -> Iterator[Record]:
        lines = _csv_records(file)
        header = next(lines, None)
        if header is not None and header != self.header():
            raise ValueError(f"it has other columns than --top {self._top_k} makes")
        for raw in lines:
            fields = next(csv.reader(io.StringIO(raw.decode("utf-8", "surrogateescape"), newline="")))
            if len(fields) != len(self._columns):
                raise ValueError("a line has other columns")
            yield Record(raw, fields[0], failed=fields[-len(ERROR_COLUMNS)] != "")

    def _line(self, fields: Sequence[str]) -> bytes:
        return (",".join(map(_quoted, fields)) + "\n").encode("utf-8", "surrogateescape")


def _quoted(text: str) -> str:
    """Python's own csv writer leaves a lone carriage return bare, which its reader then refuses."""
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if any(mark in text for mark in ',"\r\n') else text


def _csv_records(file: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, put together where a line end stands inside quotes; without what has no end."""
    record = b""
    for line in file:
        record += line
        if record.endswith(b"\n") and record.count(b'"') % 2 == 0:
            yield record
            record = b""


def format_of(out: str, top_k: int) -> Format:
    """By the end of the file's name; `-` is JSON lines.

    Raises:
        ConfigError: neither.
    """
    if out == "-" or out.endswith(".jsonl"):
        return JsonLines()
    if out.endswith(".csv"):
        return Csv(top_k)
    raise ConfigError(f"results go to a file that ends in .csv or .jsonl, or to -, not to {out}; name it so")


def prepare(path: Path, format: Format, *, resume: bool) -> set[str]:
    """Makes `path` ready to be appended to: with its header, whole records, and none of pictures that failed.

    Returns:
        The pictures that it has answers for.

    Raises:
        ConfigError: it is there and not to be gone on with, it is something else, or it cannot be written.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"cannot write {path}: it is no ordinary file; use --out - and direct that to it")
    try:
        if path.exists() and path.stat().st_size and not resume:
            raise ConfigError(f"{path} is there already; add --resume to go on with it, or remove it")
        return _mended(path.resolve(), format)
    except ValueError as error:
        raise ConfigError(f"{path} is not a file of these results ({error}); name another one") from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name a file that can be written") from error


def _mended(path: Path, format: Format) -> set[str]:
    """Writes what is good beside the file and puts it in its place at once: killed on the way, nothing is lost."""
    answered: set[str] = set()
    beside = path.with_name(path.name + ".part")
    with open(path, "a+b") as old, open(beside, "wb") as new:
        old.seek(0)
        new.write(format.header())
        for record in format.records(old):
            if not record.failed and record.path not in answered:
                answered.add(record.path)
                new.write(record.raw)
    shutil.copymode(path, beside)
    os.replace(beside, path)
    return answered


def append(file: BinaryIO | io.FileIO, record: bytes) -> None:
    """Writes all of `record` now, in one piece where the system takes it so: a kill leaves whole records, or one half
    at the end."""
    rest = memoryview(record)
    while rest:
        rest = rest[file.write(rest) or 0 :]
    file.flush()
