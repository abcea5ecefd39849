from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine_build import typed
from scripts.gpu_check.gpus import PEAKS, Peak, find_peak
from scripts.gpu_check.roofline import Layer, Network, floor, read_network
from tests.engine_helpers import ROOT, small_engines
from tests.tiny_engine import onnx_model

PEAK = Peak("test", fp32=1.0, fp16=10.0, int8=20.0, memory_gb_s=100.0, source="nowhere")


def layer(**changes: object) -> Layer:
    fields: dict[str, object] = {"name": "conv", "op_type": "Conv", "precision": "fp16"}
    fields |= {"macs": 10_000_000, "weight_bytes": 1_000_000, "activation_bytes": 500_000}
    return Layer(**(fields | changes))  # type: ignore[arg-type]


def saved(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], size: int, target: Path) -> Path:
    """A network of 3-channel pictures, `size` wide and high, and the output `logits` of shape (n, 5)."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), target)
    return target


def small_net(target: Path, *, group: int = 1, quantised: bool = False) -> Path:
    """8x8 pictures, a 3x3 convolution with stride 2 to six channels, mean, Gemm."""
    weights: dict[str, np.ndarray] = {
        "w": np.ones((6, 3 // group, 3, 3), np.float32),
        "head": np.ones((6, 5), np.float32),
        "scale": np.array(0.5, np.float32),
        "zero": np.array(0, np.int8),
        "axes": np.array([2, 3]),
    }
    pairs = []
    if quantised:
        pairs = [
            helper.make_node("QuantizeLinear", ["float", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
            helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["wq"]),
            helper.make_node("DequantizeLinear", ["wq", "scale", "zero"], ["wdq"]),
        ]
    inputs = ["dq", "wdq"] if quantised else ["float", "w"]
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["float"], perm=[0, 3, 1, 2]),
        *pairs,
        helper.make_node("Conv", inputs, ["features"], pads=[1, 1, 1, 1], strides=[2, 2], group=group, name="conv"),
        helper.make_node("ReduceMean", ["features", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "head"], ["logits"], name="head"),
    ]
    return saved(nodes, weights, 8, target)


def test_a_convolution_and_a_gemm_are_counted_by_hand(tmp_path: Path) -> None:
    network = read_network(small_net(tmp_path / "net.onnx"))
    conv, gemm = network.layers
    assert (conv.macs, gemm.macs) == (6 * 4 * 4 * 3 * 9, 6 * 5)
    assert (conv.weight_bytes, gemm.weight_bytes) == (6 * 3 * 9 * 4, 6 * 5 * 4)
    assert conv.activation_bytes == (3 * 8 * 8 + 6 * 4 * 4) * 4
    assert (network.picture_bytes, network.answer_bytes) == (8 * 8 * 3, 5 * 4)
    assert {one.precision for one in network.layers} == {"fp32"}


def test_a_depthwise_convolution_multiplies_its_own_channel_only(tmp_path: Path) -> None:
    [conv, _] = read_network(small_net(tmp_path / "net.onnx", group=3)).layers
    assert conv.macs == 6 * 4 * 4 * 9


def test_a_convolution_between_pairs_is_int8_and_its_bytes_are_single(tmp_path: Path) -> None:
    conv, gemm = read_network(small_net(tmp_path / "net.onnx", quantised=True)).layers
    assert (conv.precision, gemm.precision) == ("int8", "fp32")
    assert conv.weight_bytes == 6 * 3 * 9
    assert conv.activation_bytes == 3 * 8 * 8 + 6 * 4 * 4 * 4  # what it writes is read in fp32


def test_halving_a_network_halves_its_bytes_and_not_its_arithmetic(tmp_path: Path) -> None:
    full = read_network(small_net(tmp_path / "net.onnx"))
    typed.to_fp16(tmp_path / "net.onnx", tmp_path / "half.onnx")
    half = read_network(tmp_path / "half.onnx")
    assert half.macs == full.macs
    assert half.weight_bytes * 2 == full.weight_bytes
    assert {one.precision for one in half.layers} == {"fp16"}


def test_a_matrix_product_is_counted(tmp_path: Path) -> None:
    onnx.save(onnx_model(), tmp_path / "tiny.onnx")
    [product] = read_network(tmp_path / "tiny.onnx").layers
    assert (product.op_type, product.macs) == ("MatMul", 4 * 4 * 3 * 5)


def test_unknown_shapes_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("NonZero", ["flat"], ["where"]),
        helper.make_node("Cast", ["where"], ["found"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["head", "found"], ["logits"]),
    ]
    path = saved(nodes, {"head": np.ones((5, 2), np.float32)}, 4, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="the shape of where cannot be inferred"):
        read_network(path)


KNOWN = {
    # Figures of torch's own counter (torch.utils.flop_counter), convolutions and linear layers.
    "resnet18": 1_814_073_344,
    "efficientnet_lite0": 385_187_552,
    "shufflenet_v2_x0_5": 40_476_448,
    "shufflenet_v2_x1_0": 144_907_992,
}


@pytest.mark.parametrize("model", KNOWN)
def test_real_networks_have_as_many_multiply_adds_as_torch_counts(model: str) -> None:
    exported = sorted((ROOT / "engines" / ".cache").glob(f"{model}-*.onnx"))
    if not exported:
        pytest.skip(f"{model} was never built here; engine-build build --model {model}")
    assert read_network(exported[0]).macs == KNOWN[model]


@pytest.mark.engines
def test_a_network_exported_now_is_counted_as_torch_counts_it() -> None:
    [exported] = (small_engines() / ".cache").glob("*.onnx")
    assert read_network(exported).macs == KNOWN["shufflenet_v2_x1_0"]


def test_arithmetic_bounds_a_large_batch_and_memory_a_small_one() -> None:
    network = Network((layer(),), picture_bytes=1000, answer_bytes=0)
    one, many = floor(network, PEAK, 1), floor(network, PEAK, 64)
    assert one is not None
    assert many is not None
    assert one.compute_ms == pytest.approx(2 * 10e6 / 10e12 * 1e3)
    assert one.memory_ms == pytest.approx((1_000_000 + 1000) / 100e9 * 1e3)
    assert (one.bound, one.floor_ms) == ("memory", one.memory_ms)
    assert many.compute_ms == pytest.approx(64 * one.compute_ms)
    assert many.memory_ms == pytest.approx((1_000_000 + 64_000) / 100e9 * 1e3)
    assert (many.bound, many.floor_ms) == ("arithmetic", many.compute_ms)


def test_layer_by_layer_counts_activations_and_each_layer_by_its_own_bound() -> None:
    heavy, wide = layer(macs=1_000_000_000), layer(macs=1, activation_bytes=9_000_000)
    found = floor(Network((heavy, wide), 0, 0), PEAK, 2)
    assert found is not None
    assert found.layered_ms == pytest.approx(2 * 2e9 / 10e12 * 1e3 + (1_000_000 + 2 * 9_000_000) / 100e9 * 1e3)
    assert found.layered_ms > found.floor_ms


def test_each_layer_is_held_against_the_peak_of_its_precision() -> None:
    for precision, tera in (("fp32", 1.0), ("fp16", 10.0), ("int8", 20.0)):
        found = floor(Network((layer(precision=precision),), 0, 0), PEAK, 1)
        assert found is not None
        assert found.compute_ms == pytest.approx(20e6 / (tera * 1e12) * 1e3)


def test_there_is_no_floor_without_a_peak_for_a_precision() -> None:
    unknown = Peak("test", fp32=1.0, fp16=None, int8=20.0, memory_gb_s=100.0, source="nowhere")
    assert floor(Network((layer(),), 0, 0), unknown, 1) is None
    assert floor(Network((layer(precision="int8"),), 0, 0), unknown, 1) is not None


@pytest.mark.parametrize(
    ("name", "sm_count", "fp16"),
    [
        ("Tesla T4", 40, 65),
        ("NVIDIA A10", 72, 125),
        ("NVIDIA L4", 58, 121),
        ("NVIDIA L40S", 142, 366),
        ("NVIDIA A100-SXM4-80GB", 108, 312),
        ("NVIDIA H100 80GB HBM3", 132, 989),
        ("NVIDIA GeForce RTX 4090", 128, 330.3),
    ],
)
def test_gpus_are_found_by_their_cuda_name(name: str, sm_count: int, fp16: float) -> None:
    peak = find_peak(name, sm_count)
    assert peak is not None
    assert peak.fp16 == fp16
    assert peak.source.startswith("https://")


@pytest.mark.parametrize(
    ("name", "sm_count"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76),
        ("NVIDIA GeForce RTX 3090 Ti", 84),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 14),
        ("Orin", 8),  # Orin NX: the same name as AGX Orin
        ("CPU in place of a GPU", 0),
    ],
)
def test_others_are_not_taken_for_them(name: str, sm_count: int) -> None:
    assert find_peak(name, sm_count) is None


def test_peaks_are_dense_and_ordered() -> None:
    for peak in PEAKS:
        known = [value for value in (peak.fp32, peak.fp16, peak.int8) if value is not None]
        assert known == sorted(known)
        if peak.fp16 and peak.int8:
            assert peak.int8 / peak.fp16 == pytest.approx(2, rel=0.01)
