"""Everything that can be configured, validated; unknown keys are errors."""

from serve_app.settings.application import (
    TENSOR_SUFFIX,
    ModelSettings,
    Settings,
    classifier_deployment,
    needs_gpu,
    parse_settings,
    per_model,
)
from serve_app.settings.base import Auto, nearest_key
from serve_app.settings.live import Live, LiveModel, LiveModels, parse_live, parse_live_models
from serve_app.settings.scaling import DAYS, Day, ScalingGoal, ScheduledFloor, parse_goal
from serve_app.settings.sections import (
    BatchingSettings,
    EngineSettings,
    LimitSettings,
    LogSettings,
    PreprocessSettings,
    RuntimeSettings,
)

__all__ = [
    "DAYS",
    "TENSOR_SUFFIX",
    "Auto",
    "BatchingSettings",
    "Day",
    "EngineSettings",
    "LimitSettings",
    "Live",
    "LiveModel",
    "LiveModels",
    "LogSettings",
    "ModelSettings",
    "PreprocessSettings",
    "RuntimeSettings",
    "ScalingGoal",
    "ScheduledFloor",
    "Settings",
    "classifier_deployment",
    "nearest_key",
    "needs_gpu",
    "parse_goal",
    "parse_live",
    "parse_live_models",
    "parse_settings",
    "per_model",
]
