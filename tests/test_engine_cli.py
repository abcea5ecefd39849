from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine_build.cli import main
from engine_build.ensure import missing_engines
from engine_build.errors import BuildError
from engine_build.report import summary
from engine_build.tensorrt.compile import CompileOptions
from engine_build.zoo import new_module
from serve_app.manifest import read_manifest
from serve_app.plans import PlanKey
from tests.engine_helpers import SAMPLES, SMALL, SMALL_ENGINE, leftovers, own_engines, small_engines
from tests.test_plans import HERE, KEY, add_plan, with_change
from tests.tiny_engine import make_gpu_engine

COMMAND = Path(sys.executable).with_name("engine-build")


def config(folder: Path, engine: str) -> str:
    path = folder / "config.yaml"
    path.write_text(f"applications:\n- import_path: serve_app.app:build\n  args:\n    engine: {engine}\n")
    return str(path)


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert main(argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("engine-build: ")
    return line


@pytest.mark.parametrize("argv", [["--help"], ["build", "--help"]])
def test_help_has_examples(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    assert "engine-build build --model resnet50" in capsys.readouterr().out


def test_commands_that_build_nothing_import_no_torch() -> None:
    code = (
        "import sys; from engine_build.cli import main; main(['list', '--engines-dir', 'none']);"
        "print([name for name in ('torch', 'torchvision', 'openvino', 'nncf', 'onnx') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"


@pytest.mark.engines
def test_list_and_info(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    engines = own_engines(tmp_path)
    (engines / "broken" / "onnx-fp32").mkdir(parents=True)
    (engines / "broken" / "onnx-fp32" / "manifest.json").write_text("{}")
    capsys.readouterr()
    assert main(["list", "--engines-dir", str(engines)]) == 0
    head, broken, small = capsys.readouterr().out.splitlines()
    assert head.startswith("ENGINE")
    assert "manifest is not valid" in broken
    assert small.split()[:4] == [SMALL_ENGINE, "untrained", "1000", "100.0%"]
    assert main(["info", SMALL_ENGINE, "--engines-dir", str(engines)]) == 0
    assert "tench, goldfish" in capsys.readouterr().out
    assert main(["info", str(engines / SMALL_ENGINE), "--json"]) == 0
    assert f'"model": "{SMALL}"' in capsys.readouterr().out
    assert "no engine at" in failure(capsys, "info", "none/onnx-fp32", "--engines-dir", str(engines))


@pytest.mark.engines
def test_what_is_built_is_not_built_again(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = small_engines() / SMALL_ENGINE / "manifest.json"
    before = manifest.stat().st_mtime_ns
    capsys.readouterr()
    assert main(["build", "--model", SMALL, "--untrained", "--engines-dir", str(small_engines())]) == 0
    assert f"{SMALL_ENGINE} is already built" in capsys.readouterr().out
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.engines
def test_ensure_is_fast_where_the_engine_is_there(tmp_path: Path) -> None:
    path = config(tmp_path, f"{{model: {SMALL}, engines_dir: {own_engines(tmp_path)}}}")
    started_s = time.monotonic()
    done = subprocess.run([COMMAND, "ensure", "--config", path], capture_output=True, text=True, check=True)
    assert time.monotonic() - started_s < 2  # 0.6 s on an idle machine; importing torch alone takes 2
    assert done.stdout.startswith(f"engine {SMALL_ENGINE} is ready in ")


@pytest.mark.engines
def test_ensure_auto_takes_what_the_server_would_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = own_engines(tmp_path)
    path = config(tmp_path, f"{{precision: int8, engines_dir: {engines}}}")
    manifest = read_manifest(engines / SMALL_ENGINE)
    for model, trained, ready in [("resnet18", False, False), ("efficientnet_lite0", True, True)]:
        folder = shutil.copytree(engines / SMALL_ENGINE, engines / model / "openvino-int8")
        changed = manifest.model_copy(update={"model": model, "precision": "int8", "trained": trained})
        (folder / "manifest.json").write_text(changed.model_dump_json())
        capsys.readouterr()
        assert main(["ensure", "--config", path]) == (0 if ready else 1)
    assert "engine efficientnet_lite0/openvino-int8 is ready" in capsys.readouterr().out


def test_ensure_says_by_which_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = tmp_path / "none"
    line = failure(capsys, "ensure", "--config", config(tmp_path, f"{{precision: int8, engines_dir: {engines}}}"))
    command = "engine-build build --backend openvino --precision int8 --model auto --calibration DIR --engines-dir"
    assert f"{command} {engines}" in line
    line = failure(capsys, "ensure", "--config", config(tmp_path, f"{{model: birds, engines_dir: {engines}}}"))
    assert "--checkpoint WEIGHTS.pt --arch ARCHITECTURE --labels LABELS.txt --name birds" in line
    line = failure(capsys, "ensure", "--config", config(tmp_path, "{backend: torchscript, precision: int8}"))
    assert "torchscript engines are not built in int8" in line
    assert "did you mean 'model'" in failure(capsys, "ensure", "--config", config(tmp_path, "{modle: resnet18}"))
    assert "does not exist" in failure(capsys, "ensure", "--config", str(tmp_path / "none.yaml"))


def test_requests_that_cannot_be_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    engines = ["--engines-dir", str(tmp_path)]
    assert "pass --calibration DIR" in failure(capsys, "build", "--model", SMALL, "--precision", "int8", *engines)
    assert "there are openvino/fp32" in failure(capsys, "build", "--backend", "onnx", "--precision", "int8", *engines)
    assert "--checkpoint needs --arch and --labels" in failure(capsys, "build", "--checkpoint", "w.pt", *engines)
    assert "pass --checkpoint FILE" in failure(capsys, "build", "--arch", "resnet18", *engines)
    assert "cannot be read" in failure(capsys, "build", "--model", SMALL, "--weights", "none.pt", *engines)
    assert leftovers(tmp_path) == []


@pytest.mark.engines
def test_your_own_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    torch.save({"state_dict": new_module(SMALL, 7).state_dict()}, tmp_path / "birds.pt")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"bird {index}" for index in range(7)))
    build = ["build", "--checkpoint", str(tmp_path / "birds.pt"), "--arch", SMALL, "--max-batch", "1"]
    build += ["--labels", str(labels), "--engines-dir", str(tmp_path / "engines"), "--backend", "torchscript"]
    assert main(build) == 0
    manifest = read_manifest(tmp_path / "engines" / "birds" / "torchscript-fp32")
    assert manifest.labels[6] == "bird 6"
    assert (manifest.model, manifest.architecture, manifest.trained) == ("birds", SMALL, True)
    assert manifest.weights.source == "file"
    capsys.readouterr()
    assert main(build) == 0
    assert "already built" in capsys.readouterr().out
    engines = ["--engines-dir", str(tmp_path / "engines"), "--max-batch", "1"]
    assert main(["verify", "birds/torchscript-fp32", "--weights", str(tmp_path / "birds.pt"), *engines]) == 0
    labels.write_text("one\ntwo\n")
    assert "birds.pt has 7 classes, the labels are 2" in failure(capsys, *build)
    assert read_manifest(tmp_path / "engines" / "birds" / "torchscript-fp32").num_classes == 7


@pytest.fixture(scope="module")
def resnet_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resnet") / "engines"


@pytest.mark.engines
@pytest.mark.parametrize(
    ("backend", "precision"),
    [("openvino", "fp32"), ("onnx", "fp32"), ("torchscript", "fp32"), ("openvino", "int8")],
)
def test_untrained_resnet18_agrees_on_every_backend(backend: str, precision: str, resnet_engines: Path) -> None:
    command = ["build", "--model", "resnet18", "--untrained", "--backend", backend, "--precision", precision]
    command += ["--engines-dir", str(resnet_engines), "--max-batch", "1"]
    assert main([*command, *(["--calibration", str(SAMPLES)] if precision == "int8" else [])]) == 0
    manifest = read_manifest(resnet_engines / "resnet18" / f"{backend}-{precision}")
    assert not manifest.trained
    assert manifest.weights.source == "untrained"
    assert manifest.verify is not None
    if precision == "fp32":
        assert manifest.verify.top1_agreement == 1.0
        assert manifest.verify.max_logit_error < 1e-3
    else:
        assert 0 < manifest.verify.max_logit_error < 10
    assert leftovers(resnet_engines) == []


@pytest.mark.engines
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    command = [COMMAND, "build", "--model", SMALL, "--untrained", "--engines-dir", str(tmp_path), "--backend", "onnx"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where the tests run in the background
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("[1/3]"):
                break
        assert list(tmp_path.glob("*/.building-*"))
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert leftovers(tmp_path) == []
    assert not list(tmp_path.glob("*/*fp32"))


no_driver = pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver")
ON_GPU = "backend: tensorrt, precision: fp16, model: fake"


@pytest.fixture
def on_this_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.runtime.tensorrt.machine.this_machine", lambda: HERE)


@no_driver
def test_what_needs_a_gpu_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = make_gpu_engine(tmp_path, precision="fp16")
    before = sorted(path.name for path in folder.iterdir())
    path = config(tmp_path, f"{{{ON_GPU}, engines_dir: {tmp_path}}}")
    for argv in (["ensure", "--config", path], ["compile", str(folder)]):
        line = failure(capsys, *argv)
        assert "this machine has no NVIDIA driver (libcuda.so.1)" in line
        assert "configs/cpu.yaml" in line
    assert sorted(path.name for path in folder.iterdir()) == before


def test_compile_wants_a_tensorrt_engine_and_batches_that_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_this_gpu: None
) -> None:
    folder, _ = make_gpu_engine(tmp_path, precision="fp16")
    line = failure(capsys, "compile", str(folder), "--max-batch", "8", "--opt-batch", "9")
    assert "--opt-batch 9 is not between 1 and --max-batch 8; lower it" in line
    assert "no engine at" in failure(capsys, "compile", "none/tensorrt-fp16", "--engines-dir", str(tmp_path))
    (tmp_path / "other").mkdir()
    simulated = ["simulate", "--name", "other", "1:5", "--engines-dir", str(tmp_path)]
    assert main(simulated) == 0
    line = failure(capsys, "compile", "other/simulated-fp32", "--engines-dir", str(tmp_path))
    assert "is not a TensorRT engine; make one with engine-build prepare" in line


def test_prepare_says_what_it_lacks_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare = ["prepare", "--model", SMALL, "--untrained", "--engines-dir", str(tmp_path)]
    assert "pass --calibration DIR" in failure(capsys, *prepare, "--precision", "int8")
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("on_this_gpu")
def test_ensure_wants_a_plan_for_this_gpu_that_takes_the_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, manifest = make_gpu_engine(tmp_path, precision="fp16")
    engine = f"{{{ON_GPU}, engines_dir: {tmp_path}}}\n    batching: {{max_batch_size: 24}}"
    path = Path(config(tmp_path, engine))
    key = KEY.model_copy(update={"onnx_sha256": manifest.files["model.onnx"]})

    def missing() -> list[CompileOptions | None]:
        return [plan for _, plan in missing_engines(path, tmp_path)]

    wanted = [CompileOptions(max_batch=24, opt_batch=16)]
    assert missing() == wanted
    add_plan(folder, with_change(key, "machine.gpu", "another"))
    assert missing() == wanted
    add_plan(folder, with_change(key, "profile.max_batch", 23), created_utc="2026-05-01T00:00:00+00:00")
    assert missing() == wanted
    plan = add_plan(folder, key)  # an older one, which takes more
    capsys.readouterr()
    assert missing() == []
    assert f"engine fake/tensorrt-fp16 is ready in {tmp_path}" in capsys.readouterr().out
    plan.write_bytes(b"changed")
    assert missing() == wanted


def test_ensure_needs_no_gpu_for_a_stand_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_gpu_engine(tmp_path, precision="fp16")
    path = config(tmp_path, f"{{{ON_GPU}, engines_dir: {tmp_path}}}\n    runtime: {{device: stand_in}}")
    assert main(["ensure", "--config", path]) == 0
    assert "fake/tensorrt-fp16 is ready" in capsys.readouterr().out


@pytest.mark.usefixtures("on_this_gpu")
def test_what_is_compiled_is_not_compiled_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, manifest = make_gpu_engine(tmp_path, precision="fp16")
    key = CompileOptions(max_batch=8, opt_batch=8).key(manifest, HERE)
    plan = add_plan(folder, key)
    capsys.readouterr()
    assert main(["compile", str(folder), "--max-batch", "8"]) == 0
    said = capsys.readouterr().out
    assert "fake/tensorrt-fp16 is already compiled for NVIDIA L4" in said
    assert str(plan) in said


def test_the_key_is_all_that_was_asked_for(tmp_path: Path) -> None:
    _, manifest = make_gpu_engine(tmp_path, precision="fp16")
    options = CompileOptions(max_batch=32, opt_batch=8, tf32=True, workspace_mib=512, optimization_level=5)
    wanted = PlanKey.model_validate(
        {
            "onnx_sha256": manifest.files["model.onnx"],
            "precision": "fp16",
            "profile": {"min_batch": 1, "opt_batch": 8, "max_batch": 32},
            "builder": {"tf32": True, "workspace_mib": 512, "optimization_level": 5},
            "machine": HERE.model_dump(),
        }
    )
    assert options.key(manifest, HERE) == wanted
    for most, best in [(8, 9), (8, 0)]:
        with pytest.raises(BuildError, match=f"--opt-batch {best} is not between 1 and --max-batch {most}"):
            CompileOptions(max_batch=most, opt_batch=best).key(manifest, HERE)


def test_the_summary_lists_the_plans(tmp_path: Path) -> None:
    folder, manifest = make_gpu_engine(tmp_path, precision="fp16")
    assert "plans      none; on each kind of GPU that serves it: engine-build compile" in summary(manifest, folder)
    key = KEY.model_copy(update={"onnx_sha256": manifest.files["model.onnx"]})
    add_plan(folder, key)
    add_plan(folder, with_change(key, "builder.tf32", True), created_utc="2026-02-01T00:00:00+00:00")
    newer, older = (line for line in summary(manifest, folder).splitlines() if line.startswith("  plan "))
    assert newer.replace("TF32 on", "TF32 off") == older
    assert older == (
        "  plan       NVIDIA L4, TensorRT 11.4.0.106, batches to 64 (tuned for 16), layers 3 fp16, TF32 off, "
        "8,000 pictures/s with copies"
    )
