"""A real Prometheus beside the service under a little load: every query of dashboard and rules finds something."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from scripts.monitoring.check import Answer, ask_until_good, firing, questions, table
from scripts.monitoring.server import Prometheus, configuration, running_prometheus
from tests.service.nodes import until

MODELS = ("efficientnet_lite0", "samples4")
INTERVAL_S = 1.0


@contextmanager
def load(address: str, photographs: Mapping[str, bytes]) -> Iterator[Counter[int]]:
    """One client that sends each photograph to each model, and something that is none; yields answers by status."""
    bodies = [*photographs.values(), b"no picture"]
    statuses: Counter[int] = Counter()
    ended = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            while not ended.is_set():
                for body in bodies:
                    for model in MODELS:
                        statuses[http.post("/predict", params={"model": model}, content=body).status_code] += 1
                ended.wait(0.1)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield statuses
    finally:
        ended.set()
        thread.join()


def series(prometheus: Prometheus, expr: str, *labels: str) -> set[tuple[str, ...]]:
    return {tuple(found[label] for label in labels) for found, _ in prometheus.values(expr)}


@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed: apt-get install prometheus"
)
def test_every_query_finds_something_and_no_alert_fires(
    clients_address: str, photographs: dict[str, bytes], tmp_path: Path
) -> None:
    config = configuration(clients_address, INTERVAL_S)
    with load(clients_address, photographs) as statuses, running_prometheus(config, tmp_path) as prometheus:
        # Ray exports every 10 s unless it was told otherwise before it started.
        answers = ask_until_good(prometheus, questions(), timeout_s=60)
        assert all(one.good for one in answers), table(answers)
        assert unexpected(answers) == []
        assert set(firing(prometheus)) <= {"ImageServeVersionRefused"}  # which other tests may have caused
        assert {model for (model,) in series(prometheus, "model:image_serve_request_ms:p99_5m", "model")} == set(MODELS)
        assert series(prometheus, "deployment:image_serve_running_replicas:max", "deployment") == {
            ("Preprocessor",),
            ("Classifier-samples4",),
        }
        stages = series(prometheus, "model:image_serve_stage_ms:mean5m", "stage", "model")
        assert stages == {(stage, model) for stage in ("queue", "preprocess", "inference") for model in MODELS}
        # Pictures and batches are counted in two processes, which report up to a second apart: a tenth, at first.
        means = until(lambda: _plausible(prometheus), 30, "means of batches between 0.9 and 8.1")
        assert {found["model"] for found, _ in means} == set(MODELS)
    assert set(statuses) == {200, 415}


def _plausible(prometheus: Prometheus) -> list[tuple[dict[str, str], float]]:
    """Mean batch sizes, if all can be true; max_batch_size is 8."""
    means = prometheus.values("model:image_serve_batch_pictures:mean5m")
    return means if all(0.9 < mean < 8.1 for _, mean in means) else []


def unexpected(answers: list[Answer]) -> list[str]:
    """What a service on CPUs cannot have measured."""
    return [one.question.expr for one in answers if "_gpu_" in one.question.expr and one.series]
