"""Type stubs of `tensorrt`, made from the genuine binding, and mypy with them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from tests.gpu.binding import cache_folder, genuine, publish, stub_folder
from tests.gpu.signatures import Binding

ROOT = Path(__file__).resolve().parents[2]
NULLABLE = {
    "Builder": {"build_serialized_network", "build_engine_with_config"},
    "Runtime": {"deserialize_cuda_engine"},
    "ICudaEngine": {"create_execution_context"},
}
"""Methods that answer None when they fail, which their docstrings' signatures do not say."""

_ADDED = {
    "IHostMemory": "    def __buffer__(self, flags: int, /) -> memoryview: ...\n",
    "Dims": "    def __iter__(self) -> collections.abc.Iterator[int]: ...\n",
}
"""What Python offers by other protocols than those the stub generator knows."""

_HOOKS = {"IProgressMonitor"}
_ONLY_WITHOUT_STUBS = "disallow_subclassing_any"
_MODULE = """import builtins
__version__: str
def volume(iterable: collections.abc.Iterable[int]) -> int: ...
def nptype(trt_type: DataType) -> type[typing.Any]: ...
"""


@lru_cache(maxsize=1)
def stub_path() -> Path:
    """A folder for MYPYPATH with the package `tensorrt`; kept until what makes it changes."""
    made_by = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("typing_stubs.py", "signatures.py"))
    folder = cache_folder() / f"stubs-{hashlib.sha256(made_by).hexdigest()[:16]}"
    if not folder.is_dir():
        part = Path(tempfile.mkdtemp(dir=cache_folder()))
        environment = os.environ | {"LD_LIBRARY_PATH": str(stub_folder())}
        command = [sys.executable, "-m", "pybind11_stubgen", "tensorrt_bindings", "-o", str(part / "raw")]
        subprocess.run([*command, "--ignore-all-errors"], check=True, capture_output=True, env=environment)
        package = part / "tensorrt"
        package.mkdir()
        raw = (part / "raw" / "tensorrt_bindings" / "tensorrt.pyi").read_text(encoding="utf-8")
        (package / "__init__.pyi").write_text(repaired(raw, Binding(genuine())), encoding="utf-8")
        publish(part, folder)
    return folder


def repaired(raw: str, binding: Binding) -> str:
    """The generator's stub as mypy reads it, and as TensorRT behaves."""
    lines = raw.splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith("__all__"))
    head = [line for line in lines[:start] if "numpy" not in line]
    return "".join([*head, "import numpy\n", _MODULE, *_repaired_lines(lines[start + 1 :], binding)])


def _repaired_lines(lines: Sequence[str], binding: Binding) -> Iterator[str]:
    owner = ""
    for line in lines:
        if match := re.match(r"class (\w+)", line):
            owner = match[1]
            yield line
            yield _ADDED.get(owner, "")
        elif match := re.match(r"    def (\w+)\(", line):
            yield _repaired_def(line, owner, match[1], binding)
        else:
            # TensorRT's own `bool`, at the module's top, hides Python's.
            yield re.sub(r"(?<=: )bool$", "builtins.bool", line) if line.startswith("    ") else line


def _repaired_def(line: str, owner: str, name: str, binding: Binding) -> str:
    if line.rstrip().endswith("-> ...:"):
        line = line.replace("-> ...:", f"-> {_told_type(owner, name, binding)}:")
    line = re.sub(r"\bin: ", "in_: ", line)
    line = re.sub(r"(: |\[|-> )bool\b", r"\1builtins.bool", line)
    line = re.sub(r": ([\w.]+) = None", r": \1 | None = None", line)
    line = re.sub(r": Dims(?=[,)])", ": Dims | collections.abc.Sequence[typing.SupportsInt]", line)
    if name in NULLABLE.get(owner, ()):
        line = re.sub(r"-> (\w+):", r"-> \1 | None:", line)
    if name == "add_scale_nd":
        line = line.replace("channel_axis: typing.SupportsInt", "channel_axis: typing.SupportsInt = ...")
    if owner in _HOOKS:  # called by TensorRT, with these
        line = line.replace("typing.SupportsInt", "int").replace("parent_phase: str", "parent_phase: str | None")
    return line


def _told_type(owner: str, name: str, binding: Binding) -> str:
    """A return type that the docstring tells by its C++ name."""
    told = binding.classes.get(owner)
    if told and name in told.properties:
        kind = told.properties[name].returns
    else:
        ways = told.methods.get(name) if told else None
        kind = ways[0].returns if ways else ""
    return kind if kind in binding.classes else "typing.Any"


def type_errors(paths: Sequence[Path], changed: Mapping[Path, str] | None = None) -> list[str]:
    """What `mypy --strict` says of these files with the stubs; it keeps its cache.

    Args:
        changed: files of ours, and the source to check in their place.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "mypy.ini"
        config.write_text(_config(), encoding="utf-8")
        options = ["--config-file", str(config), "--cache-dir", str(cache_folder() / "mypy"), "--no-error-summary"]
        for number, (path, source) in enumerate((changed or {}).items()):
            shadow = Path(folder) / f"shadow{number}.py"
            shadow.write_text(source, encoding="utf-8")
            options += ["--shadow-file", str(path), str(shadow)]
        command = [sys.executable, "-m", "mypy", *options, *map(str, paths)]
        environment = os.environ | {"MYPYPATH": str(stub_path())}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"mypy failed: {done.stdout}{done.stderr}")
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def _config() -> str:
    """Our own settings, without those that leave tensorrt out."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    lines = ["[mypy]", "strict = True", "follow_imports = silent", f"plugins = {', '.join(settings['plugins'])}"]
    for override in settings["overrides"]:
        modules = override["module"] if isinstance(override["module"], list) else [override["module"]]
        kept = [name for name in modules if name.partition(".")[0] != "tensorrt"]
        lines.append(f"[mypy-{','.join(kept)}]")
        lines += [f"{key} = {value}" for key, value in override.items() if key not in ("module", _ONLY_WITHOUT_STUBS)]
    # Some of the generator's annotations, of classes that we do not use, are no types.
    return "\n".join([*lines, "[mypy-tensorrt]", "ignore_errors = True", ""])
