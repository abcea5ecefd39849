"""Answers of the service as values, and how they are read. Nothing here does any I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve_app.client.errors import BadAnswer, ClientError, Refused, Rejected, ServiceFailed, TimeUp
from serve_app.types import Prediction, Timing

T = TypeVar("T")
DEFAULT_RETRY_AFTER_S = 1.0
"""Where a refusal does not say."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What HTTP gave: status, headers with lower-case names, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One classified picture.

    Attributes:
        model: public name of the model that answered.
        version: of its engine.
        trained: False where the weights are random and the predictions mean nothing.
        predictions: best first.
        timing: milliseconds inside the service, by stage.
    """

    model: str
    version: int
    trained: bool
    predictions: tuple[Prediction, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class Model:
    """One served model; `details` is all that `GET /models` says of it."""

    name: str
    version: int
    trained: bool
    num_classes: int
    default: bool
    details: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LiveModel:
    """Rates of one model, per second; None where the window saw nothing of it.

    Attributes:
        shed_per_s: refused with 429.
        rejected_per_s: refused for the client's fault.
        failed_per_s: failed by a fault of the service.
        latency_ms: by percentile, `p50` and `p99`.
        stages_ms: mean by stage.
        batch_pictures: mean pictures of a batch.
    """

    pictures_per_s: float
    shed_per_s: float
    rejected_per_s: float
    failed_per_s: float
    latency_ms: Mapping[str, float] | None
    stages_ms: Mapping[str, float] | None
    batch_pictures: float | None


@dataclass(frozen=True, slots=True)
class LiveStage:
    """One deployment: pictures that wait at it, and its replicas."""

    deployment: str
    backlog_pictures: float | None
    desired_replicas: int | None
    running_replicas: int | None


@dataclass(frozen=True, slots=True)
class LiveView:
    """`GET /live`: the last `window_s` seconds of all replicas that reported."""

    unix_s: float
    window_s: float
    replicas_reporting: int
    models: Mapping[str, LiveModel]
    stages: tuple[LiveStage, ...]


def parse_answer(reply: Reply) -> Answer:
    """The answer to one picture.

    Raises:
        ClientError: the service answered an error, or somebody else answered.
    """
    document = _document(reply)
    return _shaped(reply, lambda: _answer(document, document))


def parse_answers(reply: Reply) -> list[Answer | ClientError]:
    """The answers to several pictures of one request, in order; an error stands in place of its picture.

    Raises:
        ClientError: the request as a whole was answered with an error.
    """
    document = _document(reply)
    return _shaped(reply, lambda: [_result(document, result, reply) for result in document["results"]])


def parse_models(reply: Reply) -> tuple[Model, ...]:
    """`GET /models`."""
    document = _document(reply)
    return _shaped(reply, lambda: tuple(map(_model, document["models"])))


def parse_live(reply: Reply) -> LiveView:
    """`GET /live`."""
    document = _document(reply)
    return _shaped(reply, lambda: _live(document))


def error_of(reply: Reply) -> ClientError:
    """What an answer other than 200 means; one that does not look like ours is told as such, with its beginning."""
    try:
        error = json.loads(reply.body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, TypeError, KeyError):
        code, message = "bad_answer", _not_ours(reply)
        if reply.status == 200:
            return BadAnswer(code, message, reply.status)
    return _error(code, message, reply.status, reply)


def retry_after_s(reply: Reply) -> float | None:
    """Seconds that Retry-After asks for; None where it is not there or is a date, which this service never sends."""
    try:
        return max(0.0, float(reply.headers.get("retry-after", "")))
    except ValueError:
        return None


def _error(code: str, message: str, status: int, reply: Reply) -> ClientError:
    if status == 429:
        announced_s = retry_after_s(reply)
        return Refused(code, message, status, DEFAULT_RETRY_AFTER_S if announced_s is None else announced_s)
    if status == 504:
        return TimeUp(code, message, status)
    if status >= 500:
        return ServiceFailed(code, message, status)
    return (BadAnswer if code == "bad_answer" else Rejected)(code, message, status)


_STATUS_OF_CODE = {
    "overloaded": 429,
    "deadline_exceeded": 504,
    "not_ready": 503,
    "inference_failed": 500,
    "internal": 500,
}
"""An error in place of one picture of several carries its code only; all others are faults of that picture."""


def _result(document: Any, result: Any, reply: Reply) -> Answer | ClientError:
    if "error" not in result:
        return _answer(document, result)
    code, message = str(result["error"]["code"]), str(result["error"]["message"])
    return _error(code, message, _STATUS_OF_CODE.get(code, 422), reply)


def _document(reply: Reply) -> Any:
    if reply.status != 200:
        raise error_of(reply)
    try:
        return json.loads(reply.body)
    except ValueError:
        raise error_of(reply) from None


def _shaped(reply: Reply, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer("bad_answer", f"{_not_ours(reply)} ({error!r})", reply.status) from None


def _not_ours(reply: Reply) -> str:
    start = reply.body[:80].decode("utf-8", "replace")
    return f"status {reply.status} is not an answer of Image Serve, it begins {start!r}; check the address"


def _answer(document: Any, result: Any) -> Answer:
    timing = result["timing_ms"]
    return Answer(
        model=str(document["model"]),
        version=int(document.get("version", 1)),
        trained=bool(document["trained"]),
        predictions=tuple(
            Prediction(int(one["class_id"]), str(one["label"]), float(one["score"])) for one in result["predictions"]
        ),
        timing=Timing(float(timing["queue"]), float(timing["preprocess"]), float(timing["inference"])),
    )


def _model(one: Any) -> Model:
    return Model(
        name=str(one["name"]),
        version=int(one.get("version", 1)),
        trained=bool(one["trained"]),
        num_classes=int(one["num_classes"]),
        default=bool(one.get("default", True)),
        details=dict(one),
    )


def _live(document: Any) -> LiveView:
    return LiveView(
        unix_s=float(document["unix_s"]),
        window_s=float(document["window_s"]),
        replicas_reporting=int(document["replicas_reporting"]),
        models={str(name): _live_model(one) for name, one in document["models"].items()},
        stages=tuple(map(_live_stage, document["stages"])),
    )


def _live_model(one: Any) -> LiveModel:
    batches = one.get("batch_pictures")
    return LiveModel(
        pictures_per_s=float(one["pictures_per_s"]),
        shed_per_s=float(one["shed_per_s"]),
        rejected_per_s=float(one["rejected_per_s"]),
        failed_per_s=float(one["failed_per_s"]),
        latency_ms=one.get("latency_ms"),
        stages_ms=one.get("stages_ms"),
        batch_pictures=None if batches is None else float(batches["mean"]),
    )


def _live_stage(one: Any) -> LiveStage:
    replicas = one.get("replicas") or {}
    return LiveStage(
        str(one["deployment"]), one.get("backlog_pictures"), replicas.get("desired"), replicas.get("running")
    )
