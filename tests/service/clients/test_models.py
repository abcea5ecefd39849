"""Several models behind one address."""

from __future__ import annotations

import httpx


def test_models_answer_by_name(clients_address: str, photographs: dict[str, bytes]) -> None:
    with httpx.Client(base_url=clients_address, timeout=60) as http:
        models = {one["name"]: one for one in http.get("/models").json()["models"]}
        assert [one["default"] for one in models.values()] == [True, False]
        assert [one["placement"] for one in models.values()] == ["colocated", "split"]
        for name in models:
            answer = http.post("/predict", params={"model": name, "top_k": 1}, content=photographs["cat.jpg"]).json()
            assert answer["model"] == name
            assert "cat" in answer["predictions"][0]["label"]
        live = http.get("/live").json()
        assert set(live["models"]) == set(models)
        assert {one["deployment"] for one in live["stages"]} == {"Preprocessor", "Classifier-samples4"}
