from __future__ import annotations

import pytest

from serve_app.errors import ConfigError
from serve_app.settings import BatchingSettings, Settings, parse_goal, parse_live, parse_settings


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
    batching = BatchingSettings(max_batch_size=16, merge_wait_s=0.01)
    changed = parse_live({"max_batch_size": 4, "latency_objective_ms": 50}, batching)
    assert changed == BatchingSettings(max_batch_size=4, merge_wait_s=0.01, latency_objective_ms=50)
    assert parse_live({"merge_wait_s": "auto"}, batching).merge_wait_s == "auto"
    assert parse_live(None, batching) == batching


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
        parse_live(user_config, BatchingSettings(max_batch_size=16))


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
