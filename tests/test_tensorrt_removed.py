"""Nothing that TensorRT 10 or 11 removed is anywhere in our code, whether or not TensorRT's binding is here.

The lists are NVIDIA's guide for the migration from TensorRT 10 to 11:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/api/migration/tensorrt-10x-to-11x-python-api-reference.html
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from tests.gpu.binding import needs_binding
from tests.gpu.signatures import Binding
from tests.gpu.usage import problems

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path for folder in ("serve_app", "engine_build", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))
]
TELLS_OLD_TRTEXEC = {"engine_build/trtexec.py", "engine_build/trtexec_files.py"}
"""These write commands for the trtexec of TensorRT 8 and 10, which take options that 11 does not."""

REMOVED = [
    "FP16",
    "BuilderFlag.INT8",
    "BuilderFlag.BF16",
    "BuilderFlag.FP8",
    "BuilderFlag.INT4",
    "BuilderFlag.FP4",
    "OBEY_PRECISION_CONSTRAINTS",
    "PREFER_PRECISION_CONSTRAINTS",
    "IInt8Calibrator",
    "IInt8LegacyCalibrator",
    "IInt8EntropyCalibrator",
    "IInt8EntropyCalibrator2",
    "IInt8MinMaxCalibrator",
    "int8_calibrator",
    "set_calibration_profile",
    "set_dynamic_range",
    "set_output_type",
    "EXPLICIT_BATCH",
    "platform_has_fast_fp16",
    "platform_has_fast_int8",
    "build_engine",
    "max_workspace_size",
    "IAlgorithmSelector",
    "algorithm_selector",
    "TacticSource.CUDNN",
    "TacticSource.CUBLAS",
    "TacticSource.CUBLAS_LT",
    "num_bindings",
    "get_binding_name",
    "get_binding_shape",
    "get_binding_dtype",
    "get_binding_index",
    "binding_is_input",
    "execute_async",
    "execute_async_v2",
    "device_memory_size",
    "get_device_memory_size_for_profile",
    "create_execution_context_without_device_memory",
    "supports_model",
    "parse_with_weight_descriptors",
    "IStreamReader",
    "PROFILE_SHARING_0806",
]
REMOVED_OPTIONS = ["--fp16", "--int8", "--best", "--calib"]
"""Of trtexec."""

REMOVED_OF_A_CLASS = {
    "ILayer.precision": "def f(x: trt.ILayer):\n    x.precision = trt.DataType.HALF",
    "ITensor.dtype": "def f(x: trt.ITensor):\n    x.dtype = trt.DataType.HALF",
    "ICudaEngine.max_batch_size": "def f(x: trt.ICudaEngine):\n    return x.max_batch_size",
    "Builder as a context manager": "def f(x: trt.ILogger):\n    with trt.Builder(x) as b:\n        return b",
}
"""Names that mean something else of ours; seen by the class they are asked of."""


_ANY = re.compile("|".join(map(re.escape, REMOVED)))
"""Quickly says no, of nearly all text."""


def removed_in(source: str, *, old_trtexec: bool = False) -> list[str]:
    """Each removed name or option in code: names, attributes, keywords, and text that is no docstring."""
    found = []
    for line, text in _texts(ast.parse(source)):
        if _ANY.search(text):
            found += [f"line {line}: {name}" for name in REMOVED if _has(text, name)]
        if not old_trtexec:
            found += [f"line {line}: {name}" for name in REMOVED_OPTIONS if _is_option(text, name)]
    return found


def _has(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def _is_option(text: str, name: str) -> bool:
    return ("trtexec" in text and _has(text, name)) or text == name or text.startswith(f"{name}=")


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node) if isinstance(node.value, ast.Name | ast.Attribute) else node.attr
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.alias | ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


@lru_cache(maxsize=1)
def binding() -> Binding:
    return Binding(needs_binding())


def test_no_removed_name_is_in_our_code() -> None:
    assert len(SOURCES) > 50
    found = {}
    for path in sorted(
        set(SOURCES) - set((ROOT / "serve_app" / "oip").rglob("*.py"))
    ):  # FP16 is a type of a protocol there
        name = path.relative_to(ROOT).as_posix()
        found[name] = removed_in(path.read_text(encoding="utf-8"), old_trtexec=name in TELLS_OLD_TRTEXEC)
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize("name", REMOVED)
@pytest.mark.parametrize("sample", ["x = trt.{}", "x = f().{}(1)", "x = getattr(trt, '{}')"])
def test_a_removed_name_is_found(name: str, sample: str) -> None:
    if "." in name:
        sample = sample.replace("f().", "trt.")
    assert any(text.endswith(f": {name}") for text in removed_in(sample.format(name)))


@pytest.mark.parametrize("name", [name for name in REMOVED if "." not in name])
def test_a_removed_name_is_found_as_a_keyword_an_import_and_a_definition(name: str) -> None:
    for sample in ("f({}=1)", "from tensorrt import {}", "def {}(): ...", "class A({}): ..."):
        assert removed_in(sample.format(name)) == [f"line 1: {name}"]


@pytest.mark.parametrize("name", REMOVED_OPTIONS)
def test_a_removed_option_is_found_but_where_old_releases_are_told_of(name: str) -> None:
    for sample in (f"run('trtexec --onnx=a {name}')", f"run(['trtexec', '{name}'])"):
        assert removed_in(sample) == [f"line 1: {name}"]
        assert removed_in(sample, old_trtexec=True) == []


def test_names_that_only_look_alike_and_docstrings_are_none() -> None:
    assert removed_in("x.execute_async_v3(1); trt.DataType.INT8; x.device_memory_size_v2; TensorProto.FLOAT16") == []
    assert removed_in('def f():\n    """No build_engine, no FP16."""') == []


@pytest.mark.parametrize("name", REMOVED)
def test_the_binding_does_not_have_it(name: str) -> None:
    owner, _, member = name.rpartition(".")
    if owner:
        assert member not in binding().classes[owner].names()
    else:
        # Plugins, which we do not write, have an `execute_async` of their own.
        assert [one.name for one in binding().with_member(member) if not one.name.startswith("IPlugin")] == []
        assert member not in {*binding().aliases, *binding().functions, *binding().values}


@pytest.mark.parametrize("name", REMOVED_OF_A_CLASS)
def test_what_only_its_class_tells_is_a_problem(name: str) -> None:
    assert len(problems("import tensorrt as trt\n" + REMOVED_OF_A_CLASS[name], binding())) == 1
