from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine_build import typed
from engine_build.errors import BuildError
from engine_build.trtexec import FLOAT_NAME, OPSET, UINT8_NAME, lowered, with_float_input, write_trtexec_script
from serve_app.golden import Golden, read_golden, write_golden
from serve_app.manifest import Manifest, Precision, read_manifest, sha256_of, write_manifest
from tests.engine_helpers import small_engines
from tests.fakes import CLASSES, SHAPE, manifest

BASH = shutil.which("bash") or "/bin/bash"
BANNERS = {
    "8.2.1": "[TensorRT v8201]",
    "8.5.2": "[TensorRT v8502]",
    "8.6.1": "[TensorRT v8601]",
    "9.3.0": "[TensorRT v9300]",
    "10.3.0": "[TensorRT v100300]",
    "11.4.0": "[TensorRT v110400] [b106]",
}
FAKE = """#!{bash}
printf '&&&& RUNNING TensorRT.trtexec {banner} # trtexec %s\\n' "$*"
[ "$1" = --help ] && exit 0
printf '%s\\n' "$@" -- >>{record}
for argument in "$@"; do
  case $argument in
    --saveEngine=*) [ -z "${{FAIL:-}}" ] || exit 1; printf plan >"${{argument#*=}}" ;;
    --loadEngine=*)
      printf '[11/24/2026-10:00:00] [I] Throughput: 1234.5 qps\\n'
      printf '[11/24/2026-10:00:00] [I] GPU Compute Time: min = 0.5 ms, max = 0.7 ms, median = 0.6 ms\\n'
      printf '[11/24/2026-10:00:00] [I] Throughput: the observed throughput computed by dividing\\n'
      ;;
  esac
done
"""


def float_net() -> onnx.ModelProto:
    """opset 20, with what opset 13 says otherwise: a mean with axes as input, a Split by number, allowzero."""
    weights = np.random.default_rng(3).normal(size=(6, 3, 1, 1)).astype(np.float32)
    head = np.random.default_rng(4).normal(size=(6, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT, saturate=1),
        helper.make_node("Conv", ["float", "weights"], ["features"]),
        helper.make_node("Split", ["features"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["right", "left"], ["swapped"], axis=1),
        helper.make_node("ReduceMean", ["swapped", "axes"], ["mean"], keepdims=1, noop_with_empty_axes=0),
        helper.make_node("Reshape", ["mean", "flat_shape"], ["flat"], allowzero=1),
        helper.make_node("Gemm", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.array([-1, 6], np.int64), "flat_shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answers(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": pictures})[0])


def prepared(root: Path, precision: Precision = "fp16", model: onnx.ModelProto | None = None) -> Path:
    """A prepared engine folder of `float_net`, typed as the real ones are."""
    folder = root / f"fake/tensorrt-{precision}"
    folder.mkdir(parents=True)
    source = root / "float.onnx"
    onnx.save(model or float_net(), source)
    (typed.to_fp32 if precision == "fp32" else typed.to_fp16)(source, folder / "model.onnx")
    pictures = np.random.default_rng(5).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    write_golden(folder, Golden(pictures, answers(onnx.load(folder / "model.onnx"), pictures)))
    files = {name: sha256_of(folder / name) for name in ("model.onnx", "golden.npz")}
    fields = {"backend": "tensorrt", "precision": precision, "artifact": "model.onnx", "files": files}
    write_manifest(folder, manifest(**fields))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trtexec")
    write_trtexec_script(prepared(root), root / "out", max_batch=8, opt_batch=4)
    return root / "out"


def build(folder: Path, tools: Path, version: str | None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs build.sh with a trtexec of that version in PATH, or with none."""
    tools.mkdir(exist_ok=True)
    if version:
        fake = tools / "trtexec"
        fake.write_text(FAKE.format(bash=BASH, banner=BANNERS[version], record=tools / "record"))
        fake.chmod(0o755)
    path = f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin"
    command = [BASH, str(folder / "build.sh")]
    return subprocess.run(command, env={"PATH": path, **env}, capture_output=True, text=True, timeout=30)


def calls(tools: Path) -> list[list[str]]:
    """Arguments of each call but --help."""
    calls: list[list[str]] = [[]]
    for line in (tools / "record").read_text().splitlines():
        if line == "--":
            calls.append([])
        else:
            calls[-1].append(line)
    return calls[:-1]


def compile_call(written: Path, tools: Path, version: str, **env: str) -> list[str]:
    done = build(written, tools, version, MEASURE="0", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    [call] = calls(tools)
    return call


def test_the_folder_is_complete_and_an_engine_itself(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        *("model.onnx", "manifest.json", "golden.npz", "labels.txt", "build.sh", "README.txt"),
        *(UINT8_NAME, FLOAT_NAME),
    }
    assert read_manifest(written).engine_name == "fake/tensorrt-fp16"
    assert (written / "labels.txt").read_text().splitlines() == [f"label {index}" for index in range(CLASSES)]
    assert os.access(written / "build.sh", os.X_OK)
    readme = (written / "README.txt").read_text()
    assert "image: (n, 4x4x3) uint8" in readme
    assert "0.485, 0.456, 0.406" in readme
    assert f"logits: (n, {CLASSES}) float32" in readme


def test_the_script_is_sound_bash(written: Path) -> None:
    subprocess.run([BASH, "-n", str(written / "build.sh")], check=True)
    assert "@" not in (written / "build.sh").read_text().replace("$@", "").replace("[@]", "")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(written: Path) -> None:
    subprocess.run(["shellcheck", str(written / "build.sh")], check=True)


SHAPES = ["--minShapes=image:1x4x4x3", "--optShapes=image:4x4x4x3", "--maxShapes=image:8x4x4x3"]


@pytest.mark.parametrize(
    ("version", "onnx_name", "options"),
    [
        ("8.2.1", FLOAT_NAME, ["--buildOnly", "--workspace=1024", "--fp16"]),
        ("8.5.2", FLOAT_NAME, ["--buildOnly", "--fp16"]),
        ("8.6.1", UINT8_NAME, ["--skipInference", "--fp16"]),
        ("10.3.0", "model.onnx", ["--stronglyTyped", "--skipInference"]),
        ("11.4.0", "model.onnx", ["--skipInference"]),
    ],
)
def test_each_release_gets_the_options_it_knows(
    written: Path, tmp_path: Path, version: str, onnx_name: str, options: list[str]
) -> None:
    call = compile_call(written, tmp_path / "tools", version)
    plan = f"fake-fp16-trt{version}.plan"
    assert call == [f"--onnx={onnx_name}", *SHAPES, *options, "--noTF32", f"--saveEngine={plan}.part"]
    assert (written / plan).read_text() == "plan"


def test_tf32_and_a_workspace_are_choices(written: Path, tmp_path: Path) -> None:
    call = compile_call(written, tmp_path / "a", "8.2.1", TF32="1", WORKSPACE_MIB="512")
    assert "--noTF32" not in call
    assert "--workspace=512" in call
    assert "--memPoolSize=workspace:512" in compile_call(written, tmp_path / "b", "8.6.1", WORKSPACE_MIB="512")
    assert "--memPoolSize=workspace:512" in compile_call(written, tmp_path / "c", "11.4.0", WORKSPACE_MIB="512")


def test_the_workspace_of_the_command_is_in_the_script(tmp_path: Path) -> None:
    write_trtexec_script(prepared(tmp_path), tmp_path / "out", max_batch=2, opt_batch=1, workspace_mib=256)
    assert "--memPoolSize=workspace:256" in compile_call(tmp_path / "out", tmp_path / "tools", "10.3.0")


def test_fp32_asks_tensorrt_8_for_nothing_lower(tmp_path: Path) -> None:
    write_trtexec_script(prepared(tmp_path, "fp32"), tmp_path / "out", max_batch=2, opt_batch=1)
    assert not {"--fp16", "--int8"} & set(compile_call(tmp_path / "out", tmp_path / "tools", "8.6.1"))


def as_int8(written: Path, target: Path) -> Path:
    """The same folder, said to be int8: the script's half of it, without the minute that calibrating takes."""
    shutil.copytree(written, target)
    script = target / "build.sh"
    script.write_text(script.read_text().replace("precision=fp16", "precision=int8"))
    return target


def test_int8_is_refused_on_a_jetson_nano_and_nowhere_else(written: Path, tmp_path: Path) -> None:
    folder = as_int8(written, tmp_path / "int8")
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Nano Developer Kit\0")
    done = build(folder, tmp_path / "tools", "8.2.1", DEVICE_TREE=str(tmp_path))
    assert done.returncode == 1
    assert "no int8 hardware" in done.stderr
    assert not (tmp_path / "tools/record").exists()
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    call = compile_call(folder, tmp_path / "tools", "8.6.1", DEVICE_TREE=str(tmp_path))
    assert call[5:7] == ["--int8", "--fp16"]


@pytest.mark.parametrize(
    ("version", "run_only", "with_copies"),
    [
        ("8.6.1", ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"], ["--useCudaGraph", "--useSpinWait"]),
        ("11.4.0", [], ["--includeDataTransfers"]),
    ],
)
def test_it_measures_with_and_without_copies(
    written: Path, tmp_path: Path, version: str, run_only: list[str], with_copies: list[str]
) -> None:
    done = build(written, tmp_path, version)
    assert done.returncode == 0, done.stderr
    _, *timings = calls(tmp_path)
    common = ["--warmUp=500", "--duration=3"]
    expected = [
        [f"--loadEngine=fake-fp16-trt{version}.plan", f"--shapes=image:{batch}x4x4x3", *common, *options]
        for batch in (1, 4, 8)
        for options in (run_only, with_copies)
    ]
    assert timings == expected
    assert done.stdout.count("  Throughput: 1234.5 qps") == 6
    assert "the observed throughput" not in done.stdout


def test_without_trtexec_it_says_where_that_comes_from(written: Path, tmp_path: Path) -> None:
    if Path("/usr/src/tensorrt/bin/trtexec").exists():
        pytest.skip("this machine has trtexec")
    done = build(written, tmp_path / "tools", None)
    assert done.returncode == 1
    assert "there is no trtexec at /usr/src/tensorrt/bin/trtexec or in PATH" in done.stderr


@pytest.mark.parametrize(("version", "told"), [("9.3.0", "not 9.3"), ("10.3.0", "did not compile model.onnx")])
def test_what_cannot_be_is_said(written: Path, tmp_path: Path, version: str, told: str) -> None:
    done = build(written, tmp_path / "tools", version, FAIL="1")
    assert done.returncode == 1
    assert told in done.stderr


def test_a_trtexec_that_does_not_say_its_version_is_refused(written: Path, tmp_path: Path) -> None:
    strange = tmp_path / "trtexec"
    strange.write_text(f"#!{BASH}\necho error while loading shared libraries: libnvinfer.so\nexit 127\n")
    strange.chmod(0o755)
    done = build(written, tmp_path / "tools", None, TRTEXEC=str(strange))
    assert done.returncode == 1
    assert "libnvinfer.so" in done.stderr


def test_a_dry_run_runs_nothing(written: Path, tmp_path: Path) -> None:
    done = build(written, tmp_path, "10.3.0", DRY_RUN="1")
    assert done.returncode == 0
    assert "+ " in done.stdout
    assert not (tmp_path / "record").exists()


def test_both_files_for_old_releases_answer_as_the_typed_one(written: Path) -> None:
    golden = read_golden(written)
    old, floats = onnx.load(written / UINT8_NAME), onnx.load(written / FLOAT_NAME)
    for model in (old, floats):
        assert model.opset_import[0].version == OPSET
        assert not {one.data_type for one in model.graph.initializer} & {TensorProto.FLOAT16}
    assert np.abs(answers(old, golden.pictures) - golden.logits).max() < 0.01 * np.abs(golden.logits).max()
    assert np.array_equal(answers(old, golden.pictures), answers(floats, golden.pictures.astype(np.float32)))
    assert not any(node.op_type == "Cast" for node in floats.graph.node)


def test_lowering_changes_no_answer() -> None:
    pictures = np.random.default_rng(6).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    model = float_net()
    low = lowered(model)
    assert model.opset_import[0].version == 20  # it is a copy
    assert np.array_equal(answers(low, pictures), answers(model, pictures))
    assert np.array_equal(answers(with_float_input(low), pictures.astype(np.float32)), answers(model, pictures))


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (helper.make_node("Gelu", ["logits"], ["more"]), "has no Gelu"),
        (helper.make_node("Shape", ["logits"], ["more"], start=0, end=1), "has no end of Shape"),
    ],
)
def test_what_opset_13_cannot_say_is_named(node: onnx.NodeProto, told: str) -> None:
    model = float_net()
    model.graph.node.append(node)
    with pytest.raises(BuildError, match=told):
        lowered(model)


def test_a_network_that_cannot_be_lowered_still_gets_a_script(tmp_path: Path) -> None:
    model = float_net()
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("Gelu", ["scores"], ["logits"]))
    paths = write_trtexec_script(prepared(tmp_path, "fp32", model), tmp_path / "out", max_batch=2, opt_batch=1)
    assert {path.name for path in paths}.isdisjoint({UINT8_NAME, FLOAT_NAME})
    done = build(tmp_path / "out", tmp_path / "old", "8.6.1")
    assert done.returncode == 1
    assert "opset 13 has no Gelu" in done.stderr
    assert compile_call(tmp_path / "out", tmp_path / "new", "11.4.0")[0] == "--onnx=model.onnx"


def test_a_lowered_network_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    golden = read_golden(folder)
    write_golden(folder, Golden(golden.pictures, golden.logits[::-1].copy()))
    written = read_manifest(folder, check_files=False)
    write_manifest(folder, written.model_copy(update={"files": {"model.onnx": written.files["model.onnx"]}}))
    write_trtexec_script(folder, tmp_path / "out", max_batch=2, opt_batch=1)
    assert not (tmp_path / "out" / UINT8_NAME).exists()
    assert "answers otherwise" in (tmp_path / "out/build.sh").read_text()


def test_other_engines_and_wrong_batches_are_refused(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    with pytest.raises(BuildError, match="--opt-batch 4 is not between 1 and --max-batch 2"):
        write_trtexec_script(folder, tmp_path / "out", max_batch=2, opt_batch=4)
    other: Manifest = read_manifest(folder).model_copy(update={"backend": "onnx"})
    write_manifest(folder, other)
    with pytest.raises(BuildError, match="is not a TensorRT engine"):
        write_trtexec_script(folder, tmp_path / "out", max_batch=2, opt_batch=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.engines
def test_a_real_network_goes_down_to_opset_13(tmp_path: Path) -> None:
    [exported] = (small_engines() / ".cache").glob("*.onnx")
    typed.to_fp32(exported, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    pictures = np.random.default_rng(6).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    expected = answers(model, pictures)
    assert np.abs(answers(lowered(model), pictures) - expected).max() <= 1e-5 * np.abs(expected).max()
