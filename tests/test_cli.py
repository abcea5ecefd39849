from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.local_service import ROOT
from serve_app import launch
from serve_app.cli import main
from serve_app.lint import OUR_APPLICATION
from tests.tiny_engine import make_gpu_engine

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


@pytest.fixture
def gpu_config(tmp_path: Path) -> Path:
    make_gpu_engine(tmp_path / "engines", precision="fp16")
    path = tmp_path / "gpu.yaml"
    path.write_text(
        f"applications:\n- name: a\n  import_path: {OUR_APPLICATION}\n  args:\n    placement: split\n"
        f"    engine: {{engines_dir: {tmp_path / 'engines'}, model: fake, backend: tensorrt, precision: fp16}}\n"
    )
    return path


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("config", ["prod.yaml", "edge.yaml"])
def test_a_gpu_configuration_without_a_gpu_is_one_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", str(ROOT / "configs" / config)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("image-serve: this machine has no NVIDIA driver")
    assert "configs/cpu.yaml" in said
    assert "--stand-in-gpus 1" in said


def test_gpus_that_are_not_there_are_claimed_for_the_stand_in(
    gpu_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Any, int]] = []

    def start(path: Path, config: dict[str, Any], *, stand_in_gpus: int, **options: Any) -> None:
        started.append((config["applications"][0]["args"]["runtime"], stand_in_gpus))

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(launch, "set_environment", lambda env, logs: None)
    for name, value in launch.FAST_INGRESS_ENV.items():
        monkeypatch.setenv(name, value)
    assert main(["start", str(gpu_config), "--stand-in-gpus", "2"]) == 0
    assert started == [({"device": "stand_in"}, 2)]


def test_ports_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int | None, int | None]] = []

    def start(path: Path, config: object, *, port: int | None, grpc_port: int | None, **options: Any) -> None:
        started.append((port, grpc_port))

    monkeypatch.setattr(launch, "start", start)
    for name in ("set_environment", "check_application"):
        monkeypatch.setattr(launch, name, lambda *arguments: None)
    local = str(ROOT / "configs" / "local.yaml")
    assert main(["start", local]) == main(["start", local, "--port", "8001", "--grpc-port", "9001"]) == 0
    assert started == [(None, None), (8001, 9001)]


@pytest.mark.parametrize("number", ["-1", "one", "1.5"])
def test_a_number_of_gpus_is_a_number(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["start", f"--stand-in-gpus={number}"])
    assert end.value.code == 2
    assert f"{number!r} is not a number of GPUs" in capsys.readouterr().err
