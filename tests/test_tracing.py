from __future__ import annotations

import asyncio
import http.server
import io
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import Span, StatusCode
from PIL import Image

from serve_app import tracing
from serve_app.colocated import Colocated
from serve_app.engines import Engine
from serve_app.errors import BrokenPicture, ConfigError, InferenceFailed
from serve_app.latency import LatencyTable
from serve_app.merging import Merger
from serve_app.metrics import NoMetrics
from serve_app.pipeline import Classified, Outcome, Pipeline, Serving
from serve_app.preprocess.decode import FORMATS
from serve_app.runtime import RuntimeInfo
from serve_app.settings import BatchingSettings, parse_settings
from serve_app.stages import Stages
from serve_app.tuning import Tuner
from serve_app.types import Chunk, ChunkScores, Logits, Picture, Pictures
from tests.fakes import SHAPE, FakeClassifier, FakeClock, manifest, picture, scores_of, split

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"
BODY = b"\xff\xd8\xff"
"""A JPEG as far as anybody looks."""


class Recorder:
    """A provider as Serve makes one, whose spans stay here."""

    def __init__(self, root: Sampler = ALWAYS_OFF) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(root))
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def span(self, traceparent: str) -> Span:
        """What Serve makes of a request."""
        parent = tracing.parent_of(traceparent)
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent.span)) if parent else None
        return self.provider.get_tracer("serve").start_span("request", context)

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if name in ("", span.name)]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.spans(name)
        return span


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    tracing.begin({"replica": "r1"}, recorder.provider)
    yield recorder
    tracing.end()
    recorder.provider.shutdown()


class FakeRuntime:
    info = RuntimeInfo("fake", "fp32", 1)

    def infer(self, pictures: Pictures) -> Logits:
        return scores_of(pictures)

    def close(self) -> None:
        pass


class OtherProcess(FakeClassifier):
    """A classifier's merger, behind the border that chunks cross; while `gate` is closed they wait."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks_seen: list[Chunk] = []
        self.called_in: list[int] = []
        engine = Engine(manifest(version=3), (FakeRuntime(),), LatencyTable.of({1: 2.0, 4: 4.0}), 4)
        self.merger = Merger(engine, BatchingSettings(max_batch_size=4), NoMetrics())

    async def classify(self, chunk: Chunk) -> ChunkScores:
        await self.gate.wait()
        self.called_in.append(trace.get_current_span().get_span_context().trace_id)
        chunk = pickle.loads(pickle.dumps(chunk))
        self.chunks_seen.append(chunk)
        [scores] = await self.merger.run([self.merger.arrived(chunk)])
        return scores


def decode(body: bytes) -> Picture:
    if body == b"!":
        raise BrokenPicture("broken")
    return picture(1)


def pipeline(stages: Stages) -> Pipeline:
    serving = Serving(manifest(version=3), stages, engine_pictures_per_s=100.0)
    return Pipeline("flowers", parse_settings({}), serving, metrics=NoMetrics())


def colocated(infer: Callable[[Pictures], Logits] = scores_of) -> Colocated:
    tuner = Tuner(LatencyTable.of({1: 1.0, 4: 4.0}), BatchingSettings(max_batch_size=4))
    return Colocated([infer], decode, SHAPE, max_chunk=4, tuner=tuner, ageing_s=0.0, on_batch=lambda *batch: None)


async def classify(one: Pipeline, *bodies: bytes) -> list[Outcome]:
    with one.admission.ticket("interactive") as ticket:
        return await one.classify(bodies, 1, one.deadline_s(10_000), ticket)


async def requested(recorder: Recorder, one: Pipeline, *bodies: bytes, traceparent: str = CLIENT) -> list[Outcome]:
    """A request whose trace is recorded if the client says so, as Serve calls the pipeline."""
    span = recorder.span(traceparent)
    if not span.get_span_context().trace_flags.sampled:  # then Serve leaves the context alone
        return await classify(one, *bodies)
    with trace.use_span(span, end_on_exit=True):
        return await classify(one, *bodies)


@pytest.mark.parametrize("placement", ["split", "colocated"])
async def test_one_trace_from_the_request_to_the_engine(recorder: Recorder, placement: str) -> None:
    one = pipeline(colocated() if placement == "colocated" else split(OtherProcess(), decode))
    [answer] = await requested(recorder, one, BODY)
    await one.close()
    assert isinstance(answer, Classified)
    assert {f"{span.context.trace_id:032x}" for span in recorder.spans()} == {CLIENT.split("-")[1]}
    below = {span.name: span.parent.span_id for span in recorder.spans()}
    ours = recorder.one("picture")
    assert f"{recorder.one('request').parent.span_id:016x}" == CLIENT.split("-")[2]
    assert below["picture"] == recorder.one("request").context.span_id
    assert {below[name] for name in ("decode", "queue", "engine")} == {ours.context.span_id}
    assert len(recorder.spans()) == 5
    assert dict(ours.attributes) == {
        "image_serve.replica": "r1",
        "image_serve.model": "flowers",
        "image_serve.version": 3,
        "image_serve.format": "jpeg",
        "image_serve.bytes": 3,
        "image_serve.priority": "interactive",
        "image_serve.queue_ms": answer.timing.queue,
        "image_serve.preprocess_ms": answer.timing.preprocess,
        "image_serve.inference_ms": answer.timing.inference,
    }
    about = recorder.one("engine").attributes
    assert (about["image_serve.batch_size"], about["image_serve.version"]) == (1, 3)
    assert about["image_serve.queue_ms"] >= 0
    assert recorder.one("decode").attributes["image_serve.bytes"] == 3


async def test_spans_follow_one_another(recorder: Recorder) -> None:
    one = pipeline(colocated())
    await requested(recorder, one, BODY)
    await one.close()
    request, decoded, queue, engine = (recorder.one(name) for name in ("request", "decode", "queue", "engine"))
    slack_ns = 5e7  # each span reads two clocks, and a busy machine may pause between them
    assert request.start_time <= decoded.start_time + slack_ns
    assert abs(decoded.end_time - queue.start_time) < slack_ns
    assert abs(queue.end_time - engine.start_time) < slack_ns
    assert engine.start_time <= engine.end_time <= time.time_ns() + slack_ns


async def test_each_picture_of_a_batch_has_an_engine_span_in_its_own_trace(recorder: Recorder) -> None:
    other = OtherProcess()
    other.gate.clear()
    one = pipeline(split(other, decode))
    first = asyncio.create_task(classify(one, BODY))  # takes the only place in flight
    await _until(lambda: one.stages._gatherer.in_flight == 1)
    later = [
        asyncio.create_task(requested(recorder, one, BODY, traceparent=CLIENT)),
        asyncio.create_task(requested(recorder, one, BODY, traceparent=OTHER)),
        asyncio.create_task(classify(one, BODY)),
    ]
    await _until(lambda: one.stages._gatherer.waiting == 3)
    other.gate.set()
    await asyncio.gather(first, *later)
    engines = recorder.spans("engine")
    assert sorted(f"{span.context.trace_id:032x}" for span in engines) == [CLIENT[3:35], OTHER[3:35]]
    assert [span.attributes["image_serve.batch_size"] for span in engines] == [3, 3]
    assert [len(chunk.traceparents) for chunk in other.chunks_seen] == [0, 2]
    assert f"{other.called_in[1]:032x}" == other.chunks_seen[1].traceparents[0][3:35]
    assert min(span.end_time - span.start_time for span in recorder.spans("queue")) > 0


@pytest.mark.parametrize("traceparent", ["", CLIENT[:-1] + "0"])
async def test_a_request_that_is_not_sampled_leaves_nothing(recorder: Recorder, traceparent: str) -> None:
    other = OtherProcess()
    for one in (pipeline(split(other, decode)), pipeline(colocated())):
        [answer] = await requested(recorder, one, BODY, traceparent=traceparent)
        await one.close()
        assert isinstance(answer, Classified)
    assert recorder.spans() == []
    assert other.chunks_seen[0].traceparents == ()


@pytest.mark.parametrize(
    ("bodies", "infer", "code", "status"),
    [
        ([b"!"], scores_of, "broken_picture", StatusCode.UNSET),
        ([BODY], None, "inference_failed", StatusCode.ERROR),
    ],
)
async def test_a_picture_that_fails_says_so(
    recorder: Recorder, bodies: list[bytes], infer: Callable[[Pictures], Logits] | None, code: str, status: StatusCode
) -> None:
    def fails(pictures: Pictures) -> Logits:
        raise InferenceFailed("no")

    one = pipeline(colocated(infer or fails))
    await requested(recorder, one, *bodies)
    await one.close()
    span = recorder.one("picture")
    assert span.attributes["error.type"] == code
    assert span.status.status_code is status
    assert recorder.spans("engine") == []


async def test_pictures_of_one_request_are_told_apart(recorder: Recorder) -> None:
    one = pipeline(split(OtherProcess(), decode))
    await requested(recorder, one, BODY, b"!", b"BM..")
    assert sorted(span.attributes["image_serve.format"] for span in recorder.spans("picture")) == [
        "bmp",
        "jpeg",
        "other",
    ]
    decoded = {span.parent.span_id: span.attributes["image_serve.format"] for span in recorder.spans("decode")}
    pictures = {span.context.span_id: span.attributes["image_serve.format"] for span in recorder.spans("picture")}
    assert decoded.items() <= pictures.items()
    assert set(decoded.values()) == {"bmp", "jpeg"}


def test_a_picture_is_the_parent_until_it_is_done(recorder: Recorder) -> None:
    with trace.use_span(recorder.span(CLIENT)):
        with tracing.picture("flowers", 3, BODY, "batch"):
            parent = tracing.here()
        assert parent is not None
        assert parent.span == recorder.one("picture").context
        assert tracing.here() is None


def test_what_is_over_is_recorded_when_it_was(recorder: Recorder) -> None:
    clock = FakeClock(100.0)
    parent = tracing.parent_of(CLIENT)
    assert parent is not None
    tracing.record("decode", parent, clock, 98.0, 98.5)
    tracing.record("decode", parent, clock, 98.0, 100.0)
    early, late = recorder.spans()
    assert early.end_time - early.start_time == 500_000_000
    assert late.end_time - late.start_time == 2_000_000_000
    assert 1.4e9 < late.end_time - early.end_time < 1.6e9


def test_a_call_for_several_pictures_is_part_of_the_first_ones_trace_or_of_none() -> None:
    recorder = Recorder(ALWAYS_ON)  # Serve would record every call
    tracing.begin({}, recorder.provider)
    first, second = tracing.parent_of(CLIENT), tracing.parent_of(OTHER)
    assert first is not None
    assert second is not None
    tracer = recorder.provider.get_tracer("serve")
    tracing.context_below([first, second]).run(lambda: tracer.start_span("call").end())
    tracing.context_below([]).run(lambda: tracer.start_span("call of nobody").end())
    assert recorder.one("call").parent.span_id == first.span.span_id
    assert recorder.spans("call of nobody") == []
    tracing.end()
    assert tracing.context_below([first]).run(trace.get_current_span) is trace.INVALID_SPAN


def test_the_clients_trace_is_continued_where_serve_does_not(recorder: Recorder) -> None:
    with tracing.request("POST /predict", CLIENT):
        assert tracing.trace_id() == CLIENT[3:35]
    span = recorder.one("POST /predict")
    assert f"{span.parent.span_id:016x}" == CLIENT[36:52]
    assert span.kind is trace.SpanKind.SERVER


def test_serves_own_span_of_the_request_is_enough(recorder: Recorder) -> None:
    with trace.use_span(recorder.span(CLIENT)), tracing.request("POST /predict", CLIENT):
        assert tracing.trace_id() == CLIENT[3:35]
    assert recorder.spans() == []


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        CLIENT[:-1] + "0",
        CLIENT.upper().replace("-01", "-zz"),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    ],
)
def test_what_is_no_traceparent_of_a_recorded_trace_begins_none(recorder: Recorder, traceparent: str) -> None:
    assert tracing.parent_of(traceparent) is None
    with tracing.request("POST /predict", traceparent):
        assert tracing.trace_id() == ""
    assert recorder.spans() == []


async def test_without_a_provider_nothing_is_recorded() -> None:
    tracing.begin({"replica": "r1"})
    assert not tracing.on()
    assert tracing.here() is None
    assert tracing.trace_id() == ""
    with tracing.picture("flowers", 1, BODY, "interactive") as span:
        assert span is None
    other = OtherProcess()
    [answer] = await classify(pipeline(split(other, decode)), BODY)
    assert isinstance(answer, Classified)
    assert other.chunks_seen[0].traceparents == ()


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_known_by_their_first_bytes(name: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, name)
    assert tracing.described(file.getvalue()) == (name.lower(), len(file.getvalue()))


def test_spans_go_to_a_file_of_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.TRACES_DIR, str(tmp_path / "traces"))
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    processors = tracing.file_exporter()
    provider = TracerProvider()
    for processor in processors:
        provider.add_span_processor(processor)
    tracer = provider.get_tracer("serve")
    with tracer.start_as_current_span("request", attributes={"route": "/predict", "call_method": "__call__"}):
        for call in ("classify", "latency"):
            tracer.start_span(f"call {call}", attributes={"route": "", "call_method": call}).end()
    tracer.start_span("report", attributes={"route": "", "call_method": "report"}).end()
    tracer.start_span("alone", attributes={"route": "", "call_method": "classify"}).end()
    provider.shutdown()
    [file] = (tmp_path / "traces").iterdir()
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    assert [span["name"] for span in spans] == ["call classify", "request"]
    assert spans[0]["resource"]["attributes"]["service.name"] == "image-serve"


def test_a_folder_for_spans_must_be_named_and_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.TRACES_DIR, raising=False)
    with pytest.raises(ConfigError, match="IMAGE_SERVE_TRACES_DIR"):
        tracing.file_exporter()
    (tmp_path / "file").touch()
    monkeypatch.setenv(tracing.TRACES_DIR, str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="name a folder"):
        tracing.file_exporter()


def test_spans_go_to_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
        provider = TracerProvider()
        for processor in tracing.otlp_exporter():
            provider.add_span_processor(processor)
        provider.get_tracer("serve").start_span("request of a client").end()
        provider.shutdown()
        server.shutdown()
    [(path, body)] = received
    assert path == "/v1/traces"
    assert b"request of a client" in body
    assert b"pictures" in body


def test_without_the_extra_a_collector_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, OTLPSpanExporter.__module__, None)
    with pytest.raises(ConfigError, match=r"pip install .image-serve\[tracing\]"):
        tracing.otlp_exporter()


def test_serve_takes_the_exporters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.tracing_utils import _load_span_processors
    from ray.serve.schema import ServeDeploySchema

    monkeypatch.setenv(tracing.TRACES_DIR, str(tmp_path))
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    for name in ("file_exporter", "otlp_exporter"):
        config = {"enabled": True, "exporter_import_path": f"serve_app.tracing:{name}", "sampling_ratio": 0.1}
        schema = ServeDeploySchema.model_validate({"applications": [], "tracing_config": config})
        assert schema.tracing_config is not None
        for processor in _load_span_processors(schema.tracing_config.exporter_import_path, "unused"):
            processor.shutdown()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
