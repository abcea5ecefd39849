"""Imports go one way. A module may import from lower layers, and from modules of its own layer that stand before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SERVE_APP = [
    ["errors", "types"],
    ["tally", "metric_names", "tracing", "request_log", "manifest", "plans", "settings", "metrics"],
    ["preprocess", "postprocess", "latency", "golden", "lint", "oip"],
    ["runtime", "admission", "queueing", "recent", "tuning", "autoscaling", "stages", "batching", "split", "colocated"],
    ["engines", "merging", "pipeline", "versions", "local_model", "bodies", "v2", "v2_grpc"],
    ["remote", "cluster", "scrape"],
    ["deployments"],
    ["web", "api", "openapi", "ingress"],
    ["client", "app", "ports", "launch"],
    ["cli"],
]
BUILD_MAY_USE = {"errors", "types", "manifest", "plans", "settings", "preprocess", "postprocess", "latency", "golden"}
BUILD_MAY_USE |= {"runtime", "lint"}
"""What engine_build takes from serve_app: the code that verifies an engine must be the code that serves it."""


def imports(path: Path) -> Iterator[str]:
    """Dotted names a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path, package: str) -> str:
    return path.relative_to(ROOT / package).parts[0].removesuffix(".py")


def files(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py")) if path.parent.name != "samples"]


def rank() -> dict[str, tuple[int, int]]:
    return {name: (layer, place) for layer, names in enumerate(SERVE_APP) for place, name in enumerate(names)}


def test_every_module_has_a_layer() -> None:
    assert {room(path, "serve_app") for path in files("serve_app")} - {"__init__"} == set(rank())


@pytest.mark.parametrize("path", files("serve_app"), ids=lambda path: str(path.relative_to(ROOT)))
def test_serve_app_imports_downwards_only(path: Path) -> None:
    ranks = rank()
    own = room(path, "serve_app")
    for name in imports(path):
        assert not name.startswith("engine_build"), f"{path} imports {name}: serving never needs to build"
        parts = name.split(".")
        if parts[0] != "serve_app" or parts[1] == own:
            continue
        if path.name == "__init__.py" and path.parent.name == "serve_app":
            continue
        target, here = ranks[parts[1]], ranks[own]
        assert target < here, f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize("path", files("engine_build"), ids=lambda path: str(path.relative_to(ROOT)))
def test_engine_build_uses_only_the_lower_layers_of_serve_app(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("serve_app.")}
    assert used <= BUILD_MAY_USE


PURE = [
    "errors",
    "types",
    "tally",
    "metric_names",
    "tracing",
    "request_log",
    "manifest",
    "plans",
    "settings",
    "preprocess",
    "postprocess",
    "latency",
    "golden",
    "runtime",
    "admission",
    "queueing",
    "tuning",
    "stages",
    "batching",
    "split",
    "colocated",
    "engines",
    "merging",
    "pipeline",
    "versions",
    "local_model",
    "oip",
    "v2",
]


@pytest.mark.parametrize("name", PURE)
def test_the_core_knows_neither_ray_nor_http(name: str) -> None:
    for path in files("serve_app"):
        if room(path, "serve_app") == name:
            roots = {imported.split(".")[0] for imported in imports(path)}
            assert not roots & {"ray", "starlette", "fastapi"}, path
