"""The `image-serve` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve_app import launch
from serve_app.client.command import add_classify
from serve_app.errors import ConfigError, SetupError
from serve_app.lint import lint_config, load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 it could not be done (one line on stderr says why).

    `classify` has codes of its own beside these, see its --help.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SetupError as error:
        print(f"image-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="image-serve", description="Image classification on Ray Serve.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    start = commands.add_parser(
        "start",
        help="start the service on this machine, with the fast ingress",
        description="Starts a Ray of its own with the fast ingress, deploys the configuration, and runs until Ctrl-C.",
    )
    start.add_argument("config", type=Path, nargs="?", default=Path("configs/local.yaml"), help="default: %(default)s")
    start.add_argument("--port", type=int, help="instead of the configuration's port")
    start.add_argument("--grpc-port", type=int, help="instead of the configuration's gRPC port, or of a free one")
    start.add_argument("--logs", action="store_true", help="show Ray's and the replicas' log lines here")
    start.add_argument("--ready-timeout-s", type=float, default=300, help="give up after this (default: %(default)s)")
    start.add_argument(
        "--stand-in-gpus",
        type=_count,
        default=0,
        metavar="N",
        help="rehearse a GPU configuration: claim N GPUs that are not there, and let the CPU stand in for them",
    )
    start.set_defaults(run=_start)

    lint = commands.add_parser("lint", help="check configuration files for unknown keys and known traps")
    lint.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    lint.set_defaults(run=_lint)

    add_classify(commands)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GPUs")
    return int(text)


def _start(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    if arguments.stand_in_gpus:
        config = launch.with_stand_in(config)
    launch.set_environment(os.environ, arguments.logs)
    if not _report(arguments.config, config, os.environ):
        raise ConfigError(f"{arguments.config} has errors; mend them and start again")
    launch.check_application(config)
    launch.start(
        arguments.config,
        config,
        port=arguments.port,
        grpc_port=arguments.grpc_port,
        logs=arguments.logs,
        ready_timeout_s=arguments.ready_timeout_s,
        stand_in_gpus=arguments.stand_in_gpus,
    )
    return 0


def _lint(arguments: argparse.Namespace) -> int:
    environment = launch.FAST_INGRESS_ENV | dict(os.environ)  # what `start` runs with
    results = [_report(path, load_config(path), environment) for path in arguments.configs]
    print(f"{sum(results)} of {len(results)} configurations have no errors")
    return 0 if all(results) else 1


def _report(path: Path, config: Mapping[str, object], environment: Mapping[str, str]) -> bool:
    findings = lint_config(config, environment)
    for finding in findings:
        print(f"{path}: {finding.severity}: {finding.path}: {finding.message}", file=sys.stderr)
    return not any(finding.severity == "error" for finding in findings)
