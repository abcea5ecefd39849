"""The native API: pictures, what is served, health, and the pages."""

from __future__ import annotations

from typing import Any

from serve_app.api import (
    PARAMETERS,
    TIMEOUT_MS,
    TOP_K,
    Alive,
    Answer,
    ErrorAnswer,
    Live,
    ManyAnswers,
    ModelDescription,
    Models,
    PictureJSON,
    Prediction,
    Ready,
    Result,
    Timing,
)
from serve_app.errors import BrokenPicture, InvalidRequest, NotReady, ServeError, UnknownModel, UnknownRoute
from serve_app.manifest import InputSpec, Weights
from serve_app.openapi.parts import (
    BINARY,
    FILE,
    HTML,
    JSON_TYPE,
    PICTURE,
    PICTURE_ERRORS,
    WORK_ERRORS,
    Errors,
    Json,
    Served,
    answer,
    content,
    native_error,
    operation,
    parameter,
    path_parameter,
    reference,
    refusals,
    schemas,
)

PICTURES, SERVICE = "Pictures", "Service"
TAGS: tuple[Json, ...] = (
    {"name": PICTURES, "description": "What a picture shows."},
    {"name": SERVICE, "description": "What is served and how it is doing."},
)


def native_schemas() -> Json:
    """Components that `native_paths` refers to."""
    return schemas([Answer, ManyAnswers, ErrorAnswer, PictureJSON, Models, Live, Alive, Ready])


def native_paths(served: Served) -> Json:
    """Every path of the native API."""
    return {
        "/predict": {"post": _predict(served)},
        "/models": {"get": _get("models", "What is served", Models, _models(served))},
        "/live": {"get": _get("live", "Rates, latencies and replicas of the last seconds", Live, _live(served))},
        "/healthz": {"get": _get("healthz", "Whether the process answers", Alive, {"live": True})},
        "/readyz": {"get": _get("readyz", "Whether every engine is warm", Ready, {"ready": True}, NotReady)},
        "/metrics": {"get": _metrics()},
        "/": {"get": _file("page", "The page for people", (HTML,))},
        "/static/{name}": {"get": _file("static", "A file of that page", _STATIC, UnknownRoute, parameters=[_NAME])},
        "/openapi.json": {"get": _document("openapi", "This description, for programs", JSON_TYPE, {"type": "object"})},
        "/docs": {"get": _document("docs", "This description, to read", HTML, {"type": "string"})},
    }


def _predict(served: Served) -> Json:
    errors: Errors = (InvalidRequest, UnknownModel, *PICTURE_ERRORS, *WORK_ERRORS, ServeError)
    either = {"anyOf": [reference(Answer), reference(ManyAnswers)]}
    examples = {"one picture": _answer(served), "two pictures": _answers(served)}
    return operation(
        PICTURES,
        "predict",
        "Classify pictures",
        {"200": answer("The likeliest classes.", content(JSON_TYPE, either, **examples))}
        | refusals(errors, reference(ErrorAnswer)),
        description=(
            "The bytes decide the format of a picture (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF), not its name nor the "
            "Content-Type. Multipart and JSON may carry several, and then the answer has `results`."
        ),
        parameters=[parameter(one, served, _maximum(one.name, served)) for one in PARAMETERS],
        requestBody=_pictures(served),
    )


def _maximum(name: str, served: Served) -> int | None:
    return {TOP_K.name: served.num_classes, TIMEOUT_MS.name: served.limits.max_timeout_ms}.get(name)


def _pictures(served: Served) -> Json:
    most = served.limits.max_pictures_per_request
    several = {"type": "array", "minItems": 1, "maxItems": most, "items": FILE}
    form = {"type": "object", "required": ["image"], "properties": {"image": several}}
    return {
        "required": True,
        "description": f"At most {served.limits.max_body_bytes:,} bytes, {most} pictures, and "
        f"{served.limits.max_pixels:,} pixels in each.",
        "content": {
            **content("image/*", FILE),
            **content(BINARY, FILE),
            "multipart/form-data": {
                "schema": form,
                "encoding": {"image": {"contentType": f"image/*, {BINARY}"}},
            },
            **content(JSON_TYPE, reference(PictureJSON), one={"image": PICTURE}, several={"image": [PICTURE, PICTURE]}),
        },
    }


def _get(name: str, summary: str, model: type[Any], example: Any, *errors: type[ServeError]) -> Json:
    good = answer(str(model.__doc__).strip(), content(JSON_TYPE, reference(model), example=example))
    return operation(SERVICE, name, summary, {"200": good} | refusals((*errors, ServeError), reference(ErrorAnswer)))


def _metrics() -> Json:
    example = '# TYPE ray_image_serve_pictures_total counter\nray_image_serve_pictures_total{outcome="ok"} 12.0\n'
    good = {"200": answer("Prometheus's text format.", content("text/plain", {"type": "string"}, some=example))}
    return operation(
        SERVICE,
        "metrics",
        "Metrics of all nodes",
        good | refusals((NotReady, ServeError), reference(ErrorAnswer)),
        description="For a Prometheus that reaches only this address; the nodes' own ports are read with less ado.",
    )


_STATIC = ("text/css", "text/javascript", HTML, "image/png", "image/svg+xml", JSON_TYPE)
_NAME = path_parameter("name", "Of the file.", {"type": "string"}, "style.css")


def _file(name: str, summary: str, kinds: tuple[str, ...], *errors: type[ServeError], **parts: Any) -> Json:
    """A file that browsers may keep."""
    bodies = {kind: {"schema": {} if kind == JSON_TYPE else {"type": "string"}} for kind in kinds}
    good = {
        "200": answer("The file.", bodies, {"ETag": {"required": True, "schema": {"type": "string"}}}),
        "304": answer("It is the one that `If-None-Match` names."),
    }
    return operation(SERVICE, name, summary, good | refusals((*errors, ServeError), reference(ErrorAnswer)), **parts)


def _document(name: str, summary: str, kind: str, schema: Json) -> Json:
    good = {"200": answer("The description.", content(kind, schema))}
    return operation(SERVICE, name, summary, good | refusals((ServeError,), reference(ErrorAnswer)))


def _about(served: Served) -> Json:
    return {"model": served.models[0], "version": 1, "trained": True}


def _result() -> Json:
    predictions = [
        Prediction(class_id=282, label="tiger cat", score=0.612804),
        Prediction(class_id=281, label="tabby", score=0.201339),
        Prediction(class_id=285, label="Egyptian cat", score=0.103921),
    ]
    return Result(predictions=predictions, timing_ms=Timing(queue=0.412, preprocess=3.18, inference=9.702)).model_dump()


def _answer(served: Served) -> Json:
    return Answer.model_validate(_about(served) | _result()).model_dump()


def _answers(served: Served) -> Json:
    refused = native_error(BrokenPicture, "the file ends before the picture does; send it again")
    return ManyAnswers.model_validate(_about(served) | {"results": [_result(), refused]}).model_dump()


def _models(served: Served) -> Json:
    described = [
        ModelDescription(
            name=name,
            version=1,
            default=name == served.models[0],
            architecture="resnet18",
            backend="openvino",
            precision="fp32",
            trained=True,
            num_classes=served.num_classes,
            preprocess="exact",
            placement="colocated",
            device="cpu",
            max_batch_size=16,
            weights=Weights(source="file", name="weights.pth", sha256="0" * 64),
            input=InputSpec(),
        )
        for name in served.models
    ]
    return Models(models=described).model_dump(mode="json")


def _live(served: Served) -> Json:
    model = {
        "pictures_per_s": 12.3,
        "shed_per_s": 0.0,
        "rejected_per_s": 0.1,
        "failed_per_s": 0.0,
        "latency_ms": {"p50": 31.0, "p99": 80.0},
        "stages_ms": {"queue": 1.0, "preprocess": 3.0, "inference": 20.0},
        "batch_pictures": {"mean": 3.33, "sizes": {"1": 4, "8": 2}},
        "versions": {"1": 2},
        "refused_version": None,
    }
    stage = {"deployment": "Preprocessor", "backlog_pictures": 3.0, "replicas": {"desired": 2, "running": 2}}
    example = {
        "unix_s": 1764020000.1,
        "window_s": 10,
        "replicas_reporting": 2,
        "models": dict.fromkeys(served.models, model),
        "stages": [stage],
    }
    return Live.model_validate(example).model_dump()
