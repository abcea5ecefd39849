"""Compiles the stand-in for the CUDA driver; see `fakecuda`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

SONAME = "libcuda.so.1"
_HERE = Path(__file__).parent
_SOURCES = sorted([*_HERE.glob("fakecuda*.hpp"), *_HERE.glob("fakecuda*.cpp")])

_STUB = 'extern "C" __attribute__((weak)) int {name}() {{ return fakecuda_unsupported("{name}"); }}\n'
"""A driver function that pycuda links to; weak, so that it gives way to one that does something."""


def why_missing() -> str | None:
    """What a run on the stand-in lacks here, None where it can run."""
    if shutil.which("g++") is None:
        return "g++, which compiles it, is not installed"
    if find_spec("pycuda") is None:
        return "pycuda is not installed: scripts/build_pycuda .venv"
    if find_spec("cuda.bindings") is None:
        return "cuda-bindings is not installed"
    return None if _headers() else "there is no cuda.h, neither of a toolkit nor of torch's packages"


def build() -> Path:
    """The library, compiled when it is first asked for; safe with several processes.

    Raises:
        AssertionError: it does not compile, or `why_missing`.
    """
    headers = _headers()
    assert headers, why_missing()
    stubs = 'extern "C" int fakecuda_unsupported(const char *);\n'
    stubs += "".join(_STUB.format(name=name) for name in _linked_names())
    parts = [*(source.read_bytes() for source in _SOURCES), stubs.encode(), str(headers).encode()]
    folder = _cache_folder() / hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    if not (folder / SONAME).is_file():
        part = Path(tempfile.mkdtemp(dir=_cache_folder()))
        (part / "stubs.cpp").write_text(stubs)
        _compile(part, headers)
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return folder / SONAME


def _compile(folder: Path, headers: Path) -> None:
    sources = [*(str(source) for source in _SOURCES if source.suffix == ".cpp"), str(folder / "stubs.cpp")]
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", f"-I{headers}", "-w"]
    command = ["g++", *options, "-o", str(folder / SONAME), *sources, "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the stand-in for the CUDA driver does not compile:\n{done.stderr}"


def _linked_names() -> list[str]:
    """Driver functions that the compiled pycuda refers to."""
    package = find_spec("pycuda")
    if package is None or package.origin is None:
        return []
    [driver] = Path(package.origin).parent.glob("_driver.*.so")
    command = ["nm", "-D", "--undefined-only", str(driver)]
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return sorted({name for name in symbols if name.startswith("cu") and name[2].isupper()})


def _headers() -> Path | None:
    nvcc = shutil.which("nvcc")
    packages = find_spec("nvidia")
    folders = [Path(nvcc).resolve().parent.parent / "include"] if nvcc else []
    folders += [Path("/usr/local/cuda/include")]
    for location in (packages.submodule_search_locations or []) if packages else []:
        folders += sorted(Path(location).glob("cu*/include"))
    return next((folder for folder in folders if (folder / "cuda.h").is_file()), None)


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"image-serve-fakecuda-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # libraries are loaded from here
        raise PermissionError(f"{folder} belongs to another user; delete it, or set TMPDIR")
    return folder
