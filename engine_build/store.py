"""Engine folders on disk: found, locked, replaced whole, and tidied after builds that died.

engines/<model>/<backend>-<precision>/           an engine
engines/<model>/.building-<backend>-<precision>/ one being built; a name starting with a dot is never an engine
engines/<model>/.old-<backend>-<precision>/      the one being replaced, for the moment of that
engines/.locks/, engines/.cache/                 locks, and ONNX files that several backends are built from
"""

from __future__ import annotations

import os
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
from serve_app.manifest import MANIFEST_NAME, Backend, Manifest, Precision, read_manifest, write_manifest

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
    """Names one engine: `<model>/<backend>-<precision>`."""

    model: str
    backend: Backend
    precision: Precision

    @property
    def variant(self) -> str:
        return f"{self.backend}-{self.precision}"

    def __str__(self) -> str:
        return f"{self.model}/{self.variant}"

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
    """`resnet18/openvino-fp32` -> its id.

    Raises:
        BuildError: not of that form.
    """
    model, _, variant = text.rstrip("/").rpartition("/")
    backend, _, precision = variant.partition("-")
    for known_backend in get_args(Backend):
        for known_precision in get_args(Precision):
            if model and (backend, precision) == (known_backend, known_precision):
                return EngineId(Path(model).name, known_backend, known_precision)
    raise BuildError(f"{text!r} does not name an engine; write MODEL/BACKEND-PRECISION, e.g. resnet18/openvino-fp32")


class EngineStore:
    """The engines below one folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, engine: EngineId) -> Path:
        return self.root / engine.model / engine.variant

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
        """Every folder with a manifest, by name."""
        return sorted(
            path.parent
            for path in self.root.glob(f"*/*/{MANIFEST_NAME}")
            if not any(part.startswith(".") for part in path.relative_to(self.root).parts)
        )

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

        for path in [*self.root.glob("*/.building-*"), *self.root.glob("*/.old-*")]:
            engine = parse_engine_id(f"{path.parent.name}/{path.name.partition('-')[2]}")
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
        path = self.root / ".locks" / f"{engine.model}--{engine.variant}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _hidden(self, engine: EngineId, purpose: str) -> Path:
        return self.root / engine.model / f".{purpose}-{engine.variant}"

    def _drop_if_empty(self, folder: Path) -> None:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of an existing engine: readers see the old one or the new one."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".manifest-") as temporary:
        write_manifest(Path(temporary), manifest)
        os.replace(Path(temporary) / MANIFEST_NAME, folder / MANIFEST_NAME)
