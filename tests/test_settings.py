from __future__ import annotations

import pytest

from serve_app.errors import ConfigError
from serve_app.settings import (
    BatchingSettings,
    Live,
    Settings,
    classifier_deployment,
    parse_goal,
    parse_live,
    parse_live_models,
    parse_settings,
    per_model,
)


def test_no_arguments_are_the_defaults() -> None:
    assert parse_settings({}) == Settings()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"placment": "split"}, r"args\.placment: unknown key; did you mean 'placement'\?"),
        ({"limits": {"max_body_byte": 5}}, r"args\.limits\.max_body_byte: unknown key; did you mean 'max_body_bytes'"),
        ({"batching": {"zzz": 1}}, "valid keys: latency_objective_ms, max_batch_size, max_in_flight, merge_wait_s"),
        ({"placement": "somewhere"}, r"args\.placement: .*'colocated' or 'split'"),
        ({"batching": {"max_batch_size": 0}}, r"args\.batching\.max_batch_size: .*greater than or equal to 1"),
        ({"limits": {"max_pictures_per_request": 300}}, "never be admitted"),
        ({"limits": {"default_timeout_ms": 200_000}}, "lower it"),
    ],
)
def test_what_is_wrong_is_named(args: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_settings(args)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_settings({"a": 1, "placement": "x", "runtime": {"threads": -1}})
    assert len(str(error.value).splitlines()) >= 3


def test_a_user_config_changes_what_it_names_and_nothing_else() -> None:
    settings = Settings(batching=BatchingSettings(max_batch_size=16, merge_wait_s=0.01))
    changed = parse_live({"max_batch_size": 4, "latency_objective_ms": 50}, settings)
    assert changed == Live(BatchingSettings(max_batch_size=4, merge_wait_s=0.01, latency_objective_ms=50), version=1)
    assert parse_live({"merge_wait_s": "auto", "version": 3}, settings) == Live(
        BatchingSettings(max_batch_size=16, merge_wait_s="auto"), version=3
    )
    assert parse_live(None, settings) == Live(settings.batching, version=1)


@pytest.mark.parametrize(
    ("user_config", "said"),
    [
        ({"max_batch": 4}, r"user_config\.max_batch: unknown key; did you mean 'max_batch_size'"),
        ({"max_batch_size": 17}, "largest that was warmed"),
        ({"latency_objective_ms": 0}, r"user_config\.latency_objective_ms: .*greater than 0"),
    ],
)
def test_a_wrong_user_config_is_named(user_config: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_live(user_config, Settings(batching=BatchingSettings(max_batch_size=16)))


def models(**sections: dict[str, object]) -> Settings:
    return parse_settings({"batching": {"max_batch_size": 8, "max_in_flight": 3}, "models": sections})


def test_a_model_differs_from_the_top_level_in_what_it_says() -> None:
    one, other = per_model(models(one={}, other={"placement": "split", "batching": {"max_batch_size": 4}})).values()
    assert (one.engine.model, one.placement, one.batching.max_batch_size) == ("one", "colocated", 8)
    assert (other.engine.model, other.placement, other.batching.max_batch_size) == ("other", "split", 4)
    assert other.batching.max_in_flight == 3
    assert one.models == other.models == {}
    named = per_model(models(public={"engine": {"model": "resnet18", "precision": "int8"}}))["public"]
    assert (named.engine.model, named.engine.precision) == ("resnet18", "int8")


def test_without_models_there_is_one_that_its_engine_names() -> None:
    settings = parse_settings({"engine": {"model": "resnet18"}})
    assert per_model(settings) == {"": settings}
    assert classifier_deployment("") == "Classifier"
    assert classifier_deployment("flowers") == "Classifier-flowers"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"models": {"a b": {}}}, "cannot be part of an address"),
        ({"models": {"a/b": {}}}, "cannot be part of an address"),
        ({"models": {"a_tensor": {}}}, "same model for clients that send tensors"),
        ({"engine": {"model": "a"}, "models": {"b": {}}}, "remove it"),
        ({"models": {"a": {"engine": {"precison": "int8"}}}}, r"args\.models\.a\.engine\.precison: .*'precision'"),
        ({"models": {"a": {"limits": {}}}}, r"args\.models\.a\.limits: unknown key"),
    ],
)
def test_wrong_models_are_named(args: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_settings(args)


def test_a_preprocessor_changes_each_of_its_models() -> None:
    settings = per_model(models(one={}, other={}))
    live = parse_live_models({"max_batch_size": 4, "models": {"other": {"max_batch_size": 2, "version": 5}}}, settings)
    assert [(one.batching.max_batch_size, one.version) for one in live.values()] == [(4, 1), (2, 5)]


@pytest.mark.parametrize(
    ("user_config", "said"),
    [
        ({"models": {"tow": {}}}, "no such model; did you mean 'two'"),
        ({"version": 2}, "give each its own"),
        ({"models": {"two": {"version": 2}}}, "user_config of Classifier-two"),
        ({"models": {"one": {"max_batch_size": 9}}}, r"user_config\.models\.one\.max_batch_size: 9 is above"),
        ({"models": {"one": {"max_batch": 9}}}, r"user_config\.models\.one\.max_batch: .*'max_batch_size'"),
    ],
)
def test_a_wrong_change_of_several_models_is_named(user_config: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_live_models(user_config, per_model(models(one={}, two={"placement": "split"})))


def test_a_goal_is_validated_to_its_floors() -> None:
    floor = {"start": "08:00", "end": "20:00", "min_replicas": 2}
    goal = parse_goal({"drain_s": 2, "floors": [{**floor, "days": ["mon"], "timezone": "Europe/Berlin"}]})
    assert goal.floors[0].weekdays() == {0}
    for wrong, said in (
        ({"utilisation": 0.5}, r"policy_kwargs\.utilisation: unknown key; did you mean 'utilization'"),
        (
            {"floors": [{**floor, "min_replica": 1}]},
            r"policy_kwargs\.floors\.0\.min_replica: unknown key; did you mean",
        ),
        ({"floors": [{**floor, "timezone": "Mars/Olympus"}]}, "no time zone 'Mars/Olympus'"),
        ({"floors": [{**floor, "timezone": "../etc"}]}, "no time zone"),
        ({"utilization": 1.5}, "less than or equal to 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_goal(wrong)
