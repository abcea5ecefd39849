from __future__ import annotations

import pytest

from serve_app.errors import ConfigError
from serve_app.settings import Settings, parse_settings


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
