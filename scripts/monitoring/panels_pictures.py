"""What the dashboard shows of pictures and batches."""

from __future__ import annotations

from scripts.monitoring.promql import (
    BATCHES,
    MODEL,
    OK,
    PICTURES,
    REQUEST_MS,
    STAGE_MS,
    late,
    mean,
    mean_batch,
    of_stage,
    quantile,
    rate,
    share,
)
from scripts.monitoring.shown import APPROXIMATE, Panel, Query, Row

GLANCE = Row(
    "At a glance",
    (
        Panel(
            "Answered",
            "Pictures answered per second.",
            "cps",
            (Query(rate(PICTURES, OK)),),
            kind="stat",
            width=4,
        ),
        Panel(
            "p99",
            "99 of 100 answers took at most this, inside the service.",
            "ms",
            (Query(quantile(0.99, REQUEST_MS, MODEL)),),
            kind="stat",
            width=4,
            threshold=1000,
        ),
        Panel(
            "Shed",
            "Share of pictures refused with 429 before any work was done on them.",
            "percentunit",
            (Query(share("shed")),),
            kind="stat",
            width=4,
            threshold=0.05,
        ),
        Panel(
            "Failed",
            "Share of pictures that ended in a fault of the service (5xx).",
            "percentunit",
            (Query(share("failed")),),
            kind="stat",
            width=4,
            threshold=0.01,
        ),
        Panel(
            "Backlog",
            "Pictures that wait or are in work, all stages together.",
            "short",
            (Query(f"sum({of_stage('backlog_pictures')})"),),
            kind="stat",
            width=4,
        ),
        Panel(
            "Replicas",
            "That serve, all stages together.",
            "short",
            (Query(f"sum({of_stage('running_replicas')})"),),
            kind="stat",
            width=4,
        ),
    ),
)

TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Pictures by outcome",
            "Per second: ok, or the error code of the answer.",
            "cps",
            (Query(rate(PICTURES, MODEL, "outcome"), "{{outcome}}"),),
            stacked=True,
        ),
        Panel(
            "Answered by model",
            "Pictures answered per second.",
            "cps",
            (Query(rate(PICTURES, OK, "model"), "{{model}}"),),
            stacked=True,
        ),
        Panel(
            "Not answered",
            "Share of all pictures: shed (429), rejected (other 4xx, the client's fault), failed (5xx, ours).",
            "percentunit",
            tuple(Query(share(kind), kind) for kind in ("shed", "rejected", "failed")),
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Answer time",
            "From the arrival of a picture to its answer, inside the service; interpolated within the buckets.",
            "ms",
            tuple(Query(quantile(one, REQUEST_MS, MODEL), f"p{one * 100:g}") for one in (0.5, 0.95, 0.99)),
            threshold=1000,
        ),
        Panel(
            "p99 by model",
            "Answer time of 99 of 100 pictures, of each model.",
            "ms",
            (Query(quantile(0.99, REQUEST_MS, MODEL, "model"), "{{model}}"),),
            threshold=1000,
        ),
        Panel(
            "Late",
            "Share of answers that took longer than a second, the default of batching.latency_objective_ms. Exact.",
            "percentunit",
            (Query(late(), "late"),),
            threshold=0.01,
        ),
        Panel(
            "Distribution of answer times",
            "Answers per second in each bucket.",
            "ms",
            (Query(rate(f"{REQUEST_MS}_bucket", MODEL, "le"), "{{le}}"),),
            kind="heatmap",
            width=24,
        ),
    ),
)

STAGES = Row(
    "Stages",
    (
        Panel(
            "Mean time by stage",
            f"Where the time of an answer goes: queue, preprocess, inference. {APPROXIMATE}",
            "ms",
            (Query(mean(STAGE_MS, MODEL, "stage"), "{{stage}}"),),
            stacked=True,
            width=12,
        ),
        Panel(
            "p99 by stage",
            "The stage that grows is the one to look at.",
            "ms",
            (Query(quantile(0.99, STAGE_MS, MODEL, "stage"), "{{stage}}"),),
            width=12,
        ),
    ),
)

BATCHES_ROW = Row(
    "Batches",
    (
        Panel(
            "Mean batch",
            "Answered pictures per batch. Not from the histogram, whose sum is approximate.",
            "short",
            (Query(mean_batch(), "{{model}}"),),
        ),
        Panel(
            "Why batches were sent",
            "Batches per second: full, deadline (waited long enough), idle (nothing else to do).",
            "cps",
            (Query(rate(BATCHES, MODEL, "reason"), "{{reason}}"),),
            stacked=True,
        ),
        Panel(
            "Time of a batch in the engine",
            "By model; interpolated within the buckets.",
            "ms",
            tuple(
                Query(quantile(one, "ray_image_serve_batch_ms", MODEL, "model"), f"p{one * 100:g} {{{{model}}}}")
                for one in (0.5, 0.99)
            ),
        ),
        Panel(
            "Distribution of batch sizes",
            "Batches per second in each bucket.",
            "short",
            (Query(rate("ray_image_serve_batch_pictures_bucket", MODEL, "le"), "{{le}}"),),
            kind="heatmap",
            width=24,
        ),
    ),
)
