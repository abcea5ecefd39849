"""The protobuf messages of `inference.GRPCInferenceService`: `from serve_app.oip.messages import ModelInferRequest`.

Built at import from descriptors, not from code that protoc generated: such code runs with a narrow range of protobuf
releases only, and enters its names into a pool of the whole process, where a second copy of them (tritonclient's, say)
is an error. These live in a pool of their own, and work with every protobuf from 4.22 on.

The classes pickle by their names in this module, since Serve's own proxy sends requests to replicas pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"


def _service() -> Any:
    """The descriptor of the service, in a pool of its own."""
    data = resources.files("serve_app.oip").joinpath("protos/grpc_service.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool.FindServiceByName(SERVICE)


def _classes(service: Any) -> dict[str, type[Any]]:
    """Every message of the service's file, and of the one with `ModelConfig`, by name."""
    files = (service.file, *service.file.dependencies)
    classes = {
        name: message_factory.GetMessageClass(descriptor)
        for file in files
        for name, descriptor in file.message_types_by_name.items()
    }
    for one in classes.values():
        one.__module__ = __name__
    return classes


DESCRIPTOR = _service()
"""Of the service; `methods` of it say which messages each takes and gives, and which are streams."""
MESSAGES: Mapping[str, type[Any]] = _classes(DESCRIPTOR)


def __getattr__(name: str) -> Any:
    """A message class."""
    try:
        return MESSAGES[name]
    except KeyError:
        raise AttributeError(f"{SERVICE} has no message {name!r}; see serve_app/oip/protos") from None
