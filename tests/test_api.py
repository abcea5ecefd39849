"""What parameters take and refuse, and that what is declared of them is what is read."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from serve_app import api, errors
from serve_app.errors import BadParameter, ServeError, UnknownModel
from serve_app.types import Priority

NUMBERS = (api.TOP_K, api.TIMEOUT_MS, api.RETRY_ATTEMPT)
MODELS = {"fake": 1, "flowers": 2}


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_whole_numbers(number: api.WholeNumber) -> None:
    assert number.parse(None) is None
    assert [number.parse(text) for text in ("1", "007", "999999999")] == [1, 7, 999_999_999]
    assert number.parse(str(number.example)) == number.example


@pytest.mark.parametrize("text", ["", "0", "000", "-1", "+1", " 1", "1.0", "1e3", "1_0", "³", "٣", "x", "1000000000"])
def test_what_is_no_whole_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadParameter, match=r"^top_k must be a whole number above 0, not '"):
        api.TOP_K.parse(text)


def test_a_long_value_is_not_said_back_whole() -> None:
    with pytest.raises(BadParameter) as refused:
        api.TOP_K.parse("9" * 5000)
    assert len(str(refused.value)) < 120
    with pytest.raises(UnknownModel) as unknown:
        api.MODEL.choose("m" * 5000, MODELS)
    assert len(str(unknown.value)) < 120


@given(st.integers(-3, 10**10))
def test_the_declared_bounds_are_those_that_are_read(value: int) -> None:
    declared = Draft202012Validator(api.TOP_K.schema()).is_valid(value)
    try:
        read = api.TOP_K.parse(str(value)) == value
    except BadParameter:
        read = False
    assert declared == read


def test_priority_is_one_of_the_words_of_its_type() -> None:
    assert api.PRIORITY.parse(None) == "interactive"
    assert [api.PRIORITY.parse(word) for word in get_args(Priority)] == list(get_args(Priority))
    assert api.PRIORITY.schema() == {"type": "string", "enum": list(get_args(Priority)), "default": "interactive"}
    for text in ("urgent", "", "Batch", " batch"):
        with pytest.raises(BadParameter, match=r"^x-priority must be interactive or batch, not '"):
            api.PRIORITY.parse(text)


def test_the_first_model_is_meant_where_none_is_named() -> None:
    assert [api.MODEL.choose(name, MODELS) for name in (None, "fake", "flowers")] == [1, 1, 2]
    with pytest.raises(UnknownModel, match=r"^no model 'vgg' here; served: fake, flowers$"):
        api.MODEL.choose("vgg", MODELS)


def test_names_of_headers_are_as_servers_hand_them_over() -> None:
    headers = [one.name for one in api.PARAMETERS if one.place == "header"]
    assert headers == [name.lower() for name in headers]
    assert len({one.name for one in api.PARAMETERS}) == len(api.PARAMETERS)


def test_every_code_of_the_error_tree_is_known_and_no_other() -> None:
    def below(kind: type[ServeError]) -> set[type[ServeError]]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__() if one.__module__ == errors.__name__))

    assert set(api.error_classes()) == below(ServeError)
    assert api.Problem(code="overloaded", message="").code in api.ERROR_CODES
    with pytest.raises(ValidationError, match="not one of bad_parameter, "):
        api.Problem(code="oops", message="")
