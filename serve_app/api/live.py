"""What `GET /live` answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serve_app.api.answers import Count, Milliseconds, PerSecond, Positive, Schema, Timing


class Latency(Schema):
    """Milliseconds of whole answers inside the service."""

    p50: Milliseconds
    p99: Milliseconds


class Batches(Schema):
    """How pictures were put together for the engine."""

    mean: Annotated[float, Field(gt=0)]
    """Pictures per batch."""
    sizes: dict[str, Positive]
    """Batch size -> how many batches."""


class LiveModel(Schema):
    """Of one model, over the window."""

    pictures_per_s: PerSecond
    """Answered."""
    shed_per_s: PerSecond
    """Refused for want of room: 429."""
    rejected_per_s: PerSecond
    """The client's fault: other 4xx."""
    failed_per_s: PerSecond
    """The service's fault: 5xx."""
    latency_ms: Latency | None
    """null where nothing was answered."""
    stages_ms: Timing | None
    """Means of a picture; null where nothing was answered."""
    batch_pictures: Batches | None
    """null where no batch ran."""
    versions: dict[str, Positive]
    """Engine version -> replicas that serve it."""
    refused_version: str | None
    """Why the version that was asked for is not taken in; null where there is nothing to say."""


class Replicas(Schema):
    """Of one deployment."""

    desired: Count
    running: Count


class LiveStage(Schema):
    """One deployment."""

    deployment: str
    backlog_pictures: Annotated[float, Field(ge=0)]
    """Waiting before it and in work."""
    replicas: Replicas


class Live(Schema):
    """What the service did in the last seconds, all replicas together."""

    unix_s: float
    """When this was put together, seconds since 1970."""
    window_s: Annotated[float, Field(gt=0)]
    """How many last seconds rates and percentiles are of."""
    replicas_reporting: Count
    models: dict[str, LiveModel]
    """By public name."""
    stages: list[LiveStage]
