"""One service for the tests of everything that talks to it: two models, one in each placement, scaled by a policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.local_service import load, running
from tests.service.clients.fine_tuned import fine_tuned_engine

SCALED = {
    "min_replicas": 1,
    "max_replicas": 2,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 10,
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
}
OFTEN = {"RAY_metrics_report_interval_ms": "1000"}
"""Ten seconds otherwise, and the test of the metrics waits for several reports."""
LOGS = {"encoding": "JSON", "enable_access_log": False, "log_level": "WARNING"}


def configuration() -> dict[str, Any]:
    """The default model in the process that decodes, and one of our own in replicas of its own."""
    config = load("local")
    # What clients sample is recorded, and nothing else.
    config["tracing_config"] = {
        "enabled": True,
        "exporter_import_path": "serve_app.tracing:file_exporter",
        "sampling_ratio": 0.0,
    }
    [application] = config["applications"]
    application["args"] = {
        "engine": {"backend": "openvino", "precision": "fp32"},
        "batching": {"max_batch_size": 8},
        "logs": {"requests": "all"},
        "models": {
            "efficientnet_lite0": {},
            "samples4": {"placement": "split", "batching": {"max_in_flight": 2}},
        },
    }
    application["autoscaling_policy"] = {"policy_function": "serve_app.autoscaling:PipelinePolicy"}
    application["deployments"] = [
        {
            "name": "Preprocessor",
            "logging_config": LOGS,
            "max_ongoing_requests": 1000,
            "ray_actor_options": {"num_cpus": 0.5},
            "autoscaling_config": SCALED,
        },
        {
            "name": "Classifier-samples4",
            "max_ongoing_requests": 16,
            "ray_actor_options": {"num_cpus": 0.5},
            "autoscaling_config": SCALED,
        },
    ]
    return config


@pytest.fixture(scope="package")
def clients_address(workplace: Path) -> Iterator[str]:
    """`http://127.0.0.1:PORT` of the running service."""
    fine_tuned_engine(workplace / "engines")
    traces = {"IMAGE_SERVE_TRACES_DIR": str(workplace / "traces")}
    with running(configuration(), workplace, env=OFTEN | traces) as address:
        yield address
