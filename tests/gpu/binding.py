"""The genuine Python binding of TensorRT 11.4 on a machine without a GPU: its libraries are stubs of nine symbols."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = "tensorrt-cu13-bindings"
VERSION = "11.4.0.106"
SONAMES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
_SOURCE = Path(__file__).with_name("stubs.c")


def why_missing() -> str | None:
    """What the binding lacks here, None where it imports."""
    if find_spec("tensorrt_bindings") is None:
        return f"the binding is not installed: pip install --no-deps {PACKAGE}=={VERSION}"
    if version(PACKAGE) != VERSION:
        return f"{PACKAGE} is {version(PACKAGE)}: pip install --no-deps {PACKAGE}=={VERSION}"
    if find_spec("tensorrt_libs") is None and shutil.which("gcc") is None:
        return "gcc, which compiles the stub libraries, is not installed"
    return None


def needs_binding() -> ModuleType:
    """The binding; skips the calling test, or test module, where it cannot be had."""
    if reason := why_missing():
        pytest.skip(f"TensorRT's binding: {reason}", allow_module_level=True)
    return genuine()


@lru_cache(maxsize=1)
def genuine() -> ModuleType:
    """`tensorrt_bindings`, once per process. `tensorrt` is left unimported.

    Raises:
        ImportError, CalledProcessError: it is not installed, or the stubs do not compile.
    """
    if find_spec("tensorrt_libs") is None:
        for soname in SONAMES:
            # Once a library of that name is loaded, the loader looks for no other; its symbols stay local.
            ctypes.CDLL(str(stub_folder() / soname))
    return importlib.import_module("tensorrt_bindings")


def stub_folder() -> Path:
    """Folder with the stub libraries, compiled when they are first asked for. Safe with several processes."""
    folder = cache_folder() / "libraries"
    if not folder.is_dir():
        part = Path(tempfile.mkdtemp(dir=cache_folder()))
        for soname in SONAMES:
            command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(part / soname), str(_SOURCE)]
            subprocess.run(command, check=True, capture_output=True)
        publish(part, folder)
    return folder


def cache_folder() -> Path:
    """Where what is made from this binding and these stubs is kept, this user's own."""
    key = hashlib.sha256(_SOURCE.read_bytes() + VERSION.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"image-serve-tensorrt-{os.getuid()}-{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # libraries are loaded from here
        raise PermissionError(f"{folder} belongs to another user; delete it, or set TMPDIR")
    return folder


def publish(part: Path, folder: Path) -> None:
    """Renames a finished folder into place; where another process was faster, its folder stays."""
    try:
        part.rename(folder)
    except OSError:
        shutil.rmtree(part)
        if not folder.is_dir():
            raise
