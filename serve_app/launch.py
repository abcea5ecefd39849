"""`image-serve start`: a local Ray with the fast ingress, one configuration on it, and nothing left when it ends."""

from __future__ import annotations

import copy
import ctypes
import io
import json
import logging
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import yaml

from serve_app.errors import ConfigError, SetupError
from serve_app.lint import OUR_APPLICATION
from serve_app.ports import claim_ports, free_port, require_free
from serve_app.runtime import available_cores
from serve_app.settings import needs_gpu, parse_settings, per_model

DEFAULT_PORT = 8000
DEFAULT_GRPC_PORT = 9000
FAST_INGRESS_ENV = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # A chunk of 64 pictures is 9.6 MB; the default cap of a message between replicas is 4 MiB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    # A gRPC server takes a message in whole before anybody can refuse it; Ray's own limit is 2 GiB.
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(64 * 2**20),
    # Replicas count requests themselves then; otherwise HAProxy writes a log line for each, and an actor parses it.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Ray runs workers at niceness 15, so that every helper process goes first, its own reporters among them. At 60 %
    # load that doubled the 99.9th percentile.
    "RAY_worker_niceness": "0",
}
"""What the fast ingress needs on every node before Ray starts."""

_LOCAL_ENV = {
    # The controller looks ten times a second otherwise, which on two cores shows in the 99th percentile.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # On one machine nobody else still routes to a replica that goes away: no need to wait 30 s for them.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ADDRESS": "local",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its announcement of a future default is not for our users
}
_SIDE_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": 9500,
}
_REPLICA_GRPC_PORTS = ("RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT")
_PR_SET_CHILD_SUBREAPER = 36
CPUS_PER_STAND_IN = 4


class StartFailed(SetupError):
    """The service did not come up."""


def start(
    config_path: Path,
    config: dict[str, Any],
    *,
    port: int | None,
    grpc_port: int | None = None,
    logs: bool,
    ready_timeout_s: float,
    stand_in_gpus: int = 0,
) -> None:
    """Starts Ray Serve with `config`, says when it is ready, and runs until Ctrl-C or SIGTERM.

    `set_environment` comes before, and before the lint, which imports Ray.

    Args:
        config_path: where `config` was read from, for messages.
        config: a Serve configuration that passed the lint.
        port: overrides the configuration's port.
        grpc_port: overrides the configuration's `grpc_options.port`.
        logs: Ray's and the replicas' log lines go to this terminal; otherwise to Ray's session folder only.
        ready_timeout_s: how long a start may take.
        stand_in_gpus: GPUs to claim that are not there, for a configuration `with_stand_in`.

    Raises:
        PortTaken: a busy port; says by whom.
        StartFailed: an application that does not come up; says why.
    """
    http = {"port": DEFAULT_PORT, "host": "0.0.0.0"} | (config.get("http_options") or {})
    http |= {"port": port} if port else {}
    require_free(http["host"], http["port"])
    grpc = grpc_options(config, http["host"], grpc_port)
    _adopt_orphans()
    _on_stop_signals(_interrupt)
    with _ray(logs, stand_in_gpus):
        _say(f"starting Ray Serve with {config_path} ...")
        began_s = time.monotonic()
        _deploy(config | {"http_options": http} | ({"grpc_options": grpc} if grpc else {}), logs)
        address = f"http://localhost:{http['port']}"
        _wait_until_ready(address, began_s + ready_timeout_s)
        _say(f"ready after {time.monotonic() - began_s:.0f} s at {address}   (Ctrl-C stops it)")
        for model in _get(f"{address}/models")["models"]:
            _say(f"  model: {_described(model)}")
        _say(f"  page: open {address} in a browser")
        _say(f"  curl: curl --data-binary @photo.jpg {address}/predict")
        if grpc:
            _say(f"  grpc: localhost:{grpc['port']} (Open Inference Protocol, as Triton's clients speak it)")
        _say(f"  metrics: {address}/metrics (Prometheus), live: {address}/#live")
        _say(f"  ray: {_ray_address()} (to deploy a changed configuration: README, Change batching while it runs)")
        _stay()


def _say(text: str) -> None:
    print(text, flush=True)


def grpc_options(config: Mapping[str, Any], host: str, port: int | None) -> dict[str, Any] | None:
    """The `grpc_options` to start with; None where the configuration has no gRPC.

    The port that was asked for must be free. The configuration's moves to a free one where it is taken: a second
    service on a machine should not need a second option.

    Args:
        host: where HAProxy listens, which is the same for HTTP and gRPC.
        port: asked for on the command line.

    Raises:
        PortTaken: the port that was asked for is busy.
        StartFailed: there is no gRPC to move.
    """
    options = dict(config.get("grpc_options") or {})
    if not options.get("grpc_servicer_functions"):
        if port is not None:
            raise StartFailed("--grpc-port, but the configuration has no gRPC; see grpc_options in configs/local.yaml")
        return None
    if port is not None:
        require_free(host, port, "--grpc-port ")
    return options | {"port": port or free_port(options.get("port", DEFAULT_GRPC_PORT))}


def set_environment(env: MutableMapping[str, str], logs: bool) -> None:
    """Before anything imports Ray, which reads these once and hands them to its processes; what the user set stays.

    Args:
        env: changed in place; `os.environ` for a start.
        logs: see `start`.
    """
    for name, value in (FAST_INGRESS_ENV | _LOCAL_ENV).items():
        env.setdefault(name, value)
    for name, preferred in _SIDE_PORTS.items():
        env.setdefault(name, str(free_port(preferred)))
    if _REPLICA_GRPC_PORTS[0] not in env:
        ports = claim_ports()
        env.update(zip(_REPLICA_GRPC_PORTS, (str(ports[0]), str(ports[-1])), strict=True))
    if logs:
        env.setdefault("RAY_SERVE_LOG_TO_STDERR", "1")


def _adopt_orphans() -> None:
    """Makes this process the parent of every orphan below it (Linux), so that none can be missed at the end."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Also where SIGINT was ignored from birth, as a shell does to what it starts in the background."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


@contextmanager
def _ray(logs: bool, stand_in_gpus: int = 0) -> Iterator[None]:
    """A Ray of our own for the length of the block; afterwards none of its processes is left."""
    import ray  # after the environment is set

    try:
        ray.init(
            namespace="serve",
            # Two one-CPU replicas must fit on a one-core machine too, and invented GPUs come with invented CPUs.
            num_cpus=max(2, available_cores(), CPUS_PER_STAND_IN * stand_in_gpus),
            num_gpus=stand_in_gpus or None,
            log_to_driver=logs,
            logging_level="INFO" if logs else "ERROR",
            include_dashboard=False,
        )
        yield
    except KeyboardInterrupt:
        _say("stopping ...")
    finally:
        _on_stop_signals(signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        _shut_down()
        _end_children()
    _say("stopped")


def _shut_down() -> None:
    import ray
    from ray import serve

    # Whatever is left is ended afterwards, so that errors, and what Ray prints about its own end, tell nobody anything.
    nowhere = io.StringIO()
    with suppress(Exception), redirect_stdout(nowhere), redirect_stderr(nowhere):
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()


def _end_children() -> None:
    children = psutil.Process().children(recursive=True)
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                stop(child)
        _, children = psutil.wait_procs(children, timeout=3)


def _deploy(config: Mapping[str, Any], logs: bool) -> None:
    """`serve run --non-blocking`, in the Ray of this process."""
    from ray.serve import scripts

    os.environ.pop("RAY_ADDRESS", None)  # this process is connected already; the command would warn
    said = io.StringIO()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, redirect_stdout(said), redirect_stderr(said):
        if not logs:
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
        yaml.safe_dump(dict(config), file)
        file.flush()
        try:
            scripts.run.main(["--non-blocking", file.name], standalone_mode=False)
        except SystemExit:  # how the command reports a failure
            raise StartFailed(f"Ray Serve did not take the configuration: {_reason(said.getvalue())}") from None


def _wait_until_ready(address: str, until_s: float) -> None:
    from ray import serve

    while not _answers(f"{address}/readyz"):
        for name, application in serve.status().applications.items():
            if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                # Serve says of the application only which deployments failed, and of those why.
                messages = [application.message, *(one.message for one in application.deployments.values())]
                raise StartFailed(f"application {name} did not start: {_reason(chr(10).join(messages))}")
        if time.monotonic() > until_s:
            raise StartFailed(
                "the service is not ready in time; look at the logs in /tmp/ray/session_latest/logs/serve, or start "
                "it with --logs"
            )
        time.sleep(0.2)


def _answers(url: str) -> bool:
    with suppress(OSError, ValueError):
        return bool(_get(url) == {"ready": True})
    return False


def _get(url: str) -> Any:
    """JSON of a 200; OSError (urllib's errors are) for any other answer or none."""
    with urllib.request.urlopen(url, timeout=2) as answer:
        return json.load(answer)


def _ray_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _described(model: Mapping[str, Any]) -> str:
    text = f"{model['name']}, {model['backend']} {model['precision']}, {model['num_classes']} classes, "
    text += f"preprocessing {model['preprocess']}, {model['placement']}"
    if not model["trained"]:
        text += "\n  WARNING: its weights are untrained, its answers mean nothing"
    if model["device"] == "stand_in":
        text += "\n  WARNING: the CPU stands in for a GPU, to rehearse the configuration; it is no faster than a CPU"
    return text


def _reason(message: str) -> str:
    """The line of a Ray traceback that says what went wrong, or all of it."""
    lines = [line.strip() for line in message.strip().splitlines()]
    telling = [line for line in lines if "Error" in line and not line.startswith(("File", "raise"))]
    return telling[-1] if telling else message


def _stay() -> None:
    while True:
        signal.pause()


def check_application(config: Mapping[str, Any]) -> None:
    """Fails before Ray is started where the engine is missing or broken.

    Raises:
        SetupError: says what to build.
    """
    from serve_app.engines import find_engine
    from serve_app.plans import find_plan
    from serve_app.runtime.tensorrt.machine import this_machine

    applications = config.get("applications")
    if not applications:
        raise ConfigError("the configuration has no applications; start from configs/local.yaml")
    for application in applications:
        if application.get("import_path") == OUR_APPLICATION:
            for settings in per_model(parse_settings(application.get("args") or {})).values():
                machine = this_machine() if needs_gpu(settings) else None
                folder, manifest = find_engine(settings.engine)
                if machine:
                    find_plan(folder, manifest, machine, settings.batching.max_batch_size)


def with_stand_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with a CPU in the place of every GPU, to rehearse it on this machine."""
    changed = copy.deepcopy(dict(config))
    applications = changed.get("applications")
    for application in applications if isinstance(applications, list) else []:
        if isinstance(application, dict) and application.get("import_path") == OUR_APPLICATION:
            args = application["args"] = application.get("args") or {}
            runtime = (args.get("runtime") or {}) if isinstance(args, dict) else None
            if isinstance(runtime, dict):  # what is not is left for the lint to name
                args["runtime"] = {**runtime, "device": "stand_in"}
    return changed
