from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engine_build.errors import PicturesUnusable
from engine_build.export import export_onnx
from engine_build.onnx_cpu import OnnxCpuRuntime
from engine_build.pictures import sample_batch
from engine_build.reference import Reference, build_reference
from engine_build.typed import Precision, check_typed, to_fp16, to_fp32, to_int8
from engine_build.typed.graph import Wiring, load
from engine_build.typed.input_cast import cast_first
from engine_build.typed.residual import residual_adds
from engine_build.weights import untrained_weights
from engine_build.zoo import custom_spec
from serve_app.manifest import InputSpec
from serve_app.types import Logits, Pictures
from tests.engine_helpers import small_engines

SPEC = InputSpec(height=64, width=64, resize_size=64)
PRECISIONS: list[Precision] = ["fp32", "fp16", "int8"]


class Block(nn.Module):
    """`body` beside `skip`; the sum goes through `after`."""

    def __init__(self, body: nn.Module, skip: nn.Module, after: nn.Module, *, skip_first: bool = False) -> None:
        super().__init__()
        self.body, self.skip, self.after, self.skip_first = body, skip, after, skip_first

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        body, skip = self.body(features), self.skip(features)
        result: torch.Tensor = self.after(skip + body if self.skip_first else body + skip)
        return result


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Tiny(nn.Sequential):
    """A stem, a ResNet block, one that halves, a MobileNet block and a depthwise layer beside a dense one."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(conv(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(2)),
            Block(nn.Sequential(conv(16, 16, 3), nn.ReLU(), conv(16, 16, 3)), nn.Identity(), nn.ReLU()),
            # The skip written first: which branch is the main one must not depend on the order.
            Block(
                nn.Sequential(conv(16, 24, 3, 2), nn.ReLU(), conv(24, 24, 3)),
                conv(16, 24, 1, 2),
                nn.ReLU(),
                skip_first=True,
            ),
            Block(
                nn.Sequential(conv(24, 48, 1), nn.ReLU6(), conv(48, 48, 3, groups=48), nn.ReLU6(), conv(48, 24, 1)),
                nn.Identity(),
                nn.Identity(),
            ),
            # Depthwise and dense read the same tensor: only the dense one through a pair.
            Block(
                nn.Sequential(conv(24, 24, 3, groups=24), nn.ReLU()),
                nn.Sequential(conv(24, 24, 1), nn.ReLU()),
                nn.ReLU(),
            ),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 10),
        )


@cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="typed-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def pictures() -> Pictures:
    return sample_batch(SPEC)


@cache
def reference() -> Reference:
    torch.manual_seed(1)
    made = Reference(Tiny(), SPEC)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    made.train()(torch.from_numpy(pictures()))
    return made.eval().requires_grad_(False)


@cache
def exported() -> Path:
    path = folder() / "exported.onnx"
    export_onnx(reference(), SPEC, path)
    return path


@cache
def typed(precision: Precision) -> Path:
    path = folder() / f"{precision}.onnx"
    build(exported(), path, precision, pictures())
    return path


def build(source: Path, target: Path, precision: Precision, calibration: Pictures) -> None:
    if precision == "int8":
        to_int8(source, target, list(calibration))
    else:
        (to_fp16 if precision == "fp16" else to_fp32)(source, target)


def graph(precision: Precision) -> Any:
    return onnx.load(str(typed(precision))).graph


def infer(path: Path, batch: Pictures) -> Logits:
    return OnnxCpuRuntime(path, 2).infer(batch)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(str(path)).graph.node}


@pytest.mark.parametrize(("precision", "share"), [("fp32", 1e-4), ("fp16", 0.01), ("int8", 0.25)])
def test_every_precision_agrees_with_torch_at_any_batch(precision: Precision, share: float) -> None:
    """`share` of the logits' spread."""
    for count in (1, 3, len(pictures())):
        expected = reference().infer(pictures()[:count])
        error = np.abs(infer(typed(precision), pictures()[:count]) - expected)
        assert error.max() <= share * reference().infer(pictures()).std(axis=0).mean() + 1e-5


def test_half_and_int8_do_round() -> None:
    """A runtime that computed in float32 behind our back would flatter them."""
    logits = [infer(typed(precision), pictures()) for precision in PRECISIONS]
    assert np.abs(logits[1] - logits[0]).max() > 1e-4 * logits[0].std()
    assert np.abs(logits[1] - logits[0]).mean() * 3 < np.abs(logits[2] - logits[0]).mean()
    np.testing.assert_array_equal(logits[1], logits[1].astype(np.float16))


def test_weights_are_stored_in_half() -> None:
    for precision in ("fp16", "int8"):
        stored = {tensor.data_type for tensor in graph(precision).initializer if len(tensor.dims) == 4}
        assert stored == {onnx.TensorProto.FLOAT16}
    assert typed("fp16").stat().st_size < 0.7 * typed("fp32").stat().st_size


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_uint8_input_goes_into_a_cast(precision: Precision) -> None:
    assert [node.op_type for node in graph(precision).node if "image" in node.input] == ["Cast"]
    assert [node.op_type for node in graph(precision).node if "Cast" in node.op_type and node.input[0] != "image"] == (
        [] if precision == "fp32" else ["Cast"]  # of the logits
    )


def test_skips_are_quantised_and_main_branches_are_not() -> None:
    wiring = Wiring(graph("int8"))
    found = []
    for node in (node for node in graph("int8").node if node.op_type == "Add"):
        kinds = [wiring.producers[name].op_type if name in wiring.producers else "constant" for name in node.input]
        found.append(kinds)
    assert found == [
        ["Mul", "constant"],
        ["Conv", "DequantizeLinear"],
        ["DequantizeLinear", "Conv"],
        ["Conv", "DequantizeLinear"],
        ["Relu", "Relu"],  # no convolution that could take it in
    ]
    halving = next(
        node
        for node in graph("int8").node
        if node.op_type == "Add" and "DequantizeLinear" in wiring.producers[node.input[0]].op_type
    )
    down = wiring.producers[wiring.unquantised(halving.input[0])]
    assert (down.op_type, wiring.producers[halving.input[1]].op_type) == ("Conv", "Conv")
    kernel = wiring.initializers[wiring.unquantised(down.input[1])].dims
    assert list(kernel[2:]) == [1, 1]


def test_depthwise_and_first_convolution_and_classifier_stay_in_half() -> None:
    wiring = Wiring(graph("int8"))
    kinds: dict[tuple[str, tuple[int, ...]], set[tuple[bool, ...]]] = {}
    for node in graph("int8").node:
        if node.op_type in ("Conv", "Gemm"):
            weight = wiring.initializers[wiring.unquantised(node.input[1])]
            pairs = [wiring.made_by(name, "DequantizeLinear") is not None for name in node.input]
            kinds.setdefault((node.op_type, tuple(weight.dims[1:])), set()).add(tuple(pairs))
    assert kinds[("Conv", (3, 3, 3))] == {(False, False, False)}
    assert kinds[("Conv", (1, 3, 3))] == {(False, False, False)}
    assert kinds[("Gemm", (24,))] == {(False, False, False)}
    assert kinds[("Conv", (16, 3, 3))] == kinds[("Conv", (24, 1, 1))] == {(True, True, False)}


def test_the_longer_branch_is_the_main_one_whatever_the_order() -> None:
    found = list(residual_adds(load(exported()).graph).values())
    assert [(one.main, one.skip) for one in found] == [(0, 1), (1, 0), (0, 1)]


@pytest.mark.parametrize(
    ("groups", "also_reads", "count"),
    [(1, "relu", 1), (4, "relu", 0), (1, "main", 0)],
    ids=["fusable", "depthwise", "read by others too"],
)
def test_an_add_is_fused_into_a_dense_convolution_that_it_alone_reads(groups: int, also_reads: str, count: int) -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["first"], name="first"),
        node("Relu", ["first"], ["relu"], name="relu"),
        node("Conv", ["relu", "w"], ["main"], name="conv", group=groups),
        node("Add", ["main", "relu"], ["sum"], name="add"),
        node("Sigmoid", [also_reads], ["other"], name="other"),
    ]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "w", "sum")]
    found = residual_adds(onnx.helper.make_graph(nodes, "blocks", values[:2], values[2:]))
    assert [(one.main, one.skip) for one in found.values()] == [(0, 1)] * count


def test_nothing_of_this_machine_is_left_in_the_file() -> None:
    assert b"/" in exported().read_bytes()
    model = onnx.load(str(typed("fp32")))
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(Path(__file__).parent.parent).encode() not in typed("fp32").read_bytes()


def test_a_cast_that_is_first_already_stays_the_only_one(tmp_path: Path) -> None:
    once = cast_first(load(exported()))
    onnx.save(once, str(tmp_path / "once.onnx"))
    twice = cast_first(load(tmp_path / "once.onnx"))
    assert [node.op_type for node in twice.graph.node].count("Cast") == 1
    check_typed(twice, "fp32")


def test_int8_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PicturesUnusable, match="pass some hundred photographs"):
        to_int8(exported(), tmp_path / "int8.onnx", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engines
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resnet18_has_nothing_left_that_depends_on_shapes(tmp_path: Path, precision: Precision) -> None:
    source = resnet18()
    build(source, tmp_path / "typed.onnx", precision, sample_batch(InputSpec())[:3])
    assert not operators(tmp_path / "typed.onnx") & {"Shape", "Range", "Gather", "Squeeze", "Unsqueeze"}
    typed_graph = onnx.load(str(tmp_path / "typed.onnx")).graph
    pairs = sum(node.op_type == "QuantizeLinear" for node in typed_graph.node)
    # 19 weights; 16 inputs of them that differ and 3 outputs of the 1x1 convolutions.
    assert pairs == (38 if precision == "int8" else 0)


@cache
def resnet18() -> Path:
    spec = custom_spec("any", "resnet18", tuple(map(str, range(20))))
    path = folder() / "resnet18.onnx"
    export_onnx(build_reference("resnet18", spec.input, 20, untrained_weights(spec)), spec.input, path)
    return path


@pytest.mark.engines
def test_shufflenet_answers_in_every_precision(tmp_path: Path) -> None:
    (source,) = (small_engines() / ".cache").glob("*.onnx")
    batch = sample_batch(InputSpec())[:3]
    logits = {}
    for precision in PRECISIONS:
        build(source, tmp_path / f"{precision}.onnx", precision, batch)
        logits[precision] = infer(tmp_path / f"{precision}.onnx", batch)
    assert np.abs(logits["fp16"] - logits["fp32"]).mean() < 0.1 * logits["fp32"].std()
    assert np.abs(logits["int8"] - logits["fp32"]).mean() < 0.8 * logits["fp32"].std()
