"""The policies that are compared: ours, and Ray's own as its documentation would have it tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from ray.serve.autoscaling_policy import default_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from scripts.autoscale.controller import Policy, application_level, deployment_level
from scripts.autoscale.profile import Profile, StageProfile
from scripts.autoscale.reports import Reporting
from serve_app.autoscaling import PipelinePolicy, StagePolicy

DECODE, CLASSIFY = "Preprocessor", "Classifier"
RAY_METRICS_INTERVAL_S, RAY_LOOK_BACK_S = 1.0, 3.0
RAY_UPSCALE_DELAY_S, RAY_DOWNSCALE_DELAY_S = 1.0, 60.0
"""Far quicker than its defaults of 10, 30, 30 and 600 s."""
RAY_BATCHES = 1.5
"""Full batches per replica that its target allows: one in the engine, and half of the next waiting."""
GRID_DECODE = (64.0, 128.0, 256.0, 512.0)
"""Pictures; one Preprocessor can keep hundreds in the system, since most of them wait for the classifier."""
GRID_CLASSIFY = (0.03, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Shares of what the objective allows by Little's law; the least is about 1.5 pictures per replica."""
GRID_UPSCALE_S = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Contender:
    """One policy with its settings.

    Attributes:
        describe: what it is, one line.
        configs: deployment -> Ray's settings of its autoscaling.
        make: a new policy without memory, as the controller would call it.
    """

    name: str
    describe: str
    reporting: Reporting
    configs: dict[str, AutoscalingConfig]
    make: Callable[[], Policy]


def ours(profile: Profile) -> Contender:
    """`PipelinePolicy` for the application; Ray adds no delay to it."""
    goals = _goals(profile)
    return Contender(
        "ours",
        "PipelinePolicy, both stages decided together",
        _our_reporting(profile),
        _no_delays(profile),
        lambda: application_level(PipelinePolicy(order=(DECODE, CLASSIFY), stages=goals)),
    )


def ours_staged(profile: Profile) -> Contender:
    """`StagePolicy` for each deployment by itself."""
    goals = _goals(profile)
    return Contender(
        "ours-staged",
        "StagePolicy, each stage by itself",
        _our_reporting(profile),
        _no_delays(profile),
        lambda: deployment_level({name: StagePolicy(**goals[name]) for name in goals}),
    )


def ray(
    profile: Profile,
    decode_target: float | None = None,
    classify_target: float | None = None,
    upscale_delay_s: float = RAY_UPSCALE_DELAY_S,
    name: str = "ray",
) -> Contender:
    """Ray's default policy tuned to react quickly, as its documentation has it: short intervals and delays, and for
    a deployment with batching a target of one to one and a half full batches (pictures per replica)."""
    targets = {
        DECODE: decode_target or profile.decode.ray_target or RAY_BATCHES * profile.decode.max_batch_size,
        CLASSIFY: classify_target or profile.classify.ray_target or RAY_BATCHES * profile.classify.max_batch_size,
    }
    configs = {
        deployment: AutoscalingConfig(
            **_bounds(stage),
            target_ongoing_requests=targets[deployment],
            upscale_delay_s=upscale_delay_s,
            downscale_delay_s=RAY_DOWNSCALE_DELAY_S,
        )
        for deployment, stage in stages(profile).items()
    }
    shown = ", ".join(f"{deployment} {target:.0f}" for deployment, target in targets.items())
    return Contender(
        name,
        f"Ray's default policy, target_ongoing_requests {shown}, upscale_delay_s {upscale_delay_s:g}, "
        f"downscale_delay_s {RAY_DOWNSCALE_DELAY_S:g}, look_back_period_s {RAY_LOOK_BACK_S:g}",
        Reporting(profile.sample_s, RAY_METRICS_INTERVAL_S, RAY_LOOK_BACK_S),
        configs,
        lambda: deployment_level(dict.fromkeys(configs, default_autoscaling_policy)),
    )


def ray_grid(profile: Profile) -> Iterator[Contender]:
    """Every setting of Ray's default policy that `ray-best` is chosen from."""
    most = profile.objective_s * profile.classify.pictures_per_s
    for decode_target, share, delay_s in product(GRID_DECODE, GRID_CLASSIFY, GRID_UPSCALE_S):
        yield ray(profile, decode_target, share * most, delay_s, name="ray-best")


CONTENDERS: dict[str, Callable[[Profile], Contender]] = {"ours": ours, "ours-staged": ours_staged, "ray": ray}


def stages(profile: Profile) -> dict[str, StageProfile]:
    """Deployment -> its stage, in the order a picture meets them."""
    return {DECODE: profile.decode, CLASSIFY: profile.classify}


def _goals(profile: Profile) -> dict[str, dict[str, Any]]:
    return {
        deployment: {"max_wait_s": profile.max_wait_s, "start_up_s": stage.start_up_s}
        | stage.goal.model_dump(exclude_unset=True)
        for deployment, stage in stages(profile).items()
    }


def _our_reporting(profile: Profile) -> Reporting:
    return Reporting(profile.sample_s, profile.metrics_interval_s, profile.look_back_period_s)


def _no_delays(profile: Profile) -> dict[str, AutoscalingConfig]:
    return {
        deployment: AutoscalingConfig(**_bounds(stage), upscale_delay_s=0, downscale_delay_s=0)
        for deployment, stage in stages(profile).items()
    }


def _bounds(stage: StageProfile) -> dict[str, int]:
    return {"min_replicas": stage.min_replicas, "max_replicas": stage.max_replicas}
