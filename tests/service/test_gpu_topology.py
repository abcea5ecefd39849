"""The GPU configurations, with CPUs in the place of GPUs: placement, batches, scaling, and what a broken GPU costs.

Nodes only claim their GPUs. In most tests the stand-in takes as long as a slow GPU would, which costs no CPU, and can
be broken from outside; see `gpu_app`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from scripts.local_service import BIN, free_port, running, stop
from tests.service.gpu_faults import fault_file
from tests.service.gpu_nodes import FAULTY, bounded, deployment, gpu_nodes, rehearsed
from tests.service.nodes import Load, Nodes, different_pictures, samples_at, until
from tests.service.test_start import processes_with

pytestmark = pytest.mark.service

BATCH_MS, PICTURE_MS = 20.0, 12.0
"""Of the slow stand-in: 69 pictures/s in batches of 8, which is far less than the clients here ask for."""


@pytest.fixture(scope="module")
def pictures(photographs: dict[str, bytes]) -> dict[str, bytes]:
    return different_pictures(photographs, 24)


# Fixtures of a class, not of the module: one set of nodes at a time.
@pytest.fixture(scope="class")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `gpu_app` looks for faults."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="class")
def prod(tmp_path_factory: pytest.TempPathFactory, faults: Path) -> Iterator[Nodes]:
    """configs/prod.yaml on a head and two workers with one GPU and one CPU each, in less time than it is meant for."""
    folder = tmp_path_factory.mktemp("prod")
    config = rehearsed("prod", folder, max_batch_size=8, import_path=FAULTY)
    bounded(config, "Preprocessor", 1)
    bounded(config, "Classifier", 2)
    goals = config["applications"][0]["autoscaling_policy"]["policy_kwargs"]["stages"]
    goals["Classifier"] |= {"keep_s": 3, "start_up_s": 8}
    timely = {"health_check_period_s": 1, "health_check_timeout_s": 4, "graceful_shutdown_timeout_s": 3}
    deployment(config, "Classifier").update(timely)
    slow = {"batch_ms": BATCH_MS, "picture_ms": PICTURE_MS}
    worker = {"CPU": 1.0, "GPU": 1.0}
    with gpu_nodes(config, folder, faults, head={"CPU": 1}, worker=worker, workers=2, **slow) as started:
        yield started


def new_faults(load: Load, before: dict[str, int]) -> dict[str, int]:
    return {what: more for what, count in load.faults().items() if (more := count - before.get(what, 0))}


def broken(nodes: Nodes, load: Load, faults: Path, kind: str) -> dict[str, int]:
    """Breaks the GPU of one of two replicas, waits for another in its place, and returns what clients saw of it."""
    victim = nodes.serving(2)[0]
    before = load.faults()
    fault_file(faults, victim.pid).write_text(kind)
    until(lambda: victim not in nodes.classifiers(), 90, f"the replica whose GPU is broken ({kind}) is gone")
    seen = new_faults(load, before)
    before = load.faults()
    assert victim not in nodes.serving(2, 90)
    load.more(100)
    assert new_faults(load, before) == {}
    return seen


def pictures_and_batches(nodes: Nodes) -> tuple[float, float]:
    """So far, at all replicas."""
    total, count = (
        sum(value for _, value in nodes.samples(f"ray_image_serve_batch_pictures_{what}")) for what in ("sum", "count")
    )
    return total, count


class TestProd:
    """configs/prod.yaml on a head without a GPU and two workers with one each. The tests are in order."""

    def test_answers_are_right_and_pictures_are_batched(self, prod: Nodes, pictures: dict[str, bytes]) -> None:
        with Load(prod.address, pictures, 24) as load:
            until(lambda: pictures_and_batches(prod)[0] >= len(pictures), 20, "the pictures that were asked for alone")
            pictures_before, batches_before = pictures_and_batches(prod)
            load.more(300)
        assert load.faults() == {}

        def mean() -> float:
            total, batches = pictures_and_batches(prod)
            return (total - pictures_before) / max(1, batches - batches_before)

        until(lambda: mean() > 1.5, 20, "batches of several pictures")

    def test_classifiers_are_where_gpus_are(self, prod: Nodes) -> None:
        assert {one.node for one in prod.classifiers()} <= prod.workers()
        (model,) = httpx.get(f"{prod.address}/models").json()["models"]
        assert (model["device"], model["backend"], model["placement"]) == ("stand_in", "tensorrt", "split")

    def test_what_the_gpu_does_is_exported(self, prod: Nodes) -> None:
        steps = until(lambda: prod.samples("ray_image_serve_gpu_ms_count"), 20, "times of the GPU")
        assert {labels["step"] for labels, value in steps if value > 20} == {"copy_in", "run", "copy_out"}
        kinds = {"buffers", "engine", "free", "total"}
        until(
            lambda: {one["kind"] for one, _ in prod.samples("ray_image_serve_gpu_memory_bytes")} == kinds, 20, "memory"
        )
        goals = prod.samples("ray_image_serve_autoscaling_desired_replicas")
        assert {labels["deployment"] for labels, _ in goals} == {"Preprocessor", "Classifier"}

    def test_a_second_gpu_comes_with_the_work_and_goes_with_it(self, prod: Nodes, pictures: dict[str, bytes]) -> None:
        until(lambda: len(prod.classifiers()) == 1, 60, "one classifier")
        with Load(prod.address, pictures, 24) as load:
            replicas = prod.serving(2)
            assert sorted(one.node for one in replicas) == sorted(prod.workers())
        assert load.faults() == {}
        with Load(prod.address, pictures, 2) as fewer:  # something is under way when the second one goes
            until(lambda: len(prod.classifiers()) == 1, 60, "one classifier")
            fewer.more(20)
        assert fewer.faults() == {}

    def test_a_broken_gpu_is_replaced(self, prod: Nodes, pictures: dict[str, bytes], faults: Path) -> None:
        """An error that stays, as CUDA's do; a hang; and runs that write nothing."""
        with Load(prod.address, pictures, 24) as load:
            prod.serving(2)
            assert broken(prod, load, faults, "error") == {}
            assert broken(prod, load, faults, "hang") == {}
            assert broken(prod, load, faults, "stale") == {}


def test_decoding_keeps_no_classifier_from_its_gpu(tmp_path: Path, photographs: dict[str, bytes]) -> None:
    """One node, whose only CPU has a Preprocessor on it."""
    config = rehearsed("prod", tmp_path)
    bounded(config, "Preprocessor", 2, 2)
    with gpu_nodes(config, tmp_path, tmp_path, head={"CPU": 2, "GPU": 1}) as nodes:
        assert len(nodes.replicas("Preprocessor")) == 2
        httpx.post(f"{nodes.address}/predict", content=photographs["cat.jpg"], timeout=60).raise_for_status()


def test_a_box_with_one_gpu_decodes_and_classifies_in_one_process(
    tmp_path: Path, faults: Path, pictures: dict[str, bytes]
) -> None:
    """configs/edge.yaml. The replica whose GPU breaks is the only one there is."""
    config = rehearsed("edge", tmp_path, max_batch_size=8, import_path=FAULTY)
    deployment(config, "Preprocessor")["health_check_period_s"] = 1
    with gpu_nodes(config, tmp_path, faults, head={"CPU": 4, "GPU": 1}, batch_ms=5) as nodes:
        (replica,) = nodes.replicas("Preprocessor")
        with Load(nodes.address, pictures, 8) as load:
            load.more(200)
        assert load.faults() == {}
        until(lambda: nodes.samples("ray_image_serve_gpu_memory_bytes"), 20, "a health check, which tells the memory")
        fault_file(faults, replica.pid).write_text("error")
        until(lambda: nodes.replicas("Preprocessor") not in ([replica], []), 60, "another replica")
        until(lambda: ready(nodes.address), 60, "it is ready")
        with Load(nodes.address, pictures, 4) as load:
            load.more(50)
        assert load.faults() == {}


def ready(address: str) -> bool:
    return httpx.get(f"{address}/readyz", timeout=5).status_code == 200


@pytest.mark.parametrize(("name", "replicas"), [("prod-shared-gpu", 2)])  # gpu_check rehearses prod
def test_a_configuration_is_rehearsed_on_one_machine(
    name: str, replicas: int, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    """`image-serve start --stand-in-gpus 1`: as many Classifiers as share one GPU, and nothing is left of it."""
    config = rehearsed(name, tmp_path)
    bounded(config, "Preprocessor", 1)
    bounded(config, "Classifier", 2, replicas)
    del config["applications"][0]["args"]["runtime"]["device"]
    command = [str(BIN / "image-serve"), "start", "--stand-in-gpus", "1"]
    mark = uuid.uuid4().hex
    with running(config, tmp_path, command=command, env={"IMAGE_SERVE_TEST": mark}) as address:
        (output,) = tmp_path.glob("service-*.log")
        until(lambda: "metrics:" in output.read_text(), 20, "all that a start prints")
        assert "WARNING: the CPU stands in for a GPU" in output.read_text()
        port = re.search(r"metrics: (http\S+)", output.read_text())
        assert port
        with Load(address, pictures, 16) as load:
            until(lambda: len(at_work(port[1])) == replicas, 60, f"{replicas} classifier(s) with something to do")
        assert load.faults() == {}
        assert processes_with(mark)
    assert processes_with(mark) == []


def at_work(metrics: str) -> set[str]:
    """Classifiers that have run more than their warm-up."""
    return {labels["replica"] for labels, _ in samples_at(metrics, "ray_image_serve_batch_pictures_count")}


def config_file(folder: Path) -> Path:
    config = rehearsed("prod", folder)
    del config["applications"][0]["args"]["runtime"]["device"]
    config["http_options"]["port"] = free_port()
    path = folder / "prod.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_without_a_gpu_a_start_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [str(BIN / "image-serve"), "start", str(config_file(tmp_path))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "GPU" in done.stderr


def test_serve_run_without_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    """It goes on running without the application, as `serve run` does; replicas would wait for a GPU for ever, and say
    nothing."""
    output, environment = tmp_path / "output", {**os.environ, "RAY_ADDRESS": "local"}
    command = [str(BIN / "serve"), "run", str(config_file(tmp_path))]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
            # Tests that a shell started in the background were told to ignore it, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        until(lambda: "serve on the CPU with configs/cpu.yaml" in output.read_text(), 90, "what to do")
    finally:
        stop(process)
