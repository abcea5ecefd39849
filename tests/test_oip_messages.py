"""The messages against tritonclient's own generated ones, in the same process, and against their .proto files."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from scripts import compile_protos
from serve_app.oip import messages

GENUINE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def fields_of(message: Descriptor, seen: set[str]) -> dict[str, tuple[Any, ...]]:
    """What of a message, and of those inside it, decides how it looks on the wire."""
    if message.full_name in seen:
        return {}
    seen.add(message.full_name)
    found: dict[str, tuple[Any, ...]] = {}
    for field in message.fields:
        inner = field.message_type.full_name if field.message_type else None
        oneof = field.containing_oneof.name if field.containing_oneof else None
        found[field.full_name] = (field.number, field.type, field.is_repeated, inner, oneof)
        if field.message_type:
            found |= fields_of(field.message_type, seen)
        if field.enum_type:
            found[field.enum_type.full_name] = tuple((one.name, one.number) for one in field.enum_type.values)
    return found


def test_every_call_of_tritonclient_has_the_same_messages() -> None:
    ours = {method.name: method for method in messages.DESCRIPTOR.methods}
    for method in GENUINE.methods:
        mine = ours[method.name]
        assert (mine.client_streaming, mine.server_streaming) == (method.client_streaming, method.server_streaming)
        for theirs, own in ((method.input_type, mine.input_type), (method.output_type, mine.output_type)):
            assert fields_of(theirs, set()).items() <= fields_of(own, set()).items(), theirs.full_name
    assert len(ours) == 20


def test_bytes_of_one_are_read_by_the_other() -> None:
    theirs = service_pb2.ModelInferRequest(model_name="resnet18", id="7", raw_input_contents=[b"abc", b""])
    tensor = theirs.inputs.add(name="image", datatype="FP32", shape=[1, -1])
    tensor.contents.fp32_contents.extend([0.5, -1])
    tensor.parameters["binary_data_size"].int64_param = 8
    ours = messages.ModelInferRequest.FromString(theirs.SerializeToString())
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()) == theirs
    assert (ours.inputs[0].shape, ours.inputs[0].contents.fp32_contents) == ([1, -1], [0.5, -1])
    config = messages.ModelConfig(name="resnet18", max_batch_size=16, input=[{"name": "image", "data_type": 11}])
    assert model_config_pb2.ModelConfig.FromString(config.SerializeToString()).input[0].name == "image"


def test_a_request_pickles_by_name() -> None:
    """Serve's own proxy sends it to the replica so, in another process."""
    request = messages.ModelInferRequest(model_name="resnet18", raw_input_contents=[b"\x00\xff"])
    script = (
        "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).model_name, 'tritonclient' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(request), capture_output=True, check=True)
    assert done.stdout.decode().split() == ["resnet18", "False"]
    for one in messages.MESSAGES.values():
        assert pickle.loads(pickle.dumps(one)) is one
        assert one.__module__ == messages.__name__  # without it, pickle looks through every module there is


def test_an_unknown_message_is_named() -> None:
    with pytest.raises(AttributeError, match="no message 'ModelGuess'"):
        messages.ModelGuess  # noqa: B018
    with pytest.raises(ImportError):
        from serve_app.oip.messages import ModelGuess  # noqa: F401


def test_the_descriptors_are_those_of_the_protos() -> None:
    command = compile_protos.compiler()
    if command is None:
        pytest.skip("no protobuf compiler here: apt install protobuf-compiler, or pip install grpcio-tools")
    fresh = descriptor_pb2.FileDescriptorSet.FromString(compile_protos.compiled(command))
    kept = descriptor_pb2.FileDescriptorSet.FromString(compile_protos.COMPILED.read_bytes())
    assert fresh == kept, "run scripts/compile_protos.py"


def test_the_descriptors_name_what_the_protos_name() -> None:
    """Where no compiler is: a message or call that was added to one and not to the other."""
    text = "".join(path.read_text() for path in sorted(compile_protos.PROTOS.glob("*.proto")))
    assert sorted(re.findall(r"^message (\w+)", text, re.MULTILINE)) == sorted(messages.MESSAGES)
    assert re.findall(r"^  rpc (\w+)", text, re.MULTILINE) == [method.name for method in messages.DESCRIPTOR.methods]
