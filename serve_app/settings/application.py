"""The `args` of the application in a configuration file, as one validated, frozen tree. Unknown keys are errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from serve_app.settings.base import AnySection, Section, parse
from serve_app.settings.sections import (
    BatchingSettings,
    EngineSettings,
    LimitSettings,
    LogSettings,
    PreprocessSettings,
    RuntimeSettings,
)

Placement = Literal["colocated", "split"]
TENSOR_SUFFIX = "_tensor"
"""`NAME_tensor` is model NAME for clients of the Open Inference Protocol that preprocess by themselves."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ModelSettings(Section):
    """One of several models: what is different for it from the top level."""

    engine: EngineSettings = EngineSettings()
    """`engine.model` is the model's own name unless it is given."""
    placement: Placement | None = None
    """As at the top level; in `split` placement its deployment is `Classifier-NAME`."""
    preprocess: PreprocessSettings = PreprocessSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    batching: BatchingSettings = BatchingSettings()


class Settings(Section):
    """Everything the application takes."""

    engine: EngineSettings = EngineSettings()
    placement: Placement = "colocated"
    """`colocated`: the engine runs in the process that decodes. `split`: in Classifier replicas of its own."""
    preprocess: PreprocessSettings = PreprocessSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    batching: BatchingSettings = BatchingSettings()
    limits: LimitSettings = LimitSettings()
    logs: LogSettings = LogSettings()
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    """Several models, by the names that clients use; the first is the default. What a model does not say is as at the
    top level. Left out, there is one, named as its engine."""

    @field_validator("models")
    @classmethod
    def _names_are_plain(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name in models:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot be part of an address; use letters, digits, '.', '_' and '-', 64 at most"
                )
            if name.endswith(TENSOR_SUFFIX):
                raise ValueError(
                    f"{name!r} ends with {TENSOR_SUFFIX}, which names the same model for clients that send tensors; "
                    "choose another name"
                )
        return models

    @model_validator(mode="after")
    def _limits_fit_together(self) -> Settings:
        limits = self.limits
        if limits.max_pictures_per_request > limits.max_queued_pictures:
            raise ValueError(
                "limits.max_pictures_per_request is above limits.max_queued_pictures: such a request could never be "
                "admitted; raise the second or lower the first"
            )
        if limits.default_timeout_ms > limits.max_timeout_ms:
            raise ValueError("limits.default_timeout_ms is above limits.max_timeout_ms; lower it")
        return self

    @model_validator(mode="after")
    def _names_are_given_once(self) -> Settings:
        if self.models and "model" in self.engine.model_fields_set:
            raise ValueError("engine.model is for a single model; with models, each is named there: remove it")
        return self


def parse_settings(args: Mapping[str, Any]) -> Settings:
    """Validates `args`.

    Raises:
        ConfigError: one line per problem, each with its key's path; an unknown key names the nearest valid one.
    """
    return parse(Settings, args, "args")


def per_model(settings: Settings) -> dict[str, Settings]:
    """Settings of each model as if it were the only one, by public name; without `models:` under the name `""`, since
    its engine says how it is called."""
    if not settings.models:
        return {"": settings}
    return {name: _of_one(settings, name, model) for name, model in settings.models.items()}


def _of_one(settings: Settings, name: str, model: ModelSettings) -> Settings:
    engine = _over(settings.engine, model.engine)
    if "model" not in model.engine.model_fields_set:
        engine = engine.model_copy(update={"model": name})
    changes: dict[str, Any] = {
        "engine": engine,
        "placement": model.placement or settings.placement,
        "preprocess": _over(settings.preprocess, model.preprocess),
        "runtime": _over(settings.runtime, model.runtime),
        "batching": _over(settings.batching, model.batching),
        "models": {},
    }
    return settings.model_copy(update=changes)


def _over(base: AnySection, changed: AnySection) -> AnySection:
    """`base` with what was written down in `changed`."""
    return base.model_copy(update={name: getattr(changed, name) for name in changed.model_fields_set})


def classifier_deployment(name: str) -> str:
    """The deployment of a model in split placement, by the model's name in `per_model`."""
    return f"Classifier-{name}" if name else "Classifier"


def needs_gpu(settings: Settings) -> bool:
    """Whether any replica runs on a GPU: an engine for one, and no stand-in for it."""
    return any(
        one.engine.backend == "tensorrt" and one.runtime.device == "cuda" for one in per_model(settings).values()
    )
