"""What is simulated, read from `profiles/NAME.yaml`: two stages, their speed, bounds and goals. Unknown keys are
errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_app.errors import ConfigError
from serve_app.latency import LatencyTable
from serve_app.settings import ScalingGoal

PROFILES = Path(__file__).parent / "profiles"
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StageProfile(_Section):
    """One stage and what one of its replicas does."""

    latency_ms: Annotated[dict[Count, Seconds], Field(min_length=1)]
    """Batch size -> milliseconds per batch."""
    max_batch_size: Count
    """Largest batch that forms."""
    start_up_s: Annotated[float, Field(ge=0)]
    """From asking for a replica until it serves, on average."""
    min_replicas: Count = 1
    """The stage never has fewer."""
    max_replicas: Count
    """The stage never has more."""
    goal: ScalingGoal = ScalingGoal()
    """For our policies; max_wait_s and start_up_s come from this profile unless they are given here. Ray's policy
    waits `keep_s` before it shrinks, too."""
    ray_target: Seconds | None = None
    """Ray's target_ongoing_requests, in pictures; without one, what half the objective allows by Little's law."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> StageProfile:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is above max_replicas")
        return self

    @property
    def table(self) -> LatencyTable:
        return LatencyTable.of(self.latency_ms)

    @property
    def pictures_per_s(self) -> float:
        """The highest rate of one replica, with batches that may form."""
        return LatencyTable.of(
            {size: ms for size, ms in self.latency_ms.items() if size <= self.max_batch_size} or self.latency_ms
        ).best_pictures_per_s()


class Profile(_Section):
    """The service and the times of what watches it, in seconds."""

    objective_s: Seconds
    """A picture answered later than this after its arrival is late."""
    max_wait_s: Seconds
    """A picture that would wait longer is refused when it arrives."""
    sample_s: Seconds = 0.4
    """Replicas note their signals so often."""
    metrics_interval_s: Seconds = 0.5
    """Replicas report what they noted to the controller so often."""
    look_back_period_s: Seconds = 10.0
    """Older notes are dropped from the reports."""
    control_interval_s: Seconds = 0.5
    """The controller decides so often."""
    decode: StageProfile
    """Files to engine input: the deployment Preprocessor."""
    classify: StageProfile
    """The engine: the deployment Classifier."""

    @property
    def bottleneck_per_s(self) -> float:
        """Pictures per second of one replica of the slower stage."""
        return min(self.decode.pictures_per_s, self.classify.pictures_per_s)


def load_profile(name: str) -> Profile:
    """Reads `profiles/NAME.yaml`, or any other file whose path ends in `.yaml`.

    Raises:
        ConfigError: there is no such profile, or its content is wrong; one line.
    """
    path = Path(name) if name.endswith(".yaml") else PROFILES / f"{name}.yaml"
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text()))
    except OSError:
        known = ", ".join(sorted(one.stem for one in PROFILES.glob("*.yaml")))
        raise ConfigError(f"no profile {path}; there are: {known}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = [_problem(one["type"], one["loc"], one["msg"]) for one in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(problems)}") from None


def _problem(kind: str, location: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(part) for part in location) or "profile"
    return f"{where}: {'unknown key' if kind == 'extra_forbidden' else message.removeprefix('Value error, ')}"
