"""What a compiled engine says of its own layers: the proof of its precision. A request proves nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from engine_build.errors import BuildError
from serve_app.manifest import Precision

_NAMES = {"int8": "int8", "fp16": "fp16", "half": "fp16", "float16": "fp16", "fp32": "fp32", "float": "fp32"}
_WORDS = re.compile("[a-z]+[0-9]*")
_ORDER = ("int8", "fp16", "fp32")
LEAST_SHARE = {"fp32": 0.9, "fp16": 0.5, "int8": 0.25}
"""Of the layers that compute in a floating or int8 type. int8 nets keep layers in fp16: depthwise ones, the head, and
what TensorRT puts between."""


def layer_types(inspected: str) -> dict[str, int]:
    """How many layers work in each data type, by the lowest one of a layer's inputs.

    Args:
        inspected: JSON of TensorRT's engine inspector. Its layout differs between releases, so types are looked for
            under any key with "type" in its name; empty where none is found.
    """
    try:
        content = json.loads(inspected)
    except ValueError:
        return {}
    layers = content.get("Layers") if isinstance(content, Mapping) else None
    counts: Counter[str] = Counter()
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, Mapping):
            found = set(_types(layer.get("Inputs", layer)))
            counts.update([name for name in _ORDER if name in found][:1])
    return dict(counts)


def _types(value: Any, is_type: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _types(inner, "type" in str(key).lower())
    elif isinstance(value, list):
        for inner in value:
            yield from _types(inner, is_type)
    elif is_type and isinstance(value, str):
        # Whole words: the pictures come as uint8, which is not int8.
        yield from (_NAMES[word] for word in _WORDS.findall(value.lower()) if word in _NAMES)


def check_precision(counts: Mapping[str, int], precision: Precision) -> None:
    """Holds the layers against what was asked for.

    Raises:
        BuildError: too few of them work in it.
    """
    total = sum(counts.values())
    if total and counts.get(precision, 0) < LEAST_SHARE[precision] * total:
        told = ", ".join(f"{count} in {name}" for name, count in sorted(counts.items()))
        raise BuildError(
            f"TensorRT compiled an {precision} engine with {told} layers; its ONNX is not typed as it should be: "
            "prepare it again with engine-build prepare --force"
        )
