"""The Open Inference Protocol over the pipelines: the same admission, deadlines and batches as the native API's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app import request_log
from serve_app.admission import Ticket
from serve_app.errors import BadParameter, InvalidRequest, NotReady, RequestError, ServeError, UnknownModel
from serve_app.manifest import Manifest
from serve_app.oip.classification import classified
from serve_app.oip.metadata import Published, published
from serve_app.oip.values import BYTES, InferRequest, InferResponse, Parameters, RequestedOutput, Tensor
from serve_app.pipeline import Classified, Outcome, Pipeline
from serve_app.settings import TENSOR_SUFFIX
from serve_app.types import Input, Priority

Models = Mapping[str, Pipeline]
_RESERVED = "triton_"


def find(models: Models, name: str, version: str = "") -> tuple[Published, Pipeline]:
    """What is published under `name`; `version` "" is the one that is served.

    Raises:
        UnknownModel: no such model, or another version of it is served.
    """
    takes_tensors = name not in models and name.endswith(TENSOR_SUFFIX)
    pipeline = models.get(name.removesuffix(TENSOR_SUFFIX) if takes_tensors else name)
    if pipeline is None:
        served = ", ".join(model.name for model in all_published(models))
        raise UnknownModel(f"no model {name[:80]!r} here; served: {served}")
    model = _both(pipeline)[takes_tensors]
    if version not in ("", model.version):
        raise UnknownModel(
            f"model {name!r} has no version {version[:20]!r}; version {model.version} is served: ask for that, or name "
            "none"
        )
    return model, pipeline


def all_published(models: Models) -> list[Published]:
    """Each model under both of its names."""
    return [model for pipeline in models.values() for model in _both(pipeline)]


def admit(models: Models, name: str, version: str = "", *, retry: bool = False) -> Ticket:
    """A ticket for a request of which only the address is known: its bytes can be counted in while they arrive.

    Args:
        retry: the request was refused before.

    Raises:
        UnknownModel: see `find`.
        Overloaded: even an interactive request would wait too long.
    """
    _, pipeline = find(models, name, version)
    request_log.of_model(pipeline.name)
    pipeline.admission.check_wait("interactive", retry=retry)
    return pipeline.admission.ticket("interactive", retry=retry)


async def infer(models: Models, request: InferRequest, ticket: Ticket) -> InferResponse:
    """Answers one request. One picture that fails fails it, with that picture's error.

    Args:
        ticket: from `admit`; it takes the request's priority.

    Raises:
        UnknownModel, InvalidRequest, BadParameter, PayloadTooLarge: the request is wrong.
        ServeError: what else befalls a picture.
    """
    model, pipeline = find(models, request.model, request.version)
    _check_parameters(request.parameters)
    outputs = _wanted(model, request.outputs)
    inputs = _pictures(model, request.inputs)
    ticket.priority = priority_of(request.parameters)
    deadline_s = pipeline.deadline_s(timeout_ms_of(request.parameters))
    classes = model.manifest.num_classes
    k = max(min(one.classification or classes, classes) for one in outputs)
    answers = _all_answered(await pipeline.classify(inputs, k, deadline_s, ticket))
    manifest = _manifest_of(answers, request.version, k)
    tensors = tuple(_output(one, answers, manifest) for one in outputs)
    return InferResponse(model.name, str(manifest.version), request.id, tensors)


def priority_of(parameters: Parameters) -> Priority:
    """Triton's levels: 0 is the default, 1 goes first; all above are of priority batch here.

    Raises:
        BadParameter: not a whole number.
    """
    return "batch" if _whole_number(parameters, "priority") > 1 else "interactive"


def timeout_ms_of(parameters: Parameters) -> int | None:
    """Of the parameter `timeout`, which is in microseconds from when the request was read; None where there is none,
    or 0.

    Raises:
        BadParameter: not a whole number.
    """
    return math.ceil(_whole_number(parameters, "timeout") / 1000) or None


def _both(pipeline: Pipeline) -> tuple[Published, Published]:
    return published(pipeline.name, pipeline.manifest, pipeline.settings.limits.max_pictures_per_request)


def _whole_number(parameters: Parameters, name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise BadParameter(f"the parameter {name} must be a whole number, 0 or above")
    return value


def _check_parameters(parameters: Parameters) -> None:
    for name in parameters:
        if name.startswith(_RESERVED):
            raise InvalidRequest(
                f"parameter keys that start with '{_RESERVED}' are reserved and should not be specified; leave out "
                f"{name[:60]!r}"
            )


def _wanted(model: Published, outputs: Sequence[RequestedOutput]) -> Sequence[RequestedOutput]:
    """Raises InvalidRequest for an output that the model has not, or that is asked for twice."""
    name = model.output.name
    for one in outputs:
        if one.name != name:
            raise InvalidRequest(
                f"unexpected inference output {one.name[:40]!r} for model {model.name!r}; it has {name!r}"
            )
        if one.classification < 0:
            raise InvalidRequest(f"classification of output {name!r} is below 0; ask for 1 class or more")
    if len(outputs) > 1:
        raise InvalidRequest(f"output {name!r} is asked for {len(outputs)} times; ask once")
    return outputs or (RequestedOutput(name),)


def _pictures(model: Published, inputs: Sequence[Tensor]) -> list[Input]:
    """The pictures of a request, none of them copied.

    Raises:
        InvalidRequest: not the one input that the model has, or not of its datatype and shape.
    """
    spec = model.input
    wanted = f"model {model.name!r} takes {spec.name!r}, {spec.datatype} {list(spec.shape)}"
    if len(inputs) != 1:
        raise InvalidRequest(f"expected 1 input but got {len(inputs)}; {wanted}")
    given = inputs[0]
    if given.name != spec.name:
        raise InvalidRequest(f"unexpected inference input {given.name[:40]!r}; {wanted}")
    if given.datatype != spec.datatype:
        raise InvalidRequest(f"unexpected datatype {given.datatype[:20]!r} of input {given.name!r}; {wanted}")
    pictures = _files(given) if spec.datatype == BYTES else _tensors(given, spec.shape[1:])
    if not pictures:
        raise InvalidRequest(f"unexpected shape {list(given.shape)} of input {given.name!r}; {wanted}")
    return pictures


def _files(given: Tensor) -> list[Input]:
    """Of shape (n,) or (n, 1); none where it is another."""
    assert isinstance(given.data, list)  # as its datatype says
    return list(given.data) if given.shape in ((len(given.data),), (len(given.data), 1)) else []


def _tensors(given: Tensor, of_one: tuple[int, ...]) -> list[Input]:
    """Of shape (n, 3, height, width), or of one picture without n; none where it is another."""
    assert not isinstance(given.data, list)  # as its datatype says
    if given.shape == of_one:
        return [given.data]
    return list(given.data) if given.shape[1:] == of_one else []


def _all_answered(outcomes: Sequence[Outcome]) -> list[Classified]:
    """Raises the error of the first picture that has one; of several pictures it says which."""
    answers: list[Classified] = []
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, RequestError) and len(outcomes) > 1:
            raise type(outcome)(f"picture {place + 1} of {len(outcomes)}: {outcome}")
        if isinstance(outcome, ServeError):
            raise outcome
        answers.append(outcome)
    return answers


def _manifest_of(answers: Sequence[Classified], version: str, k: int) -> Manifest:
    """Of the engine that answered all of them.

    Raises:
        NotReady: another version took over meanwhile, so that the answers do not belong together.
    """
    manifest = answers[0].manifest
    same = all(one.manifest.version == manifest.version for one in answers)
    enough = all(len(one.ranking.class_ids) >= min(k, manifest.num_classes) for one in answers)
    if not (same and enough and version in ("", str(manifest.version))):
        raise NotReady("the model's version changed while this request was answered; send it again")
    return manifest


def _output(wanted: RequestedOutput, answers: Sequence[Classified], manifest: Manifest) -> Tensor:
    if wanted.classification:
        k = min(wanted.classification, manifest.num_classes)
        return classified(wanted.name, [one.predictions(k) for one in answers])
    scores = _scores(answers, manifest.num_classes)
    return Tensor(wanted.name, "FP32", scores.shape, scores)


def _scores(answers: Sequence[Classified], classes: int) -> NDArray[np.float32]:
    """float32 (pictures, classes), by class id."""
    scores: NDArray[Any] = np.zeros((len(answers), classes), np.float32)
    for row, answer in zip(scores, answers, strict=True):
        ids, values = answer.ranking.class_ids, answer.ranking.scores
        row[np.fromiter(ids, np.intp, len(ids))] = np.fromiter(values, np.float32, len(values))
    return scores
