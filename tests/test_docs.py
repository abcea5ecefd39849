"""The README says what the code does, where a program can tell."""

from __future__ import annotations

import re
import shlex

import pytest
from pydantic import BaseModel

from engine_build.cli import _parser as engine_build_parser
from scripts.autoscale.cli import _parser as autoscale_parser
from scripts.bench.cli import _parser as bench_parser
from scripts.document_settings import TABLES, table
from scripts.local_service import ROOT
from serve_app import errors
from serve_app.cli import _parser as image_serve_parser
from serve_app.launch import FAST_INGRESS_ENV

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("model", TABLES, ids=lambda model: model.__name__)
def test_the_tables_of_settings_are_the_settings(model: type[BaseModel]) -> None:
    assert table(model) in README, "run scripts/document_settings.py and paste its tables"


def classes(base: type) -> set[type]:
    return {base}.union(*(classes(child) for child in base.__subclasses__()))


def test_every_error_code_is_listed_with_its_status() -> None:
    rows = {
        row.split("|")[1].strip(): row.split("|")[2] for row in README.splitlines() if re.match(r"\| [45]\d\d \|", row)
    }
    for kind in classes(errors.ServeError) - {errors.RequestError}:
        assert f"`{kind.code}`" in rows[str(int(kind.status))], kind


def test_the_environment_of_the_fast_ingress_is_what_a_start_sets() -> None:
    exported = re.findall(r"^export (RAY_.*)$", README, re.MULTILINE)
    assert dict(pair.split("=") for line in exported for pair in line.split()) == FAST_INGRESS_ENV


COMMANDS = re.findall(r"^(engine-build [a-z-]+ .*?|image-serve [a-z]+ .*?)(?:\s*#.*)?$", README, re.MULTILINE)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shown_parses(command: str) -> None:
    program, *arguments = shlex.split(command)
    parser = {"engine-build": engine_build_parser, "image-serve": image_serve_parser}[program]()
    assert callable(parser.parse_args(arguments).run)


BENCH_COMMANDS = re.findall(r"^\.venv/bin/python scripts/(bench|autoscale) (.*?)(?:\s*#.*)?$", README, re.MULTILINE)


@pytest.mark.parametrize(("program", "command"), BENCH_COMMANDS)
def test_every_benchmark_shown_parses(program: str, command: str) -> None:
    parser = {"bench": bench_parser, "autoscale": autoscale_parser}[program]()
    assert callable(parser.parse_args(shlex.split(command)).run)


def test_there_are_benchmarks_to_check() -> None:
    assert len(BENCH_COMMANDS) >= 9


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:configs|scripts|serve_app|tests)/[\w./-]+\w", README))))
def test_every_file_named_is_there(path: str) -> None:
    assert path == "configs/mine.yaml" or (ROOT / path).exists()
