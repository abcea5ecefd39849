"""`grpc_options`: what Serve's gRPC servers are told, and how much they take in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.lint.finding import Finding, Findings, is_on, number, section
from serve_app.lint.traps import import_problem
from serve_app.settings import Settings

MESSAGE_VARIABLE = "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"
RAYS_MESSAGE_BYTES = 2**31 - 1
DEFAULT_PORTS = {"http_options": 8000, "grpc_options": 9000}


def _servicers(config: Mapping[str, Any]) -> list[Any]:
    functions = section(config, "grpc_options").get("grpc_servicer_functions")
    return functions if isinstance(functions, list) else []


def servicers(config: Mapping[str, Any]) -> Findings:
    """Functions that do not load stop the proxy, or every replica of the ingress, when it starts."""
    for index, name in enumerate(_servicers(config)):
        if problem := import_problem(str(name)):
            yield Finding(
                "error",
                f"grpc_options.grpc_servicer_functions[{index}]",
                f"{name}: {problem}; for this service it is serve_app.v2_grpc:add_to_server",
            )
    ports = [number(section(config, part), "port", default) for part, default in DEFAULT_PORTS.items()]
    if _servicers(config) and len(set(ports)) == 1:
        yield Finding(
            "error", "grpc_options.port", f"{ports[0]:g} is the port of http_options too; give gRPC one of its own"
        )


def messages(config: Mapping[str, Any], settings: Settings, env: Mapping[str, str], at: str) -> Findings:
    """A gRPC server takes a whole message in before anybody can refuse it, and cuts off those above its own limit.

    Args:
        at: path of `limits.max_body_bytes`.
    """
    most, body = number(env, MESSAGE_VARIABLE, RAYS_MESSAGE_BYTES), settings.limits.max_body_bytes
    if not _servicers(config):
        return
    if most < body:
        yield Finding(
            "warning",
            at,
            f"{body} bytes, but gRPC takes at most {most:g} in a message; raise {MESSAGE_VARIABLE} on every node, or "
            "lower it",
        )
    elif is_on(env, "RAY_SERVE_ENABLE_HA_PROXY") and most >= RAYS_MESSAGE_BYTES:
        yield Finding(
            "warning",
            f"environment.{MESSAGE_VARIABLE}",
            f"without it one gRPC message may fill 2 GiB of memory before it is refused; set it to {64 * 2**20} on "
            "every node",
        )
