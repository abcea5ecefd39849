"""Clients of a running service, sync and async, over its native API.

from pathlib import Path
from serve_app.client import Client

with Client("http://localhost:8000") as client:
    answer = client.classify(Path("cat.jpg"))
    print(answer.predictions[0].label)
"""

from serve_app.client.answers import Answer, LiveModel, LiveStage, LiveView, Model
from serve_app.client.asynchronous import AsyncClient
from serve_app.client.blocking import Client
from serve_app.client.errors import (
    BadAnswer,
    ClientError,
    Refused,
    Rejected,
    ServiceFailed,
    TimeUp,
    Unreachable,
    Unreadable,
)
from serve_app.types import Prediction, Priority, Timing

__all__ = [
    "Answer",
    "AsyncClient",
    "BadAnswer",
    "Client",
    "ClientError",
    "LiveModel",
    "LiveStage",
    "LiveView",
    "Model",
    "Prediction",
    "Priority",
    "Refused",
    "Rejected",
    "ServiceFailed",
    "TimeUp",
    "Timing",
    "Unreachable",
    "Unreadable",
]
