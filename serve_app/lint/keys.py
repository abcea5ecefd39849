"""A configuration against Ray Serve's own models: keys they do not have, and values they refuse."""

from __future__ import annotations

import copy
import importlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from serve_app.lint.finding import Finding, Findings, items, section
from serve_app.settings import nearest_key

_ADVICE = {
    "num_replicas is not allowed": "remove num_replicas, or autoscaling_config",
    "remote URIs": "give a local:// or remote URI, or leave it out and install the code on every node",
    "must be greater than or equal to min_replicas": "raise max_replicas or lower min_replicas",
}
"""Part of a message of Ray's -> what to do about it."""


def ray_models(env: Mapping[str, str]) -> tuple[Any, Any]:
    """The modules `ray.serve.config` and `ray.serve.schema`, imported as on a node with `env`."""
    with _variables(env):
        return importlib.import_module("ray.serve.config"), importlib.import_module("ray.serve.schema")


def unknown_keys(value: object, model: type[BaseModel], at: str) -> Findings:
    """Keys that `model`, and the models inside it, do not have."""
    if not isinstance(value, Mapping):
        return  # a wrong type is found by validation
    for key, inner in value.items():
        path = f"{at}.{key}".lstrip(".")
        field = model.model_fields.get(key)
        if field is None:
            yield Finding("error", path, f"unknown key; {nearest_key(str(key), [*model.model_fields])}")
        elif inner_model := _model_in(field.annotation):
            yield from unknown_keys(inner, inner_model, path)
            if isinstance(inner, Sequence):
                for index, item in enumerate(inner):
                    yield from unknown_keys(item, inner_model, f"{path}[{index}]")


def refused_by(model: type[BaseModel], value: object, at: str) -> Findings:
    """What Ray's own validation would stop the start for, other than unknown keys."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray calls metrics_interval_s deprecated, and has nothing in its place
            model.model_validate(value)
    except ValidationError as error:
        for problem in error.errors():
            if problem["type"] != "extra_forbidden":
                message = problem["msg"].removeprefix("Value error, ").rstrip(". ")
                yield Finding("error", _path(at, problem["loc"], value), f"{message}; {_advice(message)}")
    except Exception as error:  # Ray's validators trust the shape of what they are given
        yield Finding("error", at or "file", f"Ray cannot read it ({error}); compare its shape with configs/local.yaml")


def without_policies(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy: Ray imports policies while it validates, and lets their exceptions through."""
    copied = copy.deepcopy(dict(config))
    for _, application in items(copied, "applications", ""):
        for _, deployment in items(application, "deployments", ""):
            if scaling := section(deployment, "autoscaling_config"):
                cast(dict[str, Any], deployment)["autoscaling_config"] = but_policy(scaling)
    return copied


def but_policy(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """An `autoscaling_config` that Ray can validate without importing anything."""
    return {key: value for key, value in scaling.items() if key != "policy"}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as `Optional[Union[dict, Model]]` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _advice(message: str) -> str:
    return next((advice for part, advice in _ADVICE.items() if part in message), "correct it")


def _path(at: str, location: Sequence[int | str], value: Any) -> str:
    """Dotted path; pydantic also names the types of a union, which are no part of it."""
    for step in location:
        if isinstance(step, int):
            at, value = f"{at}[{step}]", value[step] if isinstance(value, list) else None
        elif isinstance(value, Mapping) and step.isidentifier():  # a required key is named where it is not
            at, value = f"{at}.{step}".lstrip("."), value.get(step)
    return at or "file"


@contextmanager
def _variables(env: Mapping[str, str]) -> Iterator[None]:
    """Ray Serve freezes its variables at import: they must not be frozen without those the service is to start with."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in env.items() if name.startswith("RAY_")})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
