"""Every metric of this service: name, kind, labels, meaning. Ray's metrics and the README's table are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STAGE_BUCKETS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000)
GPU_BUCKETS_MS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SERVE_TAGS = ("application", "deployment", "replica")
"""What Serve adds in a replica."""


@dataclass(frozen=True, slots=True)
class MetricName:
    """One metric.

    Attributes:
        name: as it is reported; Ray puts `ray_` before it, and `_total` behind a counter's.
        description: one line.
        tags: of our own.
        buckets: upper bounds, of a histogram.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def scraped_name(self) -> str:
        """As Prometheus sees it, of a histogram without `_bucket`, `_sum`, `_count`."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


REPLICA_METRICS = (
    MetricName("image_serve_pictures", "counter", "Pictures by outcome: ok, or an error code.", ("model", "outcome")),
    MetricName(
        "image_serve_request_ms",
        "histogram",
        "Milliseconds from the arrival of a picture to its answer, inside the service.",
        ("model",),
        STAGE_BUCKETS_MS,
    ),
    MetricName(
        "image_serve_stage_ms",
        "histogram",
        "Milliseconds a picture spent in a stage: queue, preprocess, inference.",
        ("model", "stage"),
        STAGE_BUCKETS_MS,
    ),
    MetricName("image_serve_batch_pictures", "histogram", "Pictures per batch.", ("model",), BATCH_BUCKETS),
    MetricName(
        "image_serve_batch_ms", "histogram", "Milliseconds of the engine per batch.", ("model",), STAGE_BUCKETS_MS
    ),
    MetricName(
        "image_serve_batches",
        "counter",
        "Batches by why they were sent: full, deadline, idle.",
        ("model", "reason"),
    ),
    MetricName("image_serve_model_version", "gauge", "Version of the engine that serves.", ("model",)),
    MetricName(
        "image_serve_version_refused",
        "counter",
        "Engine versions that were not taken in, because their figures are bad or they do not run.",
        ("model",),
    ),
    MetricName(
        "image_serve_gpu_ms",
        "histogram",
        "Milliseconds of a batch on the GPU, by step: copy_in, run, copy_out.",
        ("model", "step"),
        GPU_BUCKETS_MS,
    ),
    MetricName("image_serve_gpu_padding", "counter", "Pictures that batches were padded with.", ("model",)),
    MetricName(
        "image_serve_gpu_memory_bytes",
        "gauge",
        "Bytes of the GPU's memory: buffers and engine of this replica, free and total of the GPU.",
        ("model", "kind"),
    ),
)
"""Of replicas."""

_STAGE = ("application", "deployment")
CONTROLLER_METRICS = (
    MetricName("image_serve_autoscaling_desired_replicas", "gauge", "Replicas the policy asks for.", _STAGE),
    MetricName("image_serve_autoscaling_running_replicas", "gauge", "Replicas that serve.", _STAGE),
    MetricName(
        "image_serve_autoscaling_start_up_s", "gauge", "Seconds from asking for a replica until it serves.", _STAGE
    ),
    MetricName("image_serve_autoscaling_backlog_pictures", "gauge", "Pictures that wait or are in work.", _STAGE),
    MetricName("image_serve_autoscaling_arrivals_per_s", "gauge", "Pictures offered per second.", _STAGE),
    MetricName("image_serve_autoscaling_pictures_per_s", "gauge", "What one replica can do.", _STAGE),
)
"""Of the autoscaling policies, which run in Serve's controller."""
