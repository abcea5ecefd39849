"""Streams of the gRPC service: their answers in order, and what is left when one ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2_grpc

from serve_app.v2_grpc.streams import in_order
from tests.fakes import FakeClassifier
from tests.grpc_helpers import GrpcReplica, files, message, serving, until
from tests.test_ingress import png


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def replica(classifier: FakeClassifier) -> GrpcReplica:
    return GrpcReplica(classifier)


@pytest.fixture
async def address(replica: GrpcReplica) -> AsyncIterator[str]:
    async with serving(replica) as started:
        yield started


@pytest.fixture
async def client(address: str) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(address) as made:
        yield made


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


class Source:
    """Numbers that come when they are put; keeps what was taken, and whether its reader was cancelled."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.taken: list[int] = []
        self.cancelled = False

    def put(self, *items: int | Exception | None) -> None:
        for item in items:
            self.queue.put_nowait(item)

    async def items(self) -> AsyncIterator[int]:
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self.taken.append(item)
                yield item
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class Work:
    """Answers a number with its negative when its gate is opened."""

    def __init__(self) -> None:
        self.gates: dict[int, asyncio.Event] = {}
        self.cancelled: list[int] = []

    async def __call__(self, number: int) -> int:
        gate = self.gates.setdefault(number, asyncio.Event())
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        return -number


async def settled() -> None:
    """Everything that can go on now has."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_come_in_the_order_of_their_requests() -> None:
    source, work = Source(), Work()
    source.put(1, 2, 3, None)
    answers = in_order(source.items(), work, 8)
    first = asyncio.ensure_future(anext(answers))
    await settled()
    assert source.taken == [1, 2, 3]
    work.gates[2].set()
    work.gates[3].set()
    await settled()
    assert not first.done()
    work.gates[1].set()
    assert [await first, *[one async for one in answers]] == [-1, -2, -3]


async def test_no_more_are_taken_than_may_be_in_work() -> None:
    source, work = Source(), Work()
    source.put(*range(10))
    answers = in_order(source.items(), work, 3)
    first = asyncio.ensure_future(anext(answers))
    await settled()
    assert sorted(work.gates) == [0, 1, 2]
    work.gates[2].set()  # done, but behind the others
    await settled()
    assert len(work.gates) == 3
    work.gates[0].set()
    assert await first == 0
    second = asyncio.ensure_future(anext(answers))
    await settled()
    assert sorted(work.gates) == [0, 1, 2, 3]
    work.gates[1].set()
    assert await second == -1
    await answers.aclose()


async def test_a_source_that_fails_fails_the_stream_after_what_it_gave() -> None:
    source, work = Source(), Work()
    source.put(1, ValueError("broken"))
    answers = in_order(source.items(), work, 8)
    first = asyncio.ensure_future(anext(answers))
    await settled()
    work.gates[1].set()
    assert await first == -1
    with pytest.raises(ValueError, match="broken"):
        await anext(answers)


async def test_whoever_leaves_leaves_no_work_behind() -> None:
    source, work = Source(), Work()
    source.put(1, 2, 3)
    answers = in_order(source.items(), work, 8)
    first = asyncio.ensure_future(anext(answers))
    await settled()
    work.gates[1].set()
    await first
    await answers.aclose()
    await settled()
    assert work.cancelled == [2, 3]
    assert source.cancelled


async def answers_of(client: Any, requests: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    async def sent() -> AsyncIterator[dict[str, Any]]:
        for one in requests:
            yield one

    return [pair async for pair in client.stream_infer(sent())]


async def test_a_stream_answers_in_order_and_outlives_errors(client: Any) -> None:
    bodies = [png(1), b"junk", png(2), png(3)]
    requests: list[dict[str, Any]] = [
        {"model_name": "fake", "inputs": files(body), "request_id": str(place)} for place, body in enumerate(bodies)
    ]
    answers = await answers_of(client, [*requests, {"model_name": "nobody", "inputs": files(png(1))}])
    best = [None if error else result.as_numpy("scores").argmax() for result, error in answers]
    assert best == [1, None, 2, 3, None]
    assert "format" in str(answers[1][1])
    assert "no model 'nobody'" in str(answers[4][1])
    assert [result.get_response().id for result, error in answers if error is None] == ["0", "2", "3"]


async def test_the_last_answer_to_a_request_is_marked_for_who_wants_it(stub: Any) -> None:
    wants = {"triton_enable_empty_final_response": {"bool_param": True}}
    answers = [answer async for answer in stub.ModelStreamInfer(iter([message(parameters=wants), message()]))]
    assert [dict(one.infer_response.parameters) != {} for one in answers] == [True, False]
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param


async def test_the_error_of_a_stream_names_its_request(stub: Any) -> None:
    call = stub.ModelStreamInfer(iter([message("nobody", id="7"), message(id="8")]))
    answers = [answer async for answer in call]
    assert [one.infer_response.id for one in answers] == ["7", "8"]
    assert [bool(one.error_message) for one in answers] == [True, False]


async def test_requests_of_a_stream_share_a_batch(
    client: Any, classifier: FakeClassifier, replica: GrpcReplica
) -> None:
    requests = [{"model_name": "fake", "inputs": files(png(place % 5))} for place in range(20)]
    classifier.gate.clear()
    reading = asyncio.ensure_future(answers_of(client, requests))
    await until(lambda: replica.models["fake"].admission.queued_pictures == 20)
    classifier.gate.set()
    answers = await reading
    assert [result.as_numpy("scores").argmax() for result, _ in answers] == [place % 5 for place in range(20)]
    assert max(classifier.chunks) > 1


async def test_a_stream_that_is_left_stops_its_work(
    stub: Any, classifier: FakeClassifier, replica: GrpcReplica
) -> None:
    classifier.gate.clear()
    pipeline = replica.models["fake"]
    call = stub.ModelStreamInfer(iter([message() for _ in range(3)]))
    reading = asyncio.ensure_future(call.read())
    await until(lambda: pipeline.admission.queued_pictures == 3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: pipeline.admission.queued_pictures == 0)


async def test_the_synchronous_clients_stream(address: str) -> None:
    def calls() -> list[int]:
        best: list[int] = []
        with triton.InferenceServerClient(address) as made:
            made.start_stream(lambda result, error: best.append(result.as_numpy("scores").argmax()))
            for place in range(5):
                made.async_stream_infer("fake", files(png(place)))
            made.stop_stream()
        return best

    assert await asyncio.to_thread(calls) == [0, 1, 2, 3, 4]


async def test_a_client_does_not_tell_the_time_of_a_stream(stub: Any) -> None:
    call = stub.ModelStreamInfer(iter([message()]), metadata=[("x-call-remaining-ms", "soon")])
    assert [answer.error_message async for answer in call] == [""]
