"""Bodies of the Open Inference Protocol's REST, as JSON Schema is made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from serve_app.api import Schema
from serve_app.api.answers import Count
from serve_app.oip.tensors import BF16, DTYPES, MAX_DIMENSIONS
from serve_app.oip.values import BYTES

Datatype = Annotated[str, Field(json_schema_extra={"enum": [*DTYPES, BF16, BYTES]})]
Dimensions = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=MAX_DIMENSIONS)]
Sizes = list[Annotated[int, Field(ge=-1)]]
Parameters = dict[str, bool | int | float | str]
Text = Annotated[str, Field(min_length=1)]


class ProtocolError(Schema):
    """Every error of the protocol's routes."""

    error: str
    """For people; says what to do."""


class ServerLive(Schema):
    """The process answers."""

    live: Literal[True]


class ServerReady(Schema):
    """Every engine is loaded, and ran each batch size once."""

    ready: Literal[True]


class ModelReady(Schema):
    """The engine of this model is loaded."""

    name: str
    ready: Literal[True]


class ServerMetadata(Schema):
    """What this server is, and which extensions of the protocol it knows."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Schema):
    """An input or output."""

    name: str
    datatype: Datatype
    shape: Sizes
    """-1 is any number of pictures."""


class ModelMetadata(Schema):
    """What a model takes and gives."""

    name: str
    versions: Annotated[list[str], Field(min_length=1)]
    platform: str
    inputs: Annotated[list[TensorMetadata], Field(min_length=1)]
    outputs: Annotated[list[TensorMetadata], Field(min_length=1)]


class ConfigInput(Schema):
    """An input, without the batch."""

    name: str
    data_type: str
    format: str
    dims: Sizes


class ConfigOutput(Schema):
    """An output, without the batch."""

    name: str
    data_type: str
    dims: Sizes


class ModelConfig(Schema):
    """Triton's ModelConfig, as its JSON."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: Annotated[int, Field(ge=1)]
    """Pictures in one request."""
    input: list[ConfigInput]
    output: list[ConfigOutput]
    dynamic_batching: dict[str, Any]
    parameters: dict[str, dict[str, str]]
    """What a client needs to know to preprocess by itself, or to judge an answer."""


class RepositoryModel(Schema):
    """A model under one of its names."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class RepositoryQuery(Schema):
    """Which models are wanted."""

    ready: bool = False
    """Only those that are ready."""


class Duration(Schema):
    """How often, and nanoseconds together."""

    count: Count
    ns: Count


class InferenceStatistics(Schema):
    """Of pictures, not of requests; `compute_input` is decoding."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(Schema):
    """Of the batches of one size."""

    batch_size: Annotated[int, Field(ge=1)]
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(Schema):
    """Of one model, all replicas together, since they started."""

    name: str
    version: str
    last_inference: Count
    """Milliseconds since 1970; 0 where there was none."""
    inference_count: Count
    """Pictures."""
    execution_count: Count
    """Batches."""
    inference_stats: InferenceStatistics
    response_stats: dict[str, Any]
    batch_stats: list[BatchStatistics]
    memory_usage: list[dict[str, Any]]


class Statistics(Schema):
    """What was counted."""

    model_stats: list[ModelStatistics]


class InferInput(Schema):
    """A tensor; its data are here or, as bytes, behind the JSON."""

    name: Text
    datatype: Datatype
    shape: Dimensions
    parameters: Parameters = Field(default_factory=dict)
    """`binary_data_size`: bytes of this tensor behind the JSON, in place of `data`. `content_type: "base64"`: the
    strings of a BYTES tensor are base64."""
    data: list[Any] = Field(default_factory=list)
    """Flat or nested, row-major."""


class InferRequestedOutput(Schema):
    """An output that is wanted."""

    name: Text
    parameters: Parameters = Field(default_factory=dict)
    """`binary_data`: as bytes behind the JSON. `classification`: that many best classes as `score:index:label`."""


class InferRequest(Schema):
    """Pictures, or tensors that were made of them."""

    id: str = ""
    """Given back."""
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[InferRequestedOutput], Field(max_length=1)] = Field(default_factory=list)
    """All of them where it is left out."""
    parameters: Parameters = Field(default_factory=dict)
    """`priority`: 1 goes first, above is batch. `timeout`: microseconds after which no answer is wanted.
    `binary_data_output`: outputs as bytes behind the JSON."""


class InferOutput(Schema):
    """A tensor; its data are here or, as bytes, behind the JSON."""

    name: str
    datatype: Datatype
    shape: Dimensions
    parameters: Parameters = Field(default_factory=dict)
    data: list[Any] = Field(default_factory=list)


class InferResponse(Schema):
    """The outputs, in the order they were asked for."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: Annotated[list[InferOutput], Field(min_length=1)]


class TraceSettings(Schema):
    """Triton's own kind of tracing: there is none."""

    trace_level: list[str]
    trace_rate: str
    trace_count: str
    log_frequency: str
    trace_file: str
    trace_mode: str


class LogSettings(Schema):
    """As the service's operator has them."""

    log_file: str
    log_info: bool
    log_warning: bool
    log_error: bool
    log_verbose_level: Count
    log_format: str


MODELS: tuple[type[Schema], ...] = (
    ProtocolError,
    ServerLive,
    ServerReady,
    ModelReady,
    ServerMetadata,
    ModelMetadata,
    ModelConfig,
    RepositoryModel,
    RepositoryQuery,
    Statistics,
    InferRequest,
    InferResponse,
    TraceSettings,
    LogSettings,
)
