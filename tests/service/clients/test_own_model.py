"""The README's pages on one's own model, followed word for word; what they promise, seen in the running service."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import httpx
import pytest
import yaml

from engine_build.cli import _parser as engine_build_parser
from scripts.finetune_example import parser as finetune_parser
from scripts.local_service import BIN, ROOT
from serve_app.manifest import read_manifest
from serve_app.settings import parse_live_models, parse_settings, per_model
from tests.service.clients.fine_tuned import LABELS, NAME

pytestmark = pytest.mark.service
STARTS_SOMETHING = ("make serve", "curl ")
"""What the running service stands for here."""


@cache
def page(heading: str) -> str:
    """The README from a heading to the next."""
    found = re.search(rf"^### {re.escape(heading)}\n(.*?)^##+ ", (ROOT / "README.md").read_text(), re.MULTILINE | re.S)
    assert found, f"the README has no page {heading!r}"
    return found[1]


def blocks(heading: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page(heading), re.MULTILINE | re.DOTALL)


def commands(heading: str) -> list[str]:
    """Every line of a page's shell blocks."""
    return [line for block in blocks(heading, "sh") for line in block.splitlines()]


OWN, NEWER = "Serve my own model", "New version of a model"


def clone(folder: Path, engines: Path) -> Path:
    """A folder like a clone of the project in which everything is installed and the default engine is built."""
    for name in ("engine_build", "scripts", "serve_app"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(BIN.parent)
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "engines").mkdir()
    for model in engines.iterdir():
        if not model.name.startswith(".") and model.name != NAME:
            (folder / "engines" / model.name).symlink_to(model)
    return folder


def follow(line: str, folder: Path) -> str:
    """Runs a line as it stands; its output. `make engine` is what it comes to where everything is installed: it must
    not install anything from here."""
    program, *rest = shlex.split(line)
    if [program, *rest[:1]] == ["make", "engine"]:
        config = rest[1].removeprefix("CONFIG=") if rest[1:] else "configs/local.yaml"
        line = f".venv/bin/engine-build ensure --config {config}"
    done = subprocess.run(["bash", "-ec", line], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_as_it_stands_makes_an_engine(workplace: Path, tmp_path: Path) -> None:
    folder = clone(tmp_path, workplace / "engines")
    said = {line: follow(line, folder) for line in commands(OWN) if not line.startswith(STARTS_SOMETHING)}
    assert any("top-1 accuracy 100.0% of 24" in one for one in said.values())
    first = read_manifest(folder / "engines" / NAME / "openvino-fp32")
    assert (first.model, first.version, first.architecture, first.labels) == (NAME, 1, "resnet18", LABELS)
    assert first.verify is not None
    assert first.verify.picture_source == "folder photos"

    [configuration] = blocks(OWN, "yaml")
    (folder / "configs" / "mine.yaml").write_text(configuration)
    assert "1 of 1 configurations have no errors" in follow(".venv/bin/image-serve lint configs/mine.yaml", folder)
    ready = follow("make engine CONFIG=configs/mine.yaml", folder)  # the first half of `make serve`
    assert f"engine {NAME}/openvino-fp32 is ready in engines" in ready
    [serve] = [line for line in commands(OWN) if line.startswith("make serve")]
    assert shlex.split(serve) == ["make", "serve", "CONFIG=configs/mine.yaml"]


def test_the_commands_for_a_new_version_are_those_of_the_first_with_its_number() -> None:
    """They are the same programs: what they make of a version is seen in `fine_tuned`, which the service serves."""
    trains, builds, lists = (shlex.split(line)[1:] for line in commands(NEWER))
    trained = finetune_parser().parse_args(trains[1:])
    built = engine_build_parser().parse_args(builds)
    assert (built.name, built.version, built.arch) == (NAME, 2, trained.arch)
    assert (built.checkpoint, built.labels, built.pictures) == (trained.checkpoint, trained.labels, trained.photos)
    assert lists == ["list"]
    [first] = [line for line in commands(OWN) if " build " in line]
    assert engine_build_parser().parse_args(shlex.split(first)[1:]).checkpoint != built.checkpoint


def test_make_engine_comes_to_what_was_followed() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "CONFIG ?= configs/local.yaml" in makefile
    assert re.search(
        r"^engine: .*\n\t@\$\(VENV\)/bin/engine-build ensure --config \$\(CONFIG\)$", makefile, re.MULTILINE
    )
    assert re.search(r"^serve: engine ", makefile, re.MULTILINE)


def test_the_change_of_version_fits_the_configuration() -> None:
    args = yaml.safe_load(blocks(OWN, "yaml")[0])["applications"][0]["args"]
    [change] = yaml.safe_load(blocks(NEWER, "yaml")[0])
    live = parse_live_models(change["user_config"], per_model(parse_settings(args)))
    assert {name: one.version for name, one in live.items()} == {"imagenet": 1, NAME: 2}


def test_the_service_answers_the_readmes_call_with_ones_own_labels(clients_address: str, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    shutil.copy(ROOT / "engine_build" / "samples" / "cat.jpg", tmp_path / "photos" / "cat")
    [call] = [line for line in commands(OWN) if line.startswith("curl ")]
    assert "localhost:8000" in call
    answer = follow(call.replace("http://", "").replace("localhost:8000", clients_address), tmp_path)
    assert f'"model":"{NAME}"' in answer
    assert '"label":"cat"' in answer


def test_models_have_their_own_labels_at_the_same_time(clients_address: str, photographs: dict[str, bytes]) -> None:
    with httpx.Client(base_url=clients_address, timeout=60) as http:
        models = {one["name"]: one for one in http.get("/models").json()["models"]}
        assert models[NAME]["num_classes"] == len(LABELS)
        assert models[NAME]["trained"] is True
        for name, picture in photographs.items():
            answers = [
                http.post("/predict", params={"model": model, "top_k": 4}, content=picture).json() for model in models
            ]
            assert [answer["model"] for answer in answers] == list(models)
            labels = [[one["label"] for one in answer["predictions"]] for answer in answers]
            own = list(models).index(NAME)
            assert labels[own][0] == Path(name).stem
            assert sorted(labels[own]) == sorted(LABELS)
            assert not set(labels[1 - own]) & set(LABELS) - {"espresso"}  # which ImageNet has too
