#!/usr/bin/env python
"""Prints the README's tables of what can be set, from the settings themselves. A test compares the two."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parent.parent))
from serve_app.settings import LiveModel, ScalingGoal, ScheduledFloor, Settings


def rows(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """One Markdown row per key, sections opened up."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from rows(kind, f"{prefix}{name}.")
        else:
            meaning = " ".join((field.description or "").split())
            yield f"| `{prefix}{name}` | {_default(field)} | {meaning}{_choices(field)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "as it was"
    return "none" if field.default == () or field.default_factory is dict else f"`{_plain(field.default)}`"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _choices(field: FieldInfo) -> str:
    values = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
    return f" ({', '.join(values)})" if len(values) > 1 else ""


def table(model: type[BaseModel] = Settings) -> str:
    """All keys of a model."""
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows(model)])


TABLES = (Settings, ScalingGoal, ScheduledFloor, LiveModel)

if __name__ == "__main__":
    print("\n\n".join(f"{model.__name__}\n\n{table(model)}" for model in TABLES))
