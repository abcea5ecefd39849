"""The peers' environment: their own packages, and beside them exactly the builds of torch, OpenVINO and the decoders
that this project has, by a `.pth` file, so that nothing is compared across versions or downloaded twice."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.local_service import ROOT

PEERS = Path(__file__).parent / "peers"
ENVIRONMENT = ROOT / ".venv-peers"
REQUIREMENTS = PEERS / "requirements.txt"
Run = Callable[[Sequence[str]], None]


class PeersNotInstalled(Exception):
    """pip could not install the peers."""


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PeersNotInstalled(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")


def ensure_peer_environment(folder: Path = ENVIRONMENT, run: Run = _run) -> Path:
    """Python of the peers' environment; made when it is missing, installed anew when requirements.txt changed.

    Raises:
        PeersNotInstalled: says which command failed and how.
    """
    python = folder / "bin" / "python"
    stamp = folder / ".requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        run([sys.executable, "-m", "venv", str(folder)])
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True, exist_ok=True)
    (site / "product.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)])
    stamp.write_text(wanted)
    return python
