from __future__ import annotations

from typing import Any

import pytest

from serve_app.app import _require_gpu
from serve_app.errors import GpuMissing


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": 8.0, **resources} if alive else {}}


@pytest.mark.parametrize("nodes", [[node()], [node(GPU=0.0)], [node(), node(alive=False)]])
def test_a_lone_machine_without_a_gpu_is_told_what_to_do_instead(nodes: list[dict[str, Any]]) -> None:
    with pytest.raises(GpuMissing) as caught:
        _require_gpu(nodes, {"PATH": "/bin"})
    message = str(caught.value)
    assert "configs/cpu.yaml" in message
    assert "image-serve start CONFIG --stand-in-gpus 1" in message
    assert "\n" not in message


@pytest.mark.parametrize("nodes", [[node(GPU=1.0)], [node(GPU=0.5)], [node(), node()], [node(), node(GPU=1.0)], []])
def test_where_there_is_a_gpu_or_may_be_one_it_starts(nodes: list[dict[str, Any]]) -> None:
    _require_gpu(nodes, {})


@pytest.mark.parametrize("name", ["KUBERNETES_SERVICE_HOST", "RAY_NODE_TYPE_NAME", "RAY_CLOUD_INSTANCE_ID"])
def test_a_cluster_that_may_grow_is_waited_for(name: str) -> None:
    _require_gpu([node()], {name: "something"})
