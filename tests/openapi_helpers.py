"""A replica in this process, and what its description says of an answer."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import httpx
import orjson
from jsonschema import Draft202012Validator

from serve_app.deployments.preprocessor import _described
from serve_app.errors import fault_of_codes
from serve_app.metrics import NoMetrics
from serve_app.openapi import Json, Served, document
from serve_app.pipeline import Pipeline, Serving
from serve_app.preprocess import preprocess_exact
from serve_app.request_log import RequestLog
from serve_app.settings import LimitSettings, parse_settings
from serve_app.tally import ModelReport, ModelTotals, ReplicaReport, Replicas, Tally, live_view
from serve_app.types import Timing
from tests.fakes import FakeClassifier, FakeClock, manifest, split

LIMITS = {"max_body_bytes": 5000, "max_pixels": 10_000, "max_pictures_per_request": 3, "max_wait_ms": 2000}
SERVED = Served(("fake", "flowers"), 5, LimitSettings.model_validate(LIMITS))


def pipeline(name: str, classifier: FakeClassifier) -> Pipeline:
    settings = parse_settings({"limits": LIMITS})
    decode = partial(preprocess_exact, spec=manifest().input, max_pixels=LIMITS["max_pixels"])
    serving = Serving(manifest(), split(classifier, decode, threads=1), engine_pictures_per_s=100)
    return Pipeline(name, settings, serving, metrics=NoMetrics())


class FakeService:
    """Two models of five classes behind one fake engine; what it counts and describes is made as in a real replica."""

    def __init__(self) -> None:
        self.classifier = FakeClassifier()
        self.models = {name: pipeline(name, self.classifier) for name in ("fake", "flowers")}
        self.is_ready = True
        self.request_log = RequestLog("none")
        self.clock = FakeClock()
        self.tally = Tally(self.clock)

    def count(self) -> None:
        """A busy second."""
        self.tally.answered(Timing(1.0, 2.0, 3.0))
        self.tally.batch(2, 3.0, "idle")
        self.tally.failed("overloaded")
        self.clock.advance(1)

    async def ready(self, model: str | None = None) -> bool:
        return self.is_ready

    def describe(self) -> list[dict[str, Any]]:
        return [_described(one, is_default=place == 0) for place, one in enumerate(self.models.values())]

    async def totals(self) -> Mapping[str, ModelTotals]:
        return dict.fromkeys(self.models, self.tally.totals())

    async def live(self) -> dict[str, Any]:
        report = ModelReport(self.tally.totals(), self.tally.recent(), 1, "")
        reports = [ReplicaReport("Preprocessor", 2.0, {"fake": report, "flowers": report})]
        return live_view(reports, {"Preprocessor": Replicas(2, 1)}, fault_of_codes(), 1764020000.1)

    async def metrics_addresses(self) -> list[str]:
        return []


def validator(schema: Any, whole: Json) -> Draft202012Validator:
    """Of a schema inside the document, which it may refer to."""
    return Draft202012Validator({**schema, "components": whole["components"]})


def contents(whole: Json) -> Iterator[tuple[str, str, Json]]:
    """Every body of the document: where it stands, its media type, and what is said of it."""
    for path, item in whole["paths"].items():
        for method, one in item.items():
            place = f"{method.upper()} {path}"
            for kind, body in one.get("requestBody", {}).get("content", {}).items():
                yield place, kind, body
            for status, answer in one["responses"].items():
                for kind, body in answer.get("content", {}).items():
                    yield f"{place} {status}", kind, body


def undocumented(whole: Json, path: str, answer: httpx.Response) -> str | None:
    """What of an answer the description does not allow, or None.

    Args:
        path: as the description writes it.
    """
    one = whole["paths"][path][answer.request.method.lower()]
    said = one["responses"].get(str(answer.status_code))
    if said is None:
        return f"status {answer.status_code} of {path}"
    missing = [
        name
        for name, header in said.get("headers", {}).items()
        if header.get("required") and name not in answer.headers
    ]
    if missing:
        return f"no header {missing} in {answer.status_code} of {path}"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    allowed = said.get("content", {})
    if not allowed and not answer.content:
        return None
    if kind not in allowed:
        return f"type {kind} of {path}"
    value = orjson.loads(answer.content) if kind == "application/json" else answer.text
    problem = next(validator(allowed[kind]["schema"], whole).iter_errors(value), None)
    return None if problem is None else f"{path}: {problem.message}"


def served_document() -> Json:
    return document(SERVED)


def base64_of(body: bytes) -> str:
    return base64.b64encode(body).decode()
