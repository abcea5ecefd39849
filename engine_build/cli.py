"""`engine-build`: makes, checks and lists the engines that the service serves."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engine_build.ensure import missing_engines, present_engine
from engine_build.errors import BuildError
from engine_build.options import DEFAULT_CPU_BATCH, DEFAULT_GPU_BATCH, parser
from engine_build.progress import say
from engine_build.report import page, plan_summary, summary, table
from engine_build.request import BuildRequest, Checkpoint
from engine_build.simulate import parse_latency, simulate
from engine_build.store import EngineId, EngineStore, parse_engine_id
from engine_build.tensorrt.compile import CompileOptions, compile_engine, tuned_batch
from engine_build.zoo import check_own_name
from serve_app.errors import GpuMissing, SetupError
from serve_app.manifest import MANIFEST_NAME, Manifest, read_manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 cannot be done (one line on stderr says why), 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        return status
    except SetupError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"no space left on the disk{_at(error)}; free some and run this again")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return _fail(f"may not write{_at(error)}: {error.strerror}; pass another --engines-dir or --weights-dir")
        raise


def _build(arguments: argparse.Namespace) -> int:
    _run_build(_request(arguments), _compile_options(arguments) if arguments.backend == "tensorrt" else None)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from engine_build.reverify import reverify  # torch takes seconds to import

    folder = _engine_folder(arguments)
    manifest = reverify(
        folder,
        weights_dir=arguments.weights_dir,
        weights_file=arguments.weights,
        pictures=arguments.pictures,
        labels_csv=arguments.labels_csv,
        max_batch=arguments.max_batch or DEFAULT_CPU_BATCH,
    )
    say(summary(manifest, folder))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    folders = EngineStore(arguments.engines_dir).folders()
    say(table(folders) if folders else f"no engines in {arguments.engines_dir}; build one with: engine-build build")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    folder = _engine_folder(arguments)
    manifest = read_manifest(folder)
    say(json.dumps(manifest.model_dump(mode="json"), indent=1) if arguments.json else page(manifest, folder))
    return 0


def _ensure(arguments: argparse.Namespace) -> int:
    for request, plan in missing_engines(arguments.config, arguments.weights_dir):
        folder = present_engine(request)
        if folder and plan:
            _run_compile(folder, plan)
        else:
            say(f"engine {request.engine_id()} is not there yet, building it in {request.engines_dir}")
            _run_build(request, plan)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    arguments.backend = "tensorrt"
    name = _run_build(_request(arguments)).engine_name
    say(f"next, on each kind of GPU that serves it (torch is not needed there): engine-build compile {name}")
    return 0


def _compile(arguments: argparse.Namespace) -> int:
    _run_compile(_engine_folder(arguments), _compile_options(arguments))
    return 0


def _trtexec_script(arguments: argparse.Namespace) -> int:
    from engine_build.trtexec import write_trtexec_script  # onnx takes a moment to import

    most = arguments.max_batch or DEFAULT_GPU_BATCH
    files = write_trtexec_script(
        _engine_folder(arguments),
        arguments.out,
        max_batch=most,
        opt_batch=tuned_batch(arguments.opt_batch, most),
        workspace_mib=arguments.workspace_mib,
    )
    say("\n".join(str(path) for path in files))
    say(f"copy {arguments.out} to the machine with the GPU, and run build.sh there")
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    table = parse_latency(arguments.batch_ms)
    manifest, folder = simulate(check_own_name(arguments.name), table, arguments.engines_dir, arguments.version)
    say(summary(manifest, folder))
    return 0


def _run_build(request: BuildRequest, plan: CompileOptions | None = None) -> Manifest:
    """Builds; a TensorRT engine is compiled too, if it is said how."""
    from engine_build.build import build  # torch takes seconds to import

    manifest = build(request)
    folder = EngineStore(request.engines_dir).folder(EngineId.of(manifest))
    say(summary(manifest, folder))
    try:
        if plan is not None:
            _run_compile(folder, plan)
    except GpuMissing as error:
        raise BuildError(
            f"{manifest.engine_name} is prepared in {folder} but not compiled: {error}; where the GPU is, run: "
            f"engine-build compile {manifest.engine_name} --engines-dir DIR"
        ) from None
    return manifest


def _run_compile(folder: Path, options: CompileOptions) -> None:
    record, path = compile_engine(folder, options)
    say(f"{path}\n  {plan_summary(record)}")


def _compile_options(arguments: argparse.Namespace) -> CompileOptions:
    most = arguments.max_batch or DEFAULT_GPU_BATCH
    return CompileOptions(
        max_batch=most,
        opt_batch=tuned_batch(arguments.opt_batch, most),
        tf32=arguments.tf32,
        workspace_mib=arguments.workspace_mib,
        optimization_level=arguments.optimization_level,
        force=arguments.force,
    )


def _request(arguments: argparse.Namespace) -> BuildRequest:
    if arguments.labels_csv and not arguments.pictures:
        raise BuildError("--labels-csv names pictures of a folder; pass --pictures DIR with it")
    checkpoint = _checkpoint(arguments)
    request = BuildRequest(
        model=check_own_name(arguments.name or checkpoint.path.stem) if checkpoint else arguments.model,
        backend=arguments.backend,
        precision=arguments.precision,
        engines_dir=arguments.engines_dir,
        weights_dir=arguments.weights_dir,
        untrained=arguments.untrained,
        weights=arguments.weights,
        checkpoint=checkpoint,
        calibration=arguments.calibration,
        pictures=arguments.pictures,
        labels_csv=arguments.labels_csv,
        max_batch=arguments.max_batch or DEFAULT_CPU_BATCH,
        force=arguments.force,
        version=arguments.version,
    )
    request.engine_id().check_buildable()
    return request


def _checkpoint(arguments: argparse.Namespace) -> Checkpoint | None:
    """--checkpoint and its companions, which come together or not at all."""
    companions = {"--arch": arguments.arch, "--labels": arguments.labels}
    if arguments.checkpoint is None:
        extra = [option for option, value in {**companions, "--name": arguments.name}.items() if value]
        if extra:
            raise BuildError(f"{extra[0]} describes your own checkpoint; pass --checkpoint FILE with it")
        return None
    lacking = [option for option, value in companions.items() if not value]
    if lacking:
        raise BuildError(f"--checkpoint needs {' and '.join(lacking)} too; see engine-build build --help")
    if arguments.untrained or arguments.weights or arguments.model != "auto":
        raise BuildError("--checkpoint is the model and its weights; leave out --model, --weights and --untrained")
    return Checkpoint(arguments.checkpoint, arguments.arch, arguments.labels)


def _engine_folder(arguments: argparse.Namespace) -> Path:
    """`engine` as a path to an engine folder, or as MODEL[@VERSION]/BACKEND-PRECISION below the engines folder."""
    path = Path(arguments.engine)
    if (path / MANIFEST_NAME).is_file():
        return path
    return EngineStore(arguments.engines_dir).folder(parse_engine_id(arguments.engine))


def _fail(message: str) -> int:
    print(f"engine-build: {message}", file=sys.stderr)
    return 1


def _at(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""


def _parser() -> argparse.ArgumentParser:
    return parser(
        {
            "build": _build,
            "prepare": _prepare,
            "compile": _compile,
            "trtexec-script": _trtexec_script,
            "verify": _verify,
            "list": _list,
            "info": _info,
            "simulate": _simulate,
            "ensure": _ensure,
        }
    )
