"""What a lint finds, and safe ways into a configuration whose shape is not known yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: an `error` keeps the service from starting as meant; a `warning` is a trap that may be on purpose.
        path: of the key, such as `applications[0].deployments[1].num_replicas`; `environment.NAME` for a variable.
        message: what is wrong and what to do.
    """

    severity: Literal["error", "warning"]
    path: str
    message: str


Findings: TypeAlias = Iterator[Finding]


def items(parent: Mapping[str, Any], key: str, at: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and value of every mapping in the list at `key`."""
    value = parent.get(key)
    for index, item in enumerate(value if isinstance(value, list) else []):
        if isinstance(item, Mapping):
            yield f"{at}.{key}[{index}]".lstrip("."), item


def section(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at `key`; empty where there is none."""
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def env_vars(parent: Mapping[str, Any]) -> dict[str, Any]:
    """`runtime_env.env_vars` of an application, of actor options or of controller options."""
    return dict(section(section(parent, "runtime_env"), "env_vars"))


def number(parent: Mapping[str, Any], key: str, default: float) -> float:
    """The value at `key`; `default` where there is none, or none that is a number: validation finds that."""
    try:
        return float(parent.get(key, default))
    except (TypeError, ValueError):
        return default


def is_on(env: Mapping[str, str], name: str) -> bool:
    """As Ray reads its switches: 1 is on, anything else is off."""
    return env.get(name) == "1"
