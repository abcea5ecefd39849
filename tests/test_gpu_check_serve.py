from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.gpu_check import serve
from scripts.gpu_check.checks import Wrong
from serve_app.postprocess import softmax
from tests.gpu_check_helpers import options, prepared, rehearse

SCORES = softmax(np.array([[0, 9, 0], [5, 4.99, 0], [0, 0, 9], [1, 2, 3]], np.float32))


def test_answers_fit_where_the_class_is_the_cpus_or_nearly_so() -> None:
    first = [(1, float(SCORES[0, 1])), (1, float(SCORES[1, 1])), (2, float(SCORES[2, 2])), (0, 0.5)]
    found = serve.agreement(SCORES, first, "fp16")
    assert found["photographs"] == 4
    assert found["same_first_class"] == 0.5
    assert found["agreement"] == 0.75
    assert found["max_score_difference"] == pytest.approx(0.5 - SCORES[3, 0])


def judged(**changes: Any) -> dict[str, Any]:
    load = [{"shed": 0, "errors": {}}]
    return {"agreement": 1.0, "load": load, "processes_left": []} | changes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"agreement": 0.9}, "only 90% of its answers"),
        ({"load": [{"shed": 1, "errors": {"500": 2}}]}, "3 requests failed under load"),
        ({"processes_left": ["raylet"]}, "processes are left after its end: raylet"),
    ],
)
def test_what_is_wrong_with_a_service_is_named(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    engine = prepared(tmp_path / "engines")
    serve._judge(judged(), engine)
    with pytest.raises(Wrong, match=told) as caught:
        serve._judge(judged(**changes), engine)
    assert caught.value.data["agreement"] == changes.get("agreement", 1.0)


def test_the_configuration_is_prod_with_this_engine_on_one_gpu(tmp_path: Path) -> None:
    engine = prepared(tmp_path / "engines", "fp16")
    application = serve.configuration(options(tmp_path), engine)["applications"][0]
    assert application["args"]["engine"] == {"model": "fake", "backend": "tensorrt", "precision": "fp16"}
    assert application["args"]["batching"]["max_batch_size"] == 2
    [classifier] = [one for one in application["deployments"] if one["name"] == "Classifier"]
    assert classifier["ray_actor_options"]["num_gpus"] == 1
    assert classifier["autoscaling_config"]["max_replicas"] == 1
    [decoder] = [one for one in application["deployments"] if one["name"] == "Preprocessor"]
    assert decoder["autoscaling_config"]["max_replicas"] > 1


@pytest.mark.service
def test_a_rehearsal_serves_and_leaves_nothing(tmp_path: Path) -> None:
    prepared(tmp_path / "engines")
    status, page, raw = rehearse(tmp_path, "--precisions", "fp32")
    assert status == 0, page
    [served] = [one for one in raw["outcomes"] if one["step"] == "serve"]
    assert served["data"]["agreement"] == 1.0
    assert served["data"]["processes_left"] == []
    assert [one["connections"] for one in served["data"]["load"]] == [1, 8]
    assert all(one["requests"] > 0 for one in served["data"]["load"])
    assert "## Service, configs/prod.yaml" in page
