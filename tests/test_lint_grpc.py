from __future__ import annotations

import pytest

from serve_app.lint import lint_config
from tests.lint_helpers import APPLICATION, FAST, changed, found, only

OURS = "serve_app.v2_grpc:add_to_server"
VALID = changed("grpc_options.grpc_servicer_functions", [OURS])


def test_our_servicer_passes() -> None:
    assert lint_config(VALID, FAST) == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("serve_app.v2_grcp:add_to_server", "ModuleNotFoundError: No module named 'serve_app.v2_grcp'"),
        ("serve_app.v2_grpc:add_to_servre", "AttributeError"),
        ("serve_app.v2_grpc:__doc__", "not callable"),
    ],
)
def test_a_servicer_that_does_not_load(name: str, problem: str) -> None:
    finding = found("grpc_options.grpc_servicer_functions", [OURS, name])
    assert (finding.severity, finding.path) == ("error", "grpc_options.grpc_servicer_functions[1]")
    assert f"{name}: {problem}" in finding.message
    assert finding.message.endswith("it is serve_app.v2_grpc:add_to_server")


def test_one_port_for_both() -> None:
    finding = only(lint_config(changed("grpc_options.port", 8000, VALID), FAST))
    assert (finding.severity, finding.path) == ("error", "grpc_options.port")
    assert lint_config(changed("grpc_options.port", 8000), FAST) == []  # no gRPC without a servicer


def test_messages_smaller_than_a_body_and_without_a_bound() -> None:
    large = changed(f"{APPLICATION}.args.limits", {"max_body_bytes": 64 * 2**20 + 1}, VALID)
    finding = only(lint_config(large, FAST))
    assert (finding.severity, finding.path) == ("warning", f"{APPLICATION}.args.limits.max_body_bytes")
    assert "raise RAY_SERVE_GRPC_MAX_MESSAGE_SIZE" in finding.message
    unbounded = {name: value for name, value in FAST.items() if name != "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"}
    finding = only(lint_config(VALID, unbounded))
    assert (finding.severity, finding.path) == ("warning", "environment.RAY_SERVE_GRPC_MAX_MESSAGE_SIZE")
    assert "set it to 67108864" in finding.message
    assert lint_config(changed("grpc_options", None), unbounded) == []
    assert lint_config(VALID, {}) == []  # nobody chose the environment yet
