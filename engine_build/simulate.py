"""Engines that only take time: what `engine-build simulate` writes, for rehearsals of scaling and overload."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from engine_build.errors import BuildError
from engine_build.store import EngineId, EngineStore
from serve_app.manifest import InputSpec, Manifest, Weights, sha256_of, write_manifest

ARTIFACT = "latency.json"
CLASSES = 1000


def simulate(name: str, batch_ms: Mapping[int, float], engines_dir: Path, version: int = 1) -> tuple[Manifest, Path]:
    """Writes `engines_dir/<name>/simulated-fp32`, or that version of it, replacing one that is there.

    Args:
        name: what the service calls it.
        batch_ms: batch size -> milliseconds per batch; on the line between sizes, in proportion beyond them.
        engines_dir: where engines are.
    """
    ident = EngineId(name, "simulated", "fp32", version)
    text = json.dumps({"batch_ms": {str(size): batch_ms[size] for size in sorted(batch_ms)}})
    store = EngineStore(engines_dir)
    with store.lock(ident), store.staging(ident) as folder:
        (folder / ARTIFACT).write_text(text)
        manifest = Manifest(
            model=name,
            version=version,
            architecture="simulated",
            backend="simulated",
            precision="fp32",
            trained=False,
            labels=tuple(f"simulated {number}" for number in range(CLASSES)),
            input=InputSpec(),
            weights=Weights(source="untrained", name="none", sha256=hashlib.sha256(text.encode()).hexdigest()),
            artifact=ARTIFACT,
            files={ARTIFACT: sha256_of(folder / ARTIFACT)},
            tools={},
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_manifest(folder, manifest)
        return manifest, store.publish(ident, folder)


def parse_latency(entries: Sequence[str]) -> dict[int, float]:
    """`["1:20", "16:120"]` -> milliseconds by batch size.

    Raises:
        BuildError: an entry is not SIZE:MILLISECONDS.
    """
    table: dict[int, float] = {}
    for entry in entries:
        size, _, ms = entry.partition(":")
        try:
            table[int(size)] = float(ms)
        except ValueError:
            raise BuildError(f"{entry!r} is not SIZE:MILLISECONDS, such as 16:120") from None
    if any(size < 1 or not 0 < ms < 1e6 for size, ms in table.items()):
        raise BuildError("batch sizes are 1 or more, and milliseconds above 0")
    return table
