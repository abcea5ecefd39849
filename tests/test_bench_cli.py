from __future__ import annotations

import pytest

from scripts.bench import ablations
from scripts.bench.cli import _parser
from scripts.bench.memory import MIB, growth_table
from serve_app.launch import FAST_INGRESS_ENV
from serve_app.lint import lint_config
from serve_app.settings import parse_settings

ENGINE = "resnet18/openvino-int8"


@pytest.mark.parametrize("make", ablations.VARIANTS, ids=ablations.all_names())
def test_a_variant_is_a_configuration_that_could_be_served(make: ablations.Variant) -> None:
    variant = make(ENGINE)
    config = variant.configuration()
    assert [
        finding for finding in lint_config(config, {**FAST_INGRESS_ENV, **variant.env}) if finding.severity == "error"
    ] == []
    settings = parse_settings(config["applications"][0]["args"])
    assert settings.engine.model == "resnet18"
    assert variant.describe


def test_variants_differ_in_name() -> None:
    assert len(set(ablations.all_names())) == len(ablations.VARIANTS)


@pytest.mark.parametrize("command", ["closed", "open", "peers", "ablate", "pieces", "memory"])
def test_every_command_has_defaults(command: str) -> None:
    arguments = _parser().parse_args([command])
    assert callable(arguments.run)
    assert arguments.engine == ENGINE
    assert arguments.images.is_file()


def test_growth_counts_from_where_a_process_is_warm() -> None:
    points = {"replica": [(0.0, 100.0 * MIB), (2000.0, 150.0 * MIB), (10_000.0, 154.0 * MIB)]}
    assert "| replica | 100 | 150 | 154 | +5.0 |" in growth_table(points, 10_000)
