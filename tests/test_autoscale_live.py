"""What `autoscale live` makes of what it saw; that it sees it is shown by running it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scripts.autoscale.live import Phase, Step, configuration, verdicts
from scripts.autoscale.live_plot import draw
from scripts.autoscale.observe import _DECISION, _SENDING, Observed, Sample, Told, _lines
from scripts.bench.load import LoadResult
from serve_app.launch import FAST_INGRESS_ENV
from serve_app.lint import lint_config

STEP = Step(30, 4, before_s=10, during_s=30, after_s=60, keep_s=20, max_wait_ms=1000)


def phase(began_s: float, rate_per_s: float, **errors: int) -> Phase:
    return Phase(began_s, rate_per_s, cast(LoadResult, SimpleNamespace(errors=errors)))


def decision(at_s: float, before: int, desired: int) -> Told:
    fields = {"deployment": "Classifier", "before": before, "desired": desired, "backlog_pictures": 3}
    return Told(at_s, {**fields, "arrivals_per_s": 100.0})


def seen(asked_s: float = 111.5, started_s: float = 118.0, serves_s: float = 118.4, decoders: int = 1) -> Observed:
    def sample(at_s: float) -> Sample:
        classifiers = 3 if started_s <= at_s < 170 else 1
        return Sample(at_s, {"Preprocessor": decoders if at_s > 120 else 1, "Classifier": classifiers}, {})

    return Observed(
        samples=[sample(100 + number / 5) for number in range(500)],
        decisions=[decision(105, 1, 1), decision(asked_s, 1, 4), decision(160, 4, 1)],
        classifiers=[Told(101, {"classifiers": 1}), Told(serves_s, {"classifiers": 2})],
    )


PHASES = [phase(100, 30), phase(110, 120), phase(140, 30)]


def met(observed: Observed, phases: list[Phase] = PHASES) -> list[bool]:
    return [line[2] for line in verdicts(observed, phases, STEP)]


def test_a_good_run_meets_every_target() -> None:
    assert met(seen()) == [True] * 5


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"asked_s": 112.5}, 0),
        ({"started_s": 118.0, "serves_s": 119.5}, 1),
        ({"decoders": 2}, 2),
    ],
)
def test_each_target_can_be_missed(changes: dict[str, Any], missed: int) -> None:
    assert met(seen(**changes))[missed] is False


def test_replicas_that_stay_and_errors_are_misses() -> None:
    stayed = seen()
    stayed.samples = [one for one in stayed.samples if one.at_s < 160]
    assert met(stayed)[3] is False
    assert met(seen(), [PHASES[0], phase(110, 120, reset=2), PHASES[2]])[4] is False


def test_logs_are_read_from_the_start_of_the_watch(tmp_path: Path) -> None:
    log = tmp_path / "controller_1.log"
    log.write_text(
        'INFO 2026-11-24 14:41:01,786 controller 16933 -- autoscaling {"desired": 4}\n'
        "INFO 2026-11-24 14:41:02,000 controller 16933 -- something else\n"
        'INFO 2026-11-24 14:41:03,250 controller 16933 -- autoscaling {"desired": 5}\n'
        "INFO 2026-11-24 14:41:04,000 image-serve_Preprocessor abc -- 3 classifier(s) for 1 sender(s): up to 6\n"
    )
    [(first_s, _), (second_s, text)] = list(_lines(log, _DECISION, 0))
    assert (second_s - first_s, text) == (pytest.approx(1.464), '{"desired": 5}')
    assert [text for _, text in _lines(log, _DECISION, first_s + 1)] == ['{"desired": 5}']
    assert [text for _, text in _lines(log, _SENDING, 0)] == ["3"]


def test_the_configuration_has_no_faults() -> None:
    assert lint_config(configuration(STEP), FAST_INGRESS_ENV) == []


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    draw(seen(), [(100, 30), (110, 120), (140, 30)], tmp_path / "live.png")
    assert (tmp_path / "live.png").stat().st_size > 10_000
