"""`image-serve classify`: a folder of pictures through a running service, into a file of results."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from serve_app.client import exchange
from serve_app.client.answers import Answer
from serve_app.client.asynchronous import AsyncClient
from serve_app.client.errors import ClientError, Unreachable
from serve_app.client.folder import FolderRun, Told, Totals
from serve_app.client.pace import MOST, Pace
from serve_app.client.pictures import find_pictures
from serve_app.client.results import Format, append, format_of, prepare
from serve_app.errors import ConfigError, SetupError

SOME_FAILED = 3
INTERRUPTED = 130
DEFAULT_ADDRESS = "http://localhost:8000"
DEFAULT_PATIENCE_S = 600.0
DEFAULT_TOP_K = 3
PATIENT = exchange.Policy(refusals=None, attempt_s=30.0)
"""Refusals and engines that are away are waited out; an attempt is given the service's own default time."""
EXIT_CODES = """\
Results are written as they come, not in the order of the pictures; each has its path.
A picture that fails is a result too, with its error.

exit codes:
  0    every picture was answered (with --resume: now or before)
  1    could not run: no service, no pictures, a file that cannot be written; one line on stderr says what to do
  2    the command line was not understood
  3    some pictures failed; the results say why, and --resume tries them again
  130  interrupted; --resume goes on
"""


def add_classify(commands: Any) -> None:
    """Adds `classify` to the subparsers of a command."""
    parser = commands.add_parser(
        "classify",
        help="classify pictures and folders of them with a running service",
        description="Sends pictures to a running service, as many at once as it takes, and writes the results.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a picture, or a folder of pictures")
    parser.add_argument("--out", default="-", metavar="FILE", help="FILE.csv or FILE.jsonl; - is stdout (the default)")
    parser.add_argument("--resume", action="store_true", help="go on with FILE: only what has no answer there yet")
    parser.add_argument("--top", type=_count, metavar="K", help="classes per picture (default: 3)")
    parser.add_argument("--model", metavar="NAME", help="default: the service's default model")
    parser.add_argument("--address", default=DEFAULT_ADDRESS, metavar="URL", help="default: %(default)s")
    parser.add_argument(
        "--concurrency",
        type=_concurrency,
        default=None,
        metavar="auto|N",
        help=f"pictures under way at once; auto (the default) follows what the service refuses, at most {MOST}",
    )
    parser.add_argument(
        "--priority",
        choices=["interactive", "batch"],
        default="batch",
        help="batch (the default) lets the requests of people pass",
    )
    parser.add_argument(
        "--recursive", action=argparse.BooleanOptionalAction, default=True, help="folders within folders (the default)"
    )
    parser.add_argument(
        "--patience-s",
        type=_seconds,
        default=DEFAULT_PATIENCE_S,
        metavar="S",
        help="give a picture up after so long, waiting for an overloaded service included (default: %(default)g)",
    )
    parser.set_defaults(run=run_classify)


def run_classify(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit code.

    Raises:
        SetupError: it could not be done.
    """
    format = format_of(arguments.out, arguments.top or DEFAULT_TOP_K)
    if arguments.out == "-" and arguments.resume:
        raise ConfigError("--resume needs a file to go on with; add --out FILE.jsonl or FILE.csv")
    found = find_pictures(arguments.paths, recursive=arguments.recursive)
    if found.other_files:
        _say(f"{found.other_files} other files in the folders are left out")
    with ExitStack() as stack:
        file, answered = stack.enter_context(_results(arguments, format))
        left = [path for path in found.paths if path not in answered]
        if not left:
            _say(f"every picture has its answer in {arguments.out}")
            return 0

        def told(path: str, result: Answer | ClientError) -> None:
            append(file, format.record(path, result))

        return _classify(arguments, left, len(found.paths) - len(left), told)


@contextmanager
def _results(arguments: argparse.Namespace, format: Format) -> Iterator[tuple[BinaryIO | FileIO, set[str]]]:
    if arguments.out == "-":
        yield sys.stdout.buffer, set()
        return
    answered = prepare(Path(arguments.out), format, resume=arguments.resume)
    with open(arguments.out, "ab", buffering=0) as file:
        yield file, answered


def _bar(total: int, done: int) -> tqdm[Any]:
    """Only where stderr is a terminal."""
    return tqdm(total=total, initial=done, unit=" pictures", file=sys.stderr, disable=None, dynamic_ncols=True)


def _classify(arguments: argparse.Namespace, paths: list[str], before: int, told: Told) -> int:
    totals = Totals()
    started_s = time.monotonic()
    try:
        with _bar(len(paths) + before, before) as bar:

            def told_and_shown(path: str, result: Answer | ClientError) -> None:
                told(path, result)
                bar.update()

            asyncio.run(_session(arguments, paths, told_and_shown, totals))
    except KeyboardInterrupt:
        _say(f"interrupted; {_go_on(arguments)}")
        return INTERRUPTED
    except Unreachable as error:
        raise SetupError(str(error) if not _any(totals) else f"{error}; {_go_on(arguments)}") from error
    except OSError as error:
        _no_more_output(arguments)
        raise SetupError(f"cannot write {arguments.out}: {error.strerror}; {_go_on(arguments)}") from error
    finally:
        if _any(totals):
            _say(summary(totals, time.monotonic() - started_s, before))
    return SOME_FAILED if totals.failed else 0


def _client(arguments: argparse.Namespace) -> AsyncClient:
    try:
        return AsyncClient(arguments.address, timeout_s=arguments.patience_s, policy=PATIENT)
    except ValueError as error:
        raise ConfigError(str(error)) from error


async def _session(arguments: argparse.Namespace, paths: list[str], told: Told, totals: Totals) -> None:
    async with _client(arguments) as client:
        await _check(client, arguments.model, arguments.top)
        fixed = arguments.concurrency
        pace = Pace() if fixed is None else Pace(fixed, least=fixed, most=fixed)
        run = FolderRun(
            client,
            pace,
            told,
            totals,
            top_k=arguments.top,
            model=arguments.model,
            priority=arguments.priority,
        )
        await run.run(paths)


async def _check(client: AsyncClient, name: str | None, top_k: int | None) -> None:
    """What would fail every picture is said once, before any is sent."""
    try:
        models = {model.name: model for model in await client.models()}
    except Unreachable:
        raise
    except ClientError as error:
        raise SetupError(f"{client.address} does not say what it serves: {error}") from error
    model = models.get(name) if name else next((one for one in models.values() if one.default), None)
    if model is None:
        raise ConfigError(f"no model {name!r} at {client.address}; choose --model from: {', '.join(models)}")
    if top_k is not None and top_k > model.num_classes:
        raise ConfigError(f"{model.name} has {model.num_classes} classes; --top can be no more than that")
    if not model.trained:
        _say(f"the weights of {model.name} are random: its answers mean nothing")


def summary(totals: Totals, seconds: float, before: int) -> str:
    """One line: pictures, failures by code, seconds, pictures per second, and what overload cost."""
    done = totals.answered + totals.failed.total()
    parts = [f"{done} pictures in {seconds:.1f} s ({done / seconds:.1f}/s): {totals.answered} answered"]
    if totals.failed:
        by_count = sorted(totals.failed.items(), key=lambda item: (-item[1], item[0]))
        codes = ", ".join(f"{count} {code}" for code, count in by_count)
        parts.append(f"{totals.failed.total()} failed ({codes})")
    if before:
        parts.append(f"{before} were answered before")
    if totals.refusals:
        parts.append(f"refused {totals.refusals} times, {totals.waiting_s:.1f} s of it waiting for overload to pass")
    return ", ".join(parts)


def _any(totals: Totals) -> bool:
    return totals.answered > 0 or totals.failed.total() > 0


def _go_on(arguments: argparse.Namespace) -> str:
    return "run it again" if arguments.out == "-" else "run it again with --resume to go on"


def _no_more_output(arguments: argparse.Namespace) -> None:
    """Python flushes stdout when it ends, and complains if its reader is gone."""
    if arguments.out == "-":
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    print(f"image-serve: {text}", file=sys.stderr)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _concurrency(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
