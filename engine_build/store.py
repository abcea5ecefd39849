"""Engine folders on disk: found, locked, replaced whole, and tidied after builds that died.

engines/<model>/<backend>-<precision>/           an engine
engines/<model>/<version>/<backend>-<precision>/ its later versions, from 2 on
  .building-<backend>-<precision>/               beside it, one being built; what starts with a dot is never an engine
  .old-<backend>-<precision>/                    the one being replaced, for the moment of that
engines/.locks/, engines/.cache/                 locks, and ONNX files that several backends are built from
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from engine_build.errors import BuildError
from engine_build.progress import say
from serve_app.errors import EngineError
from serve_app.manifest import (
    MANIFEST_NAME,
    Backend,
    Manifest,
    Precision,
    engine_folder,
    engine_name,
    read_manifest,
    write_manifest,
)

BUILDABLE: tuple[tuple[Backend, Precision], ...] = (
    ("openvino", "fp32"),
    ("openvino", "int8"),
    ("onnx", "fp32"),
    ("torchscript", "fp32"),
    ("tensorrt", "fp32"),
    ("tensorrt", "fp16"),
    ("tensorrt", "int8"),
)


@dataclass(frozen=True, slots=True)
class EngineId:
    """Names one engine: `<model>/<backend>-<precision>`, of later versions `<model>@<version>/...`."""

    model: str
    backend: Backend
    precision: Precision
    version: int = 1

    @staticmethod
    def of(manifest: Manifest) -> EngineId:
        return EngineId(manifest.model, manifest.backend, manifest.precision, manifest.version)

    @property
    def variant(self) -> str:
        return f"{self.backend}-{self.precision}"

    def __str__(self) -> str:
        return engine_name(self.model, self.version, self.variant)

    def check_buildable(self) -> EngineId:
        """Itself.

        Raises:
            BuildError: no such combination of backend and precision; names those there are.
        """
        if (self.backend, self.precision) not in BUILDABLE:
            valid = ", ".join(f"{backend}/{precision}" for backend, precision in BUILDABLE)
            raise BuildError(f"{self.backend} engines are not built in {self.precision}; there are {valid}")
        return self


def parse_engine_id(text: str) -> EngineId:
    """`resnet18/openvino-fp32` -> its id; of version 2 `resnet18@2/openvino-fp32`, or as in its path `resnet18/2/...`.

    Raises:
        BuildError: not of that form.
    """
    model, _, variant = text.rstrip("/").rpartition("/")
    backend, _, precision = variant.partition("-")
    name, version = _name_and_version(model)
    for known_backend in get_args(Backend):
        for known_precision in get_args(Precision):
            if name and (backend, precision) == (known_backend, known_precision):
                return EngineId(name, known_backend, known_precision, version)
    raise BuildError(
        f"{text!r} does not name an engine; write MODEL/BACKEND-PRECISION, e.g. resnet18/openvino-fp32, and of version "
        "2 resnet18@2/openvino-fp32"
    )


def _name_and_version(path: str) -> tuple[str, int]:
    """`flowers@2`, `flowers/2` or `engines/flowers/2` -> `flowers`, 2; without a number it is 1."""
    *_, parent, name = ["", "", *path.split("/")]
    if parent and _is_version(name):
        return parent, int(name)
    model, at, version = name.partition("@")
    if not at:
        return name, 1
    return (model, int(version)) if _is_version(version) else ("", 1)


def _is_version(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,8}", text) is not None


def _order(parts: tuple[str, ...]) -> tuple[int, str]:
    _, *version, variant = parts
    return int(version[0]) if version else 1, variant


class EngineStore:
    """The engines below one folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def holding(cls, folder: Path, engine: EngineId) -> EngineStore:
        """The store whose `folder(engine)` is this."""
        return cls(folder.resolve().parents[1 if engine.version == 1 else 2])

    def folder(self, engine: EngineId) -> Path:
        return engine_folder(self.root, engine.model, engine.version, engine.variant)

    def cache(self) -> Path:
        """Folder of intermediate files; it may be deleted at any time between builds."""
        path = self.root / ".cache"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def find(self, engine: EngineId) -> Manifest | None:
        """Its manifest, where every file fits it; None otherwise."""
        try:
            manifest = read_manifest(self.folder(engine))
        except EngineError:
            return None
        return manifest if manifest.engine_name == str(engine) else None

    def folders(self) -> list[Path]:
        """Every folder with a manifest, by name, a model's versions in their order."""
        found = [*self.root.glob(f"*/*/{MANIFEST_NAME}"), *self.root.glob(f"*/*/*/{MANIFEST_NAME}")]
        parts = {path.parent: path.parent.relative_to(self.root).parts for path in found}
        engines = [
            folder
            for folder, (_, *version, name) in parts.items()
            if not any(part.startswith(".") for part in parts[folder]) and all(map(_is_version, version))
        ]
        return sorted(engines, key=lambda folder: (parts[folder][0], len(parts[folder]), _order(parts[folder])))

    @contextmanager
    def lock(self, engine: EngineId) -> Iterator[None]:
        """One build of this engine at a time, over processes; says so when it has to wait.

        What a dead build left of it is mended first.
        """
        from filelock import FileLock, Timeout

        path = self._lock_path(engine)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another build of {engine} is running, waiting for it (Ctrl-C to stop waiting)")
            lock.acquire()
        try:
            self._mend(engine)
            yield
        finally:
            lock.release()

    @contextmanager
    def staging(self, engine: EngineId) -> Iterator[Path]:
        """A folder to build in, which is gone afterwards whatever happens. Hold the engine's lock."""
        path = self._hidden(engine, "building")
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            self._drop_if_empty(path.parent)

    def publish(self, engine: EngineId, staged: Path) -> Path:
        """Moves a staged folder into its place; whoever opens the engine finds the old one or the new one, whole.

        A crash between the two renames is mended by the next `lock`.
        """
        final, old = self.folder(engine), self._hidden(engine, "old")
        if final.exists():
            os.rename(final, old)
        os.rename(staged, final)
        shutil.rmtree(old, ignore_errors=True)
        return final

    def sweep(self) -> None:
        """Removes what dead builds of any engine left, where no living build holds its lock."""
        from filelock import FileLock, Timeout

        for path in [left for where in ("*", "*/*") for left in self.root.glob(f"{where}/.*-*")]:
            purpose, _, variant = path.name.partition("-")
            if purpose not in (".building", ".old"):
                continue
            engine = parse_engine_id(f"{path.parent.relative_to(self.root)}/{variant}")
            try:
                with FileLock(self._lock_path(engine), timeout=0):
                    self._mend(engine)
            except Timeout:
                continue

    def _mend(self, engine: EngineId) -> None:
        final, old = self.folder(engine), self._hidden(engine, "old")
        if old.exists() and not final.exists():
            os.rename(old, final)
        for leftover in (old, self._hidden(engine, "building")):
            shutil.rmtree(leftover, ignore_errors=True)
        self._drop_if_empty(final.parent)

    def _lock_path(self, engine: EngineId) -> Path:
        version = f"@{engine.version}" if engine.version > 1 else ""
        path = self.root / ".locks" / f"{engine.model}{version}--{engine.variant}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _hidden(self, engine: EngineId, purpose: str) -> Path:
        return self.folder(engine).with_name(f".{purpose}-{engine.variant}")

    def _drop_if_empty(self, folder: Path) -> None:
        """A version's folder, and the model's around it."""
        while folder != self.root and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of an existing engine: readers see the old one or the new one."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".manifest-") as temporary:
        write_manifest(Path(temporary), manifest)
        os.replace(Path(temporary) / MANIFEST_NAME, folder / MANIFEST_NAME)
