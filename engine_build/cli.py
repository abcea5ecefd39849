"""`engine-build`: makes, checks and lists the engines that the service serves."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from engine_build.download import DEFAULT_WEIGHTS_DIR
from engine_build.ensure import missing_engines
from engine_build.errors import BuildError
from engine_build.progress import say
from engine_build.report import page, summary, table
from engine_build.request import BuildRequest, Checkpoint
from engine_build.simulate import parse_latency, simulate
from engine_build.store import BUILDABLE, EngineStore, parse_engine_id
from engine_build.zoo import ARCHITECTURES, FLAGSHIP, PACKAGED, check_own_name
from serve_app.errors import SetupError
from serve_app.manifest import MANIFEST_NAME, Precision, read_manifest

_EXAMPLES = f"""\
examples:
  engine-build build                                     {FLAGSHIP}, or {PACKAGED} where its weights cannot be had
  engine-build build --model resnet50 --backend onnx
  engine-build build --model {PACKAGED} --precision int8 --calibration photos/
  engine-build build --model resnet18 --untrained        random weights, to measure throughput
  engine-build build --checkpoint best.pt --arch resnet18 --labels labels.txt --name birds
  engine-build verify {FLAGSHIP}/openvino-fp32 --pictures photos/
  engine-build simulate --name slow 1:20 16:120           computes nothing, takes its time: to rehearse scaling
  engine-build ensure --config configs/local.yaml        what `make serve` does before it starts
"""


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
    _run_build(_request(arguments))
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
        max_batch=arguments.max_batch,
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
    for request in missing_engines(arguments.config, arguments.weights_dir):
        say(f"engine {request.engine_id()} is not there yet, building it in {request.engines_dir}")
        _run_build(request)
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    table = parse_latency(arguments.batch_ms)
    manifest, folder = simulate(check_own_name(arguments.name), table, arguments.engines_dir)
    say(summary(manifest, folder))
    return 0


def _run_build(request: BuildRequest) -> None:
    from engine_build.build import build  # torch takes seconds to import

    manifest = build(request)
    folder = EngineStore(request.engines_dir).folder(parse_engine_id(manifest.engine_name))
    say(summary(manifest, folder))


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
        max_batch=arguments.max_batch,
        force=arguments.force,
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
    """`engine` as a path to an engine folder, or as MODEL/BACKEND-PRECISION below the engines folder."""
    path = Path(arguments.engine)
    if (path / MANIFEST_NAME).is_file():
        return path
    return EngineStore(arguments.engines_dir).folder(parse_engine_id(arguments.engine))


def _fail(message: str) -> int:
    print(f"engine-build: {message}", file=sys.stderr)
    return 1


def _at(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""


def _positive(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 512:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 512")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="engine-build",
        description="Builds inference engines from torch models, and checks each against torch before it is kept.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_build(commands)
    verify = _command(commands, "verify", _verify, "compare an engine on disk with torch again, and renew its figures")
    _add_engine(verify)
    verify.add_argument("--weights", type=Path, metavar="FILE", help="the weights, if a local file was built from")
    _add_comparison(verify)
    _add_weights_dir(verify)
    _command(commands, "list", _list, "list the engines there are")
    info = _command(commands, "info", _info, "everything known of one engine")
    _add_engine(info)
    info.add_argument("--json", action="store_true", help="print the manifest as it is")
    simulated = _command(commands, "simulate", _simulate, "write an engine that only takes time, to rehearse scaling")
    simulated.add_argument("--name", required=True, help="what the service calls it")
    simulated.add_argument(
        "batch_ms", nargs="+", metavar="SIZE:MS", help="milliseconds of a batch of that size; a line between sizes"
    )
    ensure = commands.add_parser("ensure", help="build what a configuration file needs and is not there yet")
    ensure.set_defaults(run=_ensure)
    ensure.add_argument("--config", type=Path, required=True, metavar="YAML", help="a Serve configuration file")
    _add_weights_dir(ensure)
    return parser


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = _command(commands, "build", _build, "build one engine")
    build.epilog, build.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    build.add_argument(
        "--model",
        choices=("auto", *ARCHITECTURES),
        default="auto",
        help=f"default auto: {FLAGSHIP}, or {PACKAGED} where the weights of the first cannot be had",
    )
    build.add_argument(
        "--backend", choices=sorted({backend for backend, _ in BUILDABLE}), default="openvino", help="default openvino"
    )
    build.add_argument("--precision", choices=get_args(Precision), default="fp32", help="default fp32")
    weights = build.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="FILE", help="a local file instead of the download")
    weights.add_argument("--untrained", action="store_true", help="seeded random weights, to measure throughput")
    _add_checkpoint(build)
    build.add_argument("--calibration", type=Path, metavar="DIR", help="int8: real pictures, some hundred are enough")
    _add_comparison(build)
    _add_weights_dir(build)
    build.add_argument("--force", action="store_true", help="build even what is there")


def _add_checkpoint(build: argparse.ArgumentParser) -> None:
    own = build.add_argument_group("your own weights")
    own.add_argument("--checkpoint", type=Path, metavar="FILE", help="a state_dict, alone or in a training checkpoint")
    own.add_argument("--arch", choices=ARCHITECTURES, help="what it is a checkpoint of")
    own.add_argument("--labels", type=Path, metavar="FILE", help="one label per line, in the order of the classes")
    own.add_argument("--name", help="what the service calls it; default: the file's name without its ending")


def _add_comparison(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pictures", type=Path, metavar="DIR", help="compare on these; default: sample photographs")
    command.add_argument(
        "--labels-csv",
        type=Path,
        metavar="FILE",
        help="columns file,class_id, to report accuracy; default: labels.csv in the folder of pictures, if it is there",
    )
    command.add_argument(
        "--max-batch", type=_positive, default=16, metavar="N", help="measure latency up to this batch size; default 16"
    )


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("engine", metavar="ENGINE", help="MODEL/BACKEND-PRECISION, or the path of an engine folder")


def _add_weights_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights-dir",
        type=Path,
        default=DEFAULT_WEIGHTS_DIR,
        metavar="DIR",
        help=f"where downloaded weights are kept; default {DEFAULT_WEIGHTS_DIR}",
    )


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: object, help_text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    command.set_defaults(run=run)
    command.add_argument(
        "--engines-dir", type=Path, default=Path("engines"), metavar="DIR", help="where engines are; default engines"
    )
    return command
