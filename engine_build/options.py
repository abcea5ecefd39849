"""The options of `engine-build`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

from engine_build.download import DEFAULT_WEIGHTS_DIR
from engine_build.store import BUILDABLE
from engine_build.zoo import ARCHITECTURES, FLAGSHIP, PACKAGED
from serve_app.manifest import Precision

Run = Callable[[argparse.Namespace], int]
DEFAULT_CPU_BATCH, DEFAULT_GPU_BATCH = 16, 64

EXAMPLES = f"""\
examples:
  engine-build build                                     {FLAGSHIP}, or {PACKAGED} where its weights cannot be had
  engine-build build --model resnet50 --backend onnx
  engine-build build --model {PACKAGED} --precision int8 --calibration photos/
  engine-build build --backend tensorrt --precision fp16   on the machine with the GPU that will serve it; or in halves:
  engine-build prepare --precision fp16                  anywhere, and then where the GPU is
  engine-build compile {PACKAGED}/tensorrt-fp16
  engine-build build --model resnet18 --untrained        random weights, to measure throughput
  engine-build build --checkpoint best.pt --arch resnet18 --labels labels.txt --name birds
  engine-build build --checkpoint new.pt --arch resnet18 --labels labels.txt --name birds --version 2
  engine-build verify {FLAGSHIP}/openvino-fp32 --pictures photos/
  engine-build simulate --name slow 1:20 16:120           computes nothing, takes its time: to rehearse scaling
  engine-build ensure --config configs/local.yaml        what `make serve` does before it starts
"""


class _Commands:
    """Sub-commands, each with what it does."""

    def __init__(self, parsers: argparse._SubParsersAction[argparse.ArgumentParser], run: Mapping[str, Run]) -> None:
        self._parsers = parsers
        self._run = run

    def add(self, name: str, help_text: str, *, has_engines: bool = True) -> argparse.ArgumentParser:
        """One more; most take the folder of engines."""
        command = self._parsers.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        command.set_defaults(run=self._run[name])
        if has_engines:
            command.add_argument(
                "--engines-dir",
                type=Path,
                default=Path("engines"),
                metavar="DIR",
                help="where engines are; default engines",
            )
        return command


def _positive(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 512:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 512")
    return int(text)


def _version(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a version; they are numbers from 1 on")
    return int(text)


def parser(run: Mapping[str, Run]) -> argparse.ArgumentParser:
    """Of the whole command.

    Args:
        run: what each sub-command does, by its name; it returns the exit status.
    """
    parser = argparse.ArgumentParser(
        prog="engine-build",
        description="Builds inference engines from torch models, and checks each against torch before it is kept.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = _Commands(parser.add_subparsers(required=True, metavar="COMMAND"), run)
    _add_build(commands)
    _add_tensorrt(commands)
    verify = commands.add("verify", "compare an engine on disk with torch again, and renew its figures")
    _add_engine(verify)
    verify.add_argument("--weights", type=Path, metavar="FILE", help="the weights, if a local file was built from")
    _add_comparison(verify)
    _add_weights_dir(verify)
    commands.add("list", "list the engines there are")
    info = commands.add("info", "everything known of one engine")
    _add_engine(info)
    info.add_argument("--json", action="store_true", help="print the manifest as it is")
    simulated = commands.add("simulate", "write an engine that only takes time, to rehearse scaling")
    simulated.add_argument("--name", required=True, help="what the service calls it")
    _add_version(simulated)
    simulated.add_argument(
        "batch_ms", nargs="+", metavar="SIZE:MS", help="milliseconds of a batch of that size; a line between sizes"
    )
    ensure = commands.add("ensure", "build what a configuration file needs and is not there yet", has_engines=False)
    ensure.add_argument("--config", type=Path, required=True, metavar="YAML", help="a Serve configuration file")
    _add_weights_dir(ensure)
    return parser


def _add_build(commands: _Commands) -> None:
    build = commands.add("build", "build one engine")
    build.epilog, build.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    build.add_argument(
        "--model",
        choices=("auto", *ARCHITECTURES),
        default="auto",
        help=f"default auto: {FLAGSHIP}, or {PACKAGED} where the weights of the first cannot be had",
    )
    build.add_argument(
        "--backend", choices=sorted({backend for backend, _ in BUILDABLE}), default="openvino", help="default openvino"
    )
    _add_recipe(build)
    _add_plan(build)


def _add_tensorrt(commands: _Commands) -> None:
    """The halves of a build, and a build without this package."""
    prepare = commands.add("prepare", "the half of a TensorRT build that needs no GPU: typed ONNX")
    prepare.add_argument("--model", choices=("auto", *ARCHITECTURES), default="auto", help="as of build")
    _add_recipe(prepare)
    compiled = commands.add("compile", "compile a prepared TensorRT engine for the GPU of this machine")
    _add_engine(compiled)
    _add_max_batch(compiled)
    _add_plan(compiled)
    compiled.add_argument("--force", action="store_true", help="compile even what is there")
    script = commands.add(
        "trtexec-script", "write ONNX and commands for a machine with its own TensorRT, such as a Jetson"
    )
    _add_engine(script)
    script.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder to copy to that machine")
    _add_max_batch(script)
    script.add_argument("--opt-batch", type=_positive, metavar="N", help="the batch size it tunes for; default 16")
    script.add_argument("--workspace-mib", type=int, metavar="N", help="most GPU memory to compile with; default all")


def _add_recipe(build: argparse.ArgumentParser) -> None:
    """What an engine is made from, and what it is compared on."""
    build.add_argument("--precision", choices=get_args(Precision), default="fp32", help="default fp32")
    weights = build.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="FILE", help="a local file instead of the download")
    weights.add_argument("--untrained", action="store_true", help="seeded random weights, to measure throughput")
    _add_checkpoint(build)
    build.add_argument("--calibration", type=Path, metavar="DIR", help="int8: real pictures, some hundred are enough")
    _add_comparison(build)
    _add_weights_dir(build)
    _add_version(build)
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
    _add_max_batch(command)


def _add_max_batch(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max-batch",
        type=_positive,
        metavar="N",
        help=f"measure latency up to this batch size, default {DEFAULT_CPU_BATCH}; of a TensorRT plan the largest "
        f"batch it takes, default {DEFAULT_GPU_BATCH}",
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    plan = command.add_argument_group("how TensorRT compiles")
    plan.add_argument("--opt-batch", type=_positive, metavar="N", help="the batch size it tunes for; default 16")
    plan.add_argument("--tf32", action="store_true", help="let fp32 layers multiply with ten bits of mantissa: faster")
    plan.add_argument("--workspace-mib", type=int, metavar="N", help="most GPU memory to compile with; default all")
    plan.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        default=3,
        metavar="0-5",
        help="how long to search; default 3",
    )


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "engine",
        metavar="ENGINE",
        help="MODEL/BACKEND-PRECISION, of a later version MODEL@N/BACKEND-PRECISION, or the path of an engine folder",
    )


def _add_version(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--version",
        type=_version,
        default=1,
        metavar="N",
        help="of the engine, default 1; a new one stands beside those that are served",
    )


def _add_weights_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights-dir",
        type=Path,
        default=DEFAULT_WEIGHTS_DIR,
        metavar="DIR",
        help=f"where downloaded weights are kept; default {DEFAULT_WEIGHTS_DIR}",
    )
