"""The `user_config` of a deployment: what is changed while it runs, without a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from serve_app.errors import ConfigError
from serve_app.settings.application import Settings, classifier_deployment
from serve_app.settings.base import Auto, Positive, Section, nearest_key, parse
from serve_app.settings.sections import BatchingSettings


class LiveModel(Section):
    """What can be changed of a model."""

    max_batch_size: Positive | None = None
    """As `batching.max_batch_size`, and not above it: only sizes up to that were warmed."""
    merge_wait_s: Annotated[float, Field(ge=0, le=1)] | Auto | None = None
    """As `batching.merge_wait_s`."""
    latency_objective_ms: Annotated[float, Field(gt=0)] | None = None
    """As `batching.latency_objective_ms`."""
    version: Positive | None = None
    """As `engine.version`: the engine of that version is opened, checked and warmed beside the present one, and takes
    its place; where it does not pass, the present one stays."""


class LiveModels(LiveModel):
    """Of a Preprocessor, which may hold several models: what is said beside `models` is for all of them."""

    models: dict[str, LiveModel] = Field(default_factory=dict)
    """By name, before what is said for all."""


@dataclass(frozen=True, slots=True)
class Live:
    """What holds for a model now."""

    batching: BatchingSettings
    version: int


def parse_live(user_config: Mapping[str, Any] | None, settings: Settings) -> Live:
    """Of a Classifier: `settings` of its model with what `user_config` changes of it.

    Raises:
        ConfigError: as `parse_settings`.
    """
    return _applied(parse(LiveModel, user_config or {}, "user_config"), settings, "user_config")


def parse_live_models(user_config: Mapping[str, Any] | None, models: Mapping[str, Settings]) -> dict[str, Live]:
    """Of a Preprocessor: the same for each of its models.

    Args:
        models: settings by the names of `per_model`.

    Raises:
        ConfigError: as `parse_settings`; also for a model there is not, and for one version for several models.
    """
    live = parse(LiveModels, user_config or {}, "user_config")
    for name in live.models:
        if name not in models:
            raise ConfigError(f"user_config.models.{name}: no such model; {nearest_key(name, list(models))}")
    if live.version is not None and len(models) > 1:
        raise ConfigError("user_config.version: there are several models; give each its own below models")
    for name, settings in models.items():
        version = live.models[name].version if name in live.models else live.version
        if version is not None and settings.placement == "split":
            where = classifier_deployment(name)
            raise ConfigError(
                f"user_config: in split placement a version belongs to the user_config of {where}; set it there"
            )
    for_all = {name: getattr(live, name) for name in live.model_fields_set - {"models"}}
    return {
        name: _applied(
            LiveModel(**for_all | live.models.get(name, LiveModel()).model_dump(exclude_unset=True)),
            settings,
            f"user_config.models.{name}" if name in live.models else "user_config",
        )
        for name, settings in models.items()
    }


def _applied(live: LiveModel, settings: Settings, at: str) -> Live:
    most = settings.batching.max_batch_size
    if live.max_batch_size is not None and live.max_batch_size > most:
        raise ConfigError(
            f"{at}.max_batch_size: {live.max_batch_size} is above args.batching.max_batch_size ({most}), the largest "
            "that was warmed; lower it, or raise that and restart"
        )
    changes = {name: value for name, value in live if value is not None and name in BatchingSettings.model_fields}
    version = settings.engine.version if live.version is None else live.version
    return Live(settings.batching.model_copy(update=changes), version)
