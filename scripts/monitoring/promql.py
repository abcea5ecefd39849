"""PromQL of this service, as the dashboard asks it, and what a query is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping

from serve_app.errors import fault_of_codes

MODEL = 'application=~"$application",model=~"$model"'
OK = f'{MODEL},outcome="ok"'
STAGE = 'application=~"$application"'
WINDOW = "[$__rate_interval]"

PICTURES = "ray_image_serve_pictures_total"
REQUEST_MS = "ray_image_serve_request_ms"
STAGE_MS = "ray_image_serve_stage_ms"
BATCHES = "ray_image_serve_batches_total"


def outcomes() -> dict[str, str]:
    """What became of a picture -> values of the label `outcome`, as a regular expression of PromQL.

    `shed` was refused in time, `rejected` is the client's fault, `failed` is ours.
    """
    kinds: dict[str, list[str]] = {"answered": ["ok"], "shed": [], "rejected": [], "failed": []}
    for code, kind in sorted(fault_of_codes().items()):
        kinds[kind].append(code)
    return {kind: "|".join(codes) for kind, codes in kinds.items()}


def rate(metric: str, matchers: str, by: str = "") -> str:
    """Per second, summed over all labels but those named in `by`."""
    summed = f"sum by ({by}) " if by else "sum"
    return f"{summed}(rate({metric}{{{matchers}}}{WINDOW}))"


def quantile(share: float, metric: str, matchers: str, by: str = "") -> str:
    """Of a histogram, for each value of the labels named in `by`."""
    buckets = rate(f"{metric}_bucket", matchers, f"le, {by}" if by else "le")
    return f"histogram_quantile({share:g}, {buckets})"


def mean(metric: str, matchers: str, by: str = "") -> str:
    """Of a histogram, as near as its buckets are fine: Ray adds up their middles."""
    return f"{rate(f'{metric}_sum', matchers, by)} / {rate(f'{metric}_count', matchers, by)}"


def share(kind: str) -> str:
    """Of all pictures, those of a kind of `outcomes`; 0 where there was none."""
    some = rate(PICTURES, f'{MODEL},outcome=~"{outcomes()[kind]}"')
    return f"({some} or vector(0)) / {rate(PICTURES, MODEL)}"


def late() -> str:
    """Share of the answers that took longer than a second: the bound of a bucket, so that nothing is guessed."""
    in_time = rate(f"{REQUEST_MS}_bucket", f'{MODEL},le=~"1000(.0)?"')
    return f"1 - {in_time} / {rate(f'{REQUEST_MS}_count', MODEL)}"


def mean_batch() -> str:
    """Pictures per batch of each model; the histogram's own sum is too coarse."""
    return f"{rate(PICTURES, OK, 'model')} / {rate(BATCHES, MODEL, 'model')}"


def padding() -> str:
    """Share of the pictures on the GPU that only fill batches up, of each model."""
    filled = rate("ray_image_serve_gpu_padding_total", MODEL, "model")
    return f"{filled} / ({filled} + {rate(PICTURES, OK, 'model')})"


def of_stage(name: str) -> str:
    """What the autoscaling policy says of each deployment; while the controller moves there may be two of it."""
    return f"max by (application, deployment) (ray_image_serve_autoscaling_{name}{{{STAGE}}})"


def possible() -> str:
    """Pictures per second that the replicas of each deployment that serve can do."""
    return f"{of_stage('pictures_per_s')} * {of_stage('running_replicas')}"


def with_values(expr: str, values: Mapping[str, str]) -> str:
    """`expr` with Grafana's variables replaced.

    Raises:
        ValueError: names a variable that has no value.
    """
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    if left := re.search(r"\$\w+", expr):
        raise ValueError(f"nothing is known of the variable {left[0]} in {expr}; add it to the values")
    return expr


_SELECTOR = re.compile(r"\b((?:ray_\w+|up|\w+:[\w:]+))(?:\{([^{}]*)\})?")


def selectors(expr: str) -> list[tuple[str, str]]:
    """Metric and matchers of everything an expression reads, in the order of appearance."""
    return [(found[1], found[2] or "") for found in _SELECTOR.finditer(expr)]
