"""What a machine with TensorRT but without this package compiles an engine from: ONNX files and a script for `trtexec`.

Jetsons come with a TensorRT of their own, often 8 or 10, which the rest of this package does not run on. What each
release takes was read in:

- options: https://github.com/NVIDIA/TensorRT/blob/release/11.1/samples/common/sampleOptions.cpp, and the same file of
  release/8.2, release/8.4, release/8.6 and release/10.3. 8.2 has `--workspace` and `--buildOnly`, later ones
  `--memPoolSize` and `--skipInference`. 10 needs `--stronglyTyped` for types to be obeyed. In 11 that is so always,
  there is no `--fp16` or `--best`, CUDA graphs are on and copies are off in timings unless `--includeDataTransfers`.
- the version, in the first line of any call: https://github.com/NVIDIA/TensorRT/blob/release/11.1/samples/common/logging.h
  (`[TensorRT v8201]` is 8.2.1, `[TensorRT v100300]` is 10.3.0).
- opsets: https://github.com/onnx/onnx-tensorrt/blob/8.2-GA/docs/operators.md (13), 8.6-GA (17), 10.0-GA (20).
- uint8 inputs: from 8.6 on; that of 8.5 knows the type and its ONNX parser lists no Cast from it (8.5-GA and 8.6-GA,
  docs/operators.md).
- Jetson Nano has no int8: https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-825/support-matrix/index.html
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine_build.errors import BuildError
from engine_build.trtexec_files import BUILD_SH, README_TXT
from serve_app.golden import GOLDEN_NAME, Golden, difference, problem, read_golden
from serve_app.manifest import MANIFEST_NAME, Manifest, read_manifest
from serve_app.types import Logits

# onnx ships no usable annotations.
Model: TypeAlias = Any
Node: TypeAlias = Any

OPSET = 13
"""The newest that TensorRT 8.2 knows."""
UINT8_NAME, FLOAT_NAME = "model-trt8.onnx", "model-trt8-float-input.onnx"
_IR_VERSION = 7
_FLOAT, _FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def write_trtexec_script(
    folder: Path, target: Path, *, max_batch: int, opt_batch: int, workspace_mib: int | None = None
) -> list[Path]:
    """Writes what `trtexec` of TensorRT 8.2 to 11 compiles the prepared engine in `folder` from.

    Args:
        target: made if it is not there; files of the same names are replaced.
        max_batch, opt_batch: largest batch, and the one to tune for.
        workspace_mib: what TensorRT may use of the GPU's memory; None is its default.

    Returns:
        `model.onnx`, `manifest.json`, `golden.npz`, `labels.txt`, `build.sh`, `README.txt`, and `model-trt8*.onnx`
        where the network can be said in opset 13; where it cannot, `build.sh` says why.

    Raises:
        SetupError: not a prepared TensorRT engine, or batch sizes that do not fit together.
    """
    manifest = read_manifest(folder)
    if manifest.backend != "tensorrt":
        raise BuildError(f"{manifest.engine_name} is not a TensorRT engine; make one with engine-build prepare")
    if not 1 <= opt_batch <= max_batch:
        raise BuildError(f"--opt-batch {opt_batch} is not between 1 and --max-batch {max_batch}; lower it")
    golden = read_golden(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = [_copied(folder, target, name) for name in dict.fromkeys([*manifest.files, MANIFEST_NAME, GOLDEN_NAME])]
    without = _write_old(folder / manifest.artifact, target, golden, manifest)
    if without is None:
        written += [target / UINT8_NAME, target / FLOAT_NAME]
    labels, script, readme = target / "labels.txt", target / "build.sh", target / "README.txt"
    labels.write_text("\n".join(manifest.labels) + "\n", encoding="utf-8")
    script.write_text(_script(folder / manifest.artifact, manifest, (opt_batch, max_batch), workspace_mib, without))
    script.chmod(0o755)
    readme.write_text(_readme(folder / manifest.artifact, manifest), encoding="utf-8")
    return [*written, labels, script, readme]


def _copied(folder: Path, target: Path, name: str) -> Path:
    return Path(shutil.copyfile(folder / name, target / name))


def _write_old(onnx_path: Path, target: Path, golden: Golden, manifest: Manifest) -> str | None:
    """Writes the two files for TensorRT 8; says why it did not, where the network cannot be said in its opset."""
    for name in (UINT8_NAME, FLOAT_NAME):
        (target / name).unlink(missing_ok=True)  # of an earlier call
    try:
        model = lowered(onnx.load(str(onnx_path)))
        for name, variant in ((UINT8_NAME, model), (FLOAT_NAME, with_float_input(model))):
            _check(variant, golden, manifest)
            onnx.save(variant, str(target / name))
    except BuildError as error:
        return str(error)
    return None


def _check(model: Model, golden: Golden, manifest: Manifest) -> None:
    found = difference(golden, _answers(model, golden), manifest.precision)
    if wrong := problem(found, manifest.precision):
        raise BuildError(f"in opset {OPSET} the network answers otherwise: {wrong}; use TensorRT 10 or later")


def _answers(model: Model, golden: Golden) -> Logits:
    """Of onnxruntime, one picture at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Optimised, Q/DQ pairs become integer kernels, which on some CPUs saturate.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    is_float = session.get_inputs()[0].type == "tensor(float)"
    pictures = golden.pictures.astype(np.float32) if is_float else golden.pictures
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: pictures[at : at + 1]})[0] for at in range(len(pictures))])


def lowered(model: Model) -> Model:
    """The same network in float32 and opset 13, Q/DQ pairs kept. ONNX's own converter knows no way down for some nodes.

    Raises:
        BuildError: a node that opset 13 cannot say.
    """
    low = onnx.ModelProto()
    low.CopyFrom(model)
    graph = low.graph
    opset = next(one.version for one in low.opset_import if one.domain in ("", "ai.onnx"))
    _widen(graph)
    constants = {one.name: one for one in graph.initializer}
    for node in graph.node:
        _lower(node, opset, constants)
    low.ir_version = min(low.ir_version, _IR_VERSION)
    del low.opset_import[:]
    low.opset_import.append(helper.make_opsetid("", OPSET))
    return _tidy(low)


def with_float_input(model: Model) -> Model:
    """The model with pictures as float32 0..255 instead of uint8, for TensorRT before 8.6."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.input[0].type.tensor_type.elem_type = _FLOAT
    return _tidy(changed)


def _widen(graph: Any) -> None:
    """float16 to float32: before TensorRT 10 the builder chooses, and is told so by `--fp16`."""
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for one in node.attribute:
            if one.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(one.t)
            elif node.op_type == "Cast" and one.name == "to" and one.i == _FLOAT16:
                one.i = _FLOAT
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == _FLOAT16:
            value.type.tensor_type.elem_type = _FLOAT


def _widen_tensor(tensor: Any) -> None:
    if tensor.data_type == _FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _lower(node: Node, opset: int, constants: dict[str, Any]) -> None:
    try:
        old, new = onnx.defs.get_schema(node.op_type, OPSET), onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        raise BuildError(f"opset {OPSET} has no {node.op_type} ({node.name}); use TensorRT 10 or later") from None
    if node.op_type.startswith("Reduce") and "axes" in old.attributes and len(node.input) == 2:
        axes = constants.get(node.input[1])
        if axes is not None:
            node.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(axes).tolist()))
            del node.input[1:]
    for one in [one for one in node.attribute if one.name not in old.attributes]:
        if one != new.attributes[one.name].default_value and not _says_nothing(node, one.name, constants):
            raise BuildError(
                f"opset {OPSET} has no {one.name} of {node.op_type} ({node.name}); use TensorRT 10 or later"
            )
        node.attribute.remove(one)
    if len(node.input) > old.max_input:
        raise BuildError(f"in opset {OPSET} {node.op_type} has fewer inputs ({node.name}); use TensorRT 10 or later")


def _says_nothing(node: Node, attribute: str, constants: dict[str, Any]) -> bool:
    """Whether a newer attribute with another value than its default means the same as its absence."""
    if (node.op_type, attribute) == ("Reshape", "allowzero"):
        shape = constants.get(node.input[1])
        return shape is not None and 0 not in numpy_helper.to_array(shape)
    # Equal parts need no number of them; onnxruntime refuses unequal ones without their sizes.
    return (node.op_type, attribute) == ("Split", "num_outputs")


def _tidy(model: Model) -> Model:
    """Types inferred anew, casts from float32 to float32 and constants nobody reads gone.

    Raises:
        BuildError: it is not valid.
    """
    graph = model.graph
    del graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
        values = (*inferred.graph.input, *inferred.graph.value_info)
        types = {one.name: one.type.tensor_type.elem_type for one in values}
        for node in [one for one in graph.node if one.op_type == "Cast"]:
            if types.get(node.input[0]) == _FLOAT == next(one.i for one in node.attribute if one.name == "to"):
                _bypass(graph, node)
        read = {name for node in graph.node for name in node.input}
        for tensor in [one for one in graph.initializer if one.name not in read]:
            graph.initializer.remove(tensor)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BuildError(f"in opset {OPSET} the network is not valid ({reason}); use TensorRT 10 or later") from None
    return model


def _bypass(graph: Any, cast: Node) -> None:
    """Takes an idle node out; a graph's output keeps its name."""
    source, target = cast.input[0], cast.output[0]
    graph.node.remove(cast)
    if any(one.name == target for one in graph.output):
        source, target = target, source
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == target:
                    names[index] = source


def _shape(onnx_path: Path) -> tuple[str, str, tuple[int, int, int]]:
    """Names of input and output, and a picture's shape."""
    graph = onnx.load(str(onnx_path), load_external_data=False).graph
    _, *sizes = (one.dim_value for one in graph.input[0].type.tensor_type.shape.dim)
    height, width, channels = sizes
    return graph.input[0].name, graph.output[0].name, (height, width, channels)


def _script(
    onnx_path: Path, manifest: Manifest, batches: tuple[int, int], workspace_mib: int | None, without: str | None
) -> str:
    name, _, (height, width, channels) = _shape(onnx_path)
    words = {
        "ENGINE": manifest.engine_name,
        "NAME": f"{manifest.model}-{manifest.precision}",
        "PRECISION": manifest.precision,
        "INPUT": name,
        "SIZE": f"{height}x{width}x{channels}",
        "OPT": str(batches[0]),
        "MAX": str(batches[1]),
        "WORKSPACE": str(workspace_mib or ""),
        "WITHOUT": without or "",
    }
    script = BUILD_SH
    for key, value in words.items():
        script = script.replace(f"@{key}@", shlex.quote(value))
    return script


def _readme(onnx_path: Path, manifest: Manifest) -> str:
    name, output, shape = _shape(onnx_path)
    spec = manifest.input
    return README_TXT.format(
        engine=manifest.engine_name,
        plan=f"{manifest.model}-{manifest.precision}-trt<version>.plan",
        input=name,
        output=output,
        shape="x".join(str(size) for size in shape),
        height=spec.height,
        width=spec.width,
        resize=spec.resize_size,
        interpolation=spec.interpolation,
        mean=", ".join(f"{value:.4g}" for value in spec.mean),
        std=", ".join(f"{value:.4g}" for value in spec.std),
        classes=manifest.num_classes,
    )
