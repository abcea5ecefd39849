from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.local_service import ROOT
from serve_app.cli import main

LOCAL = str(ROOT / "configs" / "local.yaml")


def test_lint_prints_findings_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("applications: []\nhtp_options: {}\n")
    assert main(["lint", LOCAL]) == 0
    assert "1 of 1" in capsys.readouterr().out
    assert main(["lint", LOCAL, str(bad)]) == 1
    assert f"{bad}: error: htp_options: unknown key" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "none.yaml"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["start", "--help"], ["lint", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert "usage: image-serve" in capsys.readouterr().out


def test_ray_is_not_imported_before_its_environment_is_set() -> None:
    """Ray Serve freezes its variables at import; the command sets them first."""
    code = "import sys, serve_app.cli; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
