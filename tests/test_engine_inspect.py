from __future__ import annotations

import json

import pytest

from engine_build.errors import BuildError
from engine_build.tensorrt.inspect import check_precision, layer_types
from serve_app.manifest import Precision


def tensor(kind: str, key: str = "DataType", **more: object) -> dict[str, object]:
    return {"Name": "some tensor", "Location": "Device", "Dimensions": [1, 3, 4, 4], key: kind, **more}


def layer(*inputs: dict[str, object], output: str = "Float", kind: str = "CaskConvolution") -> dict[str, object]:
    return {
        "Name": "int8 of a float, by half",
        "LayerType": kind,
        "Inputs": list(inputs),
        "Outputs": [tensor(output)],
        "ParameterType": "Convolution",
        "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
        "Weights": {"Type": "Int8", "Count": 9408},
    }


def told(*layers: object, **more: object) -> str:
    return json.dumps({"Layers": list(layers), **more})


@pytest.mark.parametrize(
    ("said", "type_"),
    [
        ("Float", "fp32"),
        ("FP32", "fp32"),
        ("Half", "fp16"),
        ("FP16", "fp16"),
        ("Float16", "fp16"),
        ("Int8", "int8"),
        ("INT8", "int8"),
        ("Row major linear FP16 format", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major Int8 format", "int8"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Row major linear FP32", "fp32"),
    ],
)
@pytest.mark.parametrize("key", ["DataType", "Format/Datatype", "datatype"])
def test_types_are_found_under_the_names_of_several_releases(key: str, said: str, type_: str) -> None:
    assert layer_types(told(layer(tensor(said, key)))) == {type_: 1}


def test_the_lowest_type_of_the_inputs_counts() -> None:
    found = layer_types(
        told(
            layer(tensor("Int8"), tensor("Half"), output="Half"),
            layer(tensor("Half"), output="Int8"),
            layer(tensor("Float"), tensor("Half")),
            layer(tensor("Float"), output="Int8"),
        )
    )
    assert found == {"int8": 1, "fp16": 2, "fp32": 1}


def test_the_pictures_are_not_int8() -> None:
    """The first layer reads uint8, and some read shapes: neither says anything of the precision."""
    cast = layer(tensor("UInt8", Format="Row major linear UINT8 format (kLINEAR)"), kind="Cast")
    shapes = layer(tensor("Int32"), tensor("Int64"), tensor("Bool"), kind="Shuffle")
    found = layer_types(told(cast, shapes, layer(tensor("Float"))))
    assert found == {"fp32": 1}
    check_precision(found, "fp32")


def test_other_types_are_not_taken_for_ours() -> None:
    assert layer_types(told(layer(tensor("BFloat16")), layer(tensor("FP8")), layer(tensor("Int4")))) == {}


@pytest.mark.parametrize(
    "inspected",
    [
        "",
        "not JSON",
        "[]",
        "3",
        "null",
        "{}",
        '{"Layers": null}',
        '{"Layers": {"a": 1}}',
        '{"Layers": ["conv1", "conv2"], "I/O Tensors": [{"DataType": "Float"}]}',  # names only
        '{"Layers": [null, 3, {"Inputs": null}, {"Inputs": []}]}',
    ],
)
def test_an_inspector_that_says_nothing_of_types_is_no_error(inspected: str) -> None:
    assert layer_types(inspected) == {}
    check_precision({}, "int8")


@pytest.mark.parametrize(
    ("precision", "counts"),
    [
        ("fp32", {"fp32": 30}),
        ("fp16", {"fp16": 20, "fp32": 20}),
        ("int8", {"int8": 25, "fp16": 70, "fp32": 5}),
    ],
)
def test_enough_layers_in_the_type_that_was_asked_for(precision: Precision, counts: dict[str, int]) -> None:
    check_precision(counts, precision)


@pytest.mark.parametrize(
    ("precision", "counts"),
    [
        ("fp32", {"fp32": 26, "fp16": 4}),
        ("fp16", {"fp16": 19, "fp32": 21}),
        ("fp16", {"fp32": 40}),
        ("int8", {"int8": 24, "fp16": 76}),
        ("int8", {"fp16": 50}),
    ],
)
def test_too_few_of_them_are_an_error_with_the_counts(precision: Precision, counts: dict[str, int]) -> None:
    with pytest.raises(BuildError, match=f"an {precision} engine with .*engine-build prepare --force") as caught:
        check_precision(counts, precision)
    for name, count in counts.items():
        assert f"{count} in {name}" in str(caught.value)
