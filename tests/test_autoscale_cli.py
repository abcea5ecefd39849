"""The command, its profiles, tables and plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scripts.autoscale.cli import _parser, main
from scripts.autoscale.contenders import CLASSIFY, CONTENDERS, DECODE, ray_grid
from scripts.autoscale.profile import PROFILES, load_profile
from scripts.autoscale.replay import Comparison, best_within
from scripts.autoscale.simulate import Outcome
from scripts.autoscale.tables import comparison_table, ratio_table
from scripts.autoscale.traces import SHAPES, Trace
from serve_app.errors import ConfigError


def outcome(policy: str, shed: int, replica_s: float, late: int = 10) -> Outcome:
    return Outcome(
        policy=policy,
        describe="made up",
        offered=1000,
        in_time=1000 - late - shed,
        late=late,
        shed=shed,
        p99_ms=700,
        replica_s={DECODE: 100.0, CLASSIFY: replica_s - 100},
        most={DECODE: 1, CLASSIFY: 9},
        reversals={DECODE: 0, CLASSIFY: 3},
        moments=[],
    )


COMPARISON = Comparison(
    Trace("made", ((0, 1), (300, 9), (600, 1))), [outcome("ours", 40, 900), outcome("ray", 90, 600)]
)


def test_the_table_has_a_row_for_each_policy() -> None:
    rows = [line for line in comparison_table(COMPARISON).splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["ours", "ray"]
    assert rows[0] == "| ours | 1000 | 950 | 10 | 40 | 50 | 5.00% | 700 | 100 | 800 | 900 | 1 | 9 | 0 | 3 | 3.0 |"


def test_the_ratios_are_ours_over_theirs() -> None:
    assert ratio_table([COMPARISON], "ours", "ray").splitlines()[-1] == "| made | 0.50 | 1.50 | 1.42 |"
    perfect = Comparison(COMPARISON.trace, [outcome("ours", 0, 900, late=0), outcome("ray", 0, 900, late=0)])
    assert ratio_table([perfect], "ours", "ray").splitlines()[-1] == "| made | both 0 | 1.00 | 1.00 |"


def test_the_best_is_the_one_that_misses_least_at_no_more_cost() -> None:
    tried = [outcome("a", 50, 900), outcome("b", 20, 950), outcome("c", 0, 1200), outcome("d", 50, 800)]
    assert best_within(tried, 1000).policy == "b"
    assert best_within(tried, 900).policy == "d"
    assert best_within(tried, 100).policy == "d"


def test_the_grid_has_no_setting_twice() -> None:
    described = [contender.describe for contender in ray_grid(load_profile("cpu"))]
    assert len(described) == len(set(described)) >= 40


def test_a_recorded_load_is_replayed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "short.csv"
    file.write_text("seconds,pictures_per_s\n0,60\n10,250\n30,60\n40,0\n")
    out = tmp_path / "out"
    assert main(["replay", str(file), "--out", str(out), "--policies", *CONTENDERS]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in CONTENDERS)
    assert "| ours / ray |" in printed
    assert (out / "short.png").read_bytes().startswith(b"\x89PNG")
    raw = json.loads((out / "short.json").read_text())
    assert [one["policy"] for one in raw["outcomes"]] == list(CONTENDERS)
    assert len(raw["outcomes"][0]["moments"]) == 80


@pytest.mark.parametrize("arguments", [["noon"], ["step", "--profile", "gpu"], ["nothing.csv"]])
def test_what_is_not_there_is_told_in_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *arguments, "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("autoscale: ")
    assert told.count("\n") == 1


def test_without_a_name_every_generated_load_is_replayed() -> None:
    arguments = _parser().parse_args(["replay"])
    assert arguments.traces == list(SHAPES)
    assert arguments.policies == ["ours", "ray"]


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_profile_is_read(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile.bottleneck_per_s == profile.classify.pictures_per_s
    assert profile == load_profile(str(path))


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        (None, "objectives_s", 1.0, "objectives_s: unknown key"),
        ("decode", "max_batch", 4, "decode.max_batch: unknown key"),
        ("classify", "latency_ms", {}, "classify.latency_ms: "),
        ("classify", "min_replicas", 33, "classify: min_replicas is above max_replicas"),
        ("classify", "goal", {"utilisation": 0.5}, "classify.goal.utilisation: unknown key"),
    ],
)
def test_a_wrong_profile_is_told_in_one_line(
    section: str | None, key: str, value: object, told: str, tmp_path: Path
) -> None:
    values = yaml.safe_load((PROFILES / "cpu.yaml").read_text())
    (values[section] if section else values)[key] = value
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        load_profile(str(file))
    assert f"{file}: {told}" in str(caught.value)
    assert "\n" not in str(caught.value)
