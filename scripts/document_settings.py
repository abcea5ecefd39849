#!/usr/bin/env python
"""Prints the README's table of what `args` takes, from the settings themselves. A test compares the two."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parent.parent))
from serve_app.settings import Settings


def rows(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """One Markdown row per key, sections opened up."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from rows(kind, f"{prefix}{name}.")
        else:
            meaning = " ".join((field.description or "").split())
            yield f"| `{prefix}{name}` | `{field.default}` | {meaning}{_choices(field)} |"


def _choices(field: FieldInfo) -> str:
    values = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
    return f" ({', '.join(values)})" if len(values) > 1 else ""


def table() -> str:
    """The whole table."""
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows()])


if __name__ == "__main__":
    print(table())
