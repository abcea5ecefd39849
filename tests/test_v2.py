"""The Open Inference Protocol over a real pipeline with a fake engine, without a transport."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import (
    BadParameter,
    BrokenPicture,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    ServeError,
    UnknownModel,
    UnsupportedFormat,
)
from serve_app.oip.values import InferRequest, InferResponse, Parameters, RequestedOutput, Tensor
from serve_app.pipeline import Classified
from serve_app.types import Ranking, Timing
from serve_app.v2 import _manifest_of, admit, all_published, find, infer, priority_of, timeout_ms_of
from tests.fakes import FakeClassifier, FakeService, manifest


def png(value: int) -> bytes:
    """A picture that the fake classifier puts into class `value % 5`."""
    file = io.BytesIO()
    Image.new("RGB", (6, 6), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def noise() -> bytes:
    """A picture of some 3 kB that is too irregular to be smaller."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def pixels(*values: int) -> np.ndarray:
    """float32 (n, 3, 4, 4): what a client makes of such pictures."""
    spec = manifest().input
    raw = np.stack([np.full((3, 4, 4), value / 255, np.float32) for value in values])
    mean, std = (np.asarray(three, np.float32)[:, None, None] for three in (spec.mean, spec.std))
    return np.asarray((raw - mean) / std, np.float32)


def files(*bodies: bytes, shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor("image", "BYTES", shape or (len(bodies), 1), list(bodies))


def tensors(array: np.ndarray) -> Tensor:
    return Tensor("pixels", "FP32", array.shape, array)


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def service(classifier: FakeClassifier) -> FakeService:
    return FakeService(classifier, names=("fake", "other"))


async def ask(
    service: FakeService,
    given: Tensor,
    *outputs: RequestedOutput,
    model: str = "fake",
    version: str = "",
    parameters: Parameters | None = None,
) -> InferResponse:
    request = InferRequest(model, version, "id 1", (given,), outputs, parameters or {})
    with admit(service.models, model, version) as ticket:
        return await infer(service.models, request, ticket)


def scores(response: InferResponse) -> np.ndarray:
    [output] = response.outputs
    assert (output.name, output.datatype, output.shape) == ("scores", "FP32", output.data.shape)  # type: ignore[union-attr]
    assert isinstance(output.data, np.ndarray)
    assert output.data.dtype == np.float32
    return output.data


async def test_files_and_tensors_have_the_same_scores(service: FakeService) -> None:
    one = await ask(service, files(png(3), png(9)))
    other = await ask(service, tensors(pixels(3, 9)), model="fake_tensor")
    assert (one.model, one.version, one.id) == ("fake", "1", "id 1")
    assert other.model == "fake_tensor"
    assert scores(one).shape == (2, 5)
    assert scores(one).argmax(axis=1).tolist() == [3, 4]
    np.testing.assert_allclose(scores(one).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(scores(one), scores(other))


async def test_shapes_that_are_taken(service: FakeService) -> None:
    assert scores(await ask(service, files(png(2), shape=(1,)))).shape == (1, 5)
    assert scores(await ask(service, files(png(2), png(1), shape=(2,)))).shape == (2, 5)
    assert scores(await ask(service, tensors(pixels(3)[0]), model="fake_tensor")).shape == (1, 5)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("fake", files(png(1), png(2), shape=(1, 2)), "unexpected shape"),
        ("fake", files(png(1), shape=(1, 1, 1)), "unexpected shape"),
        ("fake", tensors(pixels(1)), "unexpected inference input 'pixels'"),
        ("fake", replace(tensors(pixels(1)), name="image"), "unexpected datatype 'FP32'"),
        ("fake_tensor", files(png(1)), "unexpected inference input 'image'"),
        ("fake_tensor", tensors(pixels(1)[:, :, :3]), "unexpected shape"),
        ("fake_tensor", tensors(pixels(1)[:, :2]), "unexpected shape"),
        ("fake_tensor", tensors(pixels(1, 2)[None]), "unexpected shape"),
        ("fake_tensor", replace(tensors(pixels(1).astype(np.float64)), datatype="FP64"), "unexpected datatype 'FP64'"),
    ],
)
async def test_other_inputs_are_refused(service: FakeService, model: str, given: Tensor, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{said}.*takes"):
        await ask(service, given, model=model)


async def test_one_input_is_needed(service: FakeService) -> None:
    for inputs in ((), (files(png(1)), files(png(1)))):
        expected = pytest.raises(InvalidRequest, match=f"expected 1 input but got {len(inputs)}")
        with admit(service.models, "fake") as ticket, expected:
            await infer(service.models, InferRequest("fake", "", "", inputs), ticket)


async def test_a_tensor_that_is_not_finite_is_refused(service: FakeService) -> None:
    array = pixels(1)
    array[0, 0, 0, 0] = np.nan
    with pytest.raises(BrokenPicture, match="finite"):
        await ask(service, tensors(array), model="fake_tensor")


async def test_one_bad_picture_fails_the_request_with_its_own_error(service: FakeService) -> None:
    with pytest.raises(UnsupportedFormat, match="picture 2 of 3: "):
        await ask(service, files(png(1), b"junk", png(2)))
    with pytest.raises(UnsupportedFormat, match=r"^(?!picture)"):
        await ask(service, files(b"junk"))


async def test_a_fault_of_the_engine_is_one(service: FakeService, classifier: FakeClassifier) -> None:
    classifier.errors = [InferenceFailed("it broke")]
    with pytest.raises(InferenceFailed, match=r"^it broke$"):
        await ask(service, files(png(1), png(2)))


async def test_classification(service: FakeService) -> None:
    [output] = (await ask(service, files(png(3), png(1)), RequestedOutput("scores", classification=2))).outputs
    assert (output.datatype, output.shape) == ("BYTES", (2, 2))
    assert isinstance(output.data, list)
    assert [text.split(b":")[1:] for text in output.data[::2]] == [[b"3", b"label 3"], [b"1", b"label 1"]]
    [output] = (await ask(service, files(png(3)), RequestedOutput("scores", classification=99))).outputs
    assert output.shape == (1, 5)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([RequestedOutput("logits")], "unexpected inference output 'logits'"),
        ([RequestedOutput("scores"), RequestedOutput("scores", 1)], "2 times"),
        ([RequestedOutput("scores", -1)], "below 0"),
    ],
)
async def test_other_outputs_are_refused(service: FakeService, outputs: list[RequestedOutput], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        await ask(service, files(png(1)), *outputs)


async def test_too_many_pictures_are_refused() -> None:
    service = FakeService(FakeClassifier(), max_pictures_per_request=2)
    assert [model.max_pictures for model in all_published(service.models)] == [2, 2]
    with pytest.raises(PayloadTooLarge, match="at most 2"):
        await ask(service, files(png(1), png(1), png(1)))


def test_names_and_versions(service: FakeService) -> None:
    assert [model.name for model in all_published(service.models)] == ["fake", "fake_tensor", "other", "other_tensor"]
    model, pipeline = find(service.models, "other_tensor", "1")
    assert (model.name, model.model, model.takes_tensors) == ("other_tensor", "other", True)
    assert pipeline is service.models["other"]
    for name, version in (("nothing", ""), ("_tensor", ""), ("fake_tensor_tensor", ""), ("fake", "2"), ("fake", "01")):
        with pytest.raises(UnknownModel):
            find(service.models, name, version)


def test_a_model_that_is_called_tensor_is_found() -> None:
    service = FakeService(FakeClassifier(), names=("a_tensor",))
    assert not find(service.models, "a_tensor")[0].takes_tensors
    assert find(service.models, "a_tensor_tensor")[0].takes_tensors


def test_priority() -> None:
    levels = [priority_of({"priority": level}) for level in (0, 1, 2, 2**40)]
    assert [priority_of({}), *levels] == ["interactive", "interactive", "interactive", "batch", "batch"]
    for wrong in (-1, True, "1", 1.0):
        with pytest.raises(BadParameter, match="priority"):
            priority_of({"priority": wrong})


def test_timeout_is_in_microseconds() -> None:
    assert [timeout_ms_of({"timeout": value}) for value in (0, 1, 1000, 1001)] == [None, 1, 1, 2]
    assert timeout_ms_of({}) is None
    with pytest.raises(BadParameter, match="timeout"):
        timeout_ms_of({"timeout": "soon"})


async def test_a_late_request_is_told(service: FakeService, classifier: FakeClassifier) -> None:
    classifier.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await ask(service, files(png(1)), parameters={"timeout": 2000})
    with pytest.raises(BadParameter):
        await ask(service, files(png(1)), parameters={"timeout": 10**12})


async def test_priority_reaches_admission(service: FakeService) -> None:
    admission = service.models["fake"].admission
    with admission.ticket() as before:
        before.add_pictures(200, 1e9)  # 2 s of work: too much for batch, not for interactive
        with pytest.raises(Overloaded):
            await ask(service, files(png(1)), parameters={"priority": 2})
        assert admission.queued_pictures == 200
        await ask(service, files(png(1)), parameters={"priority": 1})
    assert admission.queued_pictures == admission.queued_bytes == 0


def test_a_flood_is_refused_before_its_body() -> None:
    service = FakeService(FakeClassifier(), names=("fake", "other"), max_wait_ms=1000)
    with service.models["fake"].admission.ticket(retry=True) as before:
        before.add_pictures(90, 1e9)
        for name in ("fake", "fake_tensor"):
            with pytest.raises(Overloaded):
                admit(service.models, name)
            admit(service.models, name, retry=True)
        admit(service.models, "other")


async def test_reserved_parameters_are_refused(service: FakeService) -> None:
    with pytest.raises(InvalidRequest, match="reserved"):
        await ask(service, files(png(1)), parameters={"triton_anything": True})
    await ask(service, files(png(1)), parameters={"tritonic": True, "mine": 1.5})


def answer(version: int, classes: int) -> Classified:
    labels = tuple(f"label {place}" for place in range(classes))
    ranking = Ranking(list(range(min(classes, 5))), [0.2] * min(classes, 5))
    return Classified(ranking, manifest(version=version, labels=labels), Timing(0, 0, 0))


@pytest.mark.parametrize(
    ("answers", "version"),
    [
        ([answer(1, 5), answer(2, 5)], ""),  # answered by two versions
        ([answer(2, 5)], "1"),  # by another one than was asked for
        ([answer(2, 6)], ""),  # by one with more classes than were ranked
    ],
)
def test_answers_that_do_not_belong_together_are_asked_for_again(answers: list[Classified], version: str) -> None:
    with pytest.raises(NotReady, match="send it again") as caught:
        _manifest_of(answers, version, k=6)
    assert isinstance(caught.value, ServeError)
    assert _manifest_of([answer(2, 5)] * 2, "2", k=5).version == 2
