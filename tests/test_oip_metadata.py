"""What is published of models, and of what they did."""

from __future__ import annotations

import pytest

from serve_app.oip.classification import classified
from serve_app.oip.metadata import (
    Published,
    model_config,
    model_metadata,
    published,
    repository_index,
    server_metadata,
)
from serve_app.oip.statistics import statistics
from serve_app.tally import ModelTotals
from serve_app.types import Prediction
from tests.fakes import manifest


@pytest.fixture
def both() -> tuple[Published, Published]:
    return published("fake", manifest(version=3), max_pictures=8)


def test_server_says_what_it_can_do() -> None:
    said = server_metadata()
    assert said["name"] == "image-serve"
    assert said["version"]
    assert {"statistics", "model_configuration", "classification"} <= set(said["extensions"])
    assert "model_repository" not in said["extensions"]  # a client could not load anything


def test_metadata_of_both_names(both: tuple[Published, Published]) -> None:
    files, tensors = (model_metadata(model) for model in both)
    assert (files["name"], tensors["name"]) == ("fake", "fake_tensor")
    assert files["versions"] == tensors["versions"] == ["3"]
    assert files["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
    assert tensors["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 4, 4]}]
    assert files["outputs"] == tensors["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 5]}]


def test_config_of_both_names(both: tuple[Published, Published]) -> None:
    files, tensors = (model_config(model) for model in both)
    assert files["max_batch_size"] == tensors["max_batch_size"] == 8
    assert files["input"] == [{"name": "image", "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1]}]
    assert tensors["input"] == [
        {"name": "pixels", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [3, 4, 4]}
    ]
    assert tensors["output"] == [{"name": "scores", "data_type": "TYPE_FP32", "dims": [5]}]
    assert tensors["parameters"]["mean"] == {"string_value": "0.485,0.456,0.406"}
    assert tensors["parameters"]["trained"] == {"string_value": "true"}


def test_index(both: tuple[Published, Published]) -> None:
    assert repository_index(both, {"fake": True})[1] == {
        "name": "fake_tensor",
        "version": "3",
        "state": "READY",
        "reason": "",
    }
    assert {one["state"] for one in repository_index(both, {"fake": False})} == {"UNAVAILABLE"}


def test_statistics(both: tuple[Published, Published]) -> None:
    totals = ModelTotals(
        answered=10,
        failed={"overloaded": 2, "broken_picture": 1},
        queue_ms=50.0,
        preprocess_ms=20.0,
        inference_ms=30.0,
        batches={4: (2, 16.0), 1: (2, 4.5)},
        last_answer_unix_ms=1234,
    )
    files, tensors = statistics(both, {"fake": totals})["model_stats"]
    assert (files["name"], tensors["name"]) == ("fake", "fake_tensor")
    assert {**files, "name": ""} == {**tensors, "name": ""}
    assert (files["version"], files["last_inference"]) == ("3", 1234)
    assert (files["inference_count"], files["execution_count"]) == (10, 4)
    stats = files["inference_stats"]
    assert stats["success"] == {"count": 10, "ns": 100_000_000}
    assert stats["fail"] == {"count": 3, "ns": 0}
    assert stats["queue"] == {"count": 10, "ns": 50_000_000}
    assert stats["compute_input"] == {"count": 10, "ns": 20_000_000}
    assert stats["compute_infer"] == {"count": 10, "ns": 30_000_000}
    assert stats["cache_hit"] == stats["cache_miss"] == {"count": 0, "ns": 0}
    assert [one["batch_size"] for one in files["batch_stats"]] == [1, 4]
    assert files["batch_stats"][1]["compute_infer"] == {"count": 2, "ns": 16_000_000}


def test_statistics_before_the_first_answer(both: tuple[Published, Published]) -> None:
    [one, _] = statistics(both, {})["model_stats"]
    assert (one["inference_count"], one["last_inference"], one["batch_stats"]) == (0, 0, [])


def test_classification_text() -> None:
    rows = [[Prediction(3, "a: b", 0.75), Prediction(0, "é", 0.1234567)], [Prediction(1, "c", 1.0)] * 2]
    tensor = classified("scores", rows)
    assert (tensor.datatype, tensor.shape) == ("BYTES", (2, 2))
    assert tensor.data == [b"0.750000:3:a: b", "0.123457:0:é".encode(), b"1.000000:1:c", b"1.000000:1:c"]
