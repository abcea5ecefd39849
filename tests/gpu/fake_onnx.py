"""Networks and the ONNX parser of the fake TensorRT."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import onnx

from tests.gpu.fake_objects import Fake, ParseFault, Value, World, recorded

_COMPUTING = {"Conv", "Gemm", "MatMul"}
_DTYPES = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "UINT8": "UINT8", "INT8": "INT8", "INT32": "INT32", "INT64": "INT64"}
_TYPE_NAMES = {"FLOAT": "Float", "FLOAT16": "Half", "BFLOAT16": "BFloat16"}


class ITensor(Fake):
    """An input or output of a network."""

    name, shape, dtype = Value(assignable=True), Value(assignable=True), Value()
    is_network_input, is_network_output = Value(False), Value(False)


class INetworkDefinition(Fake):
    """Filled by the parser."""

    @property
    def num_inputs(self) -> int:
        return len(self._s.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._s.outputs)

    @property
    def num_layers(self) -> int:
        return len(self._s.layers)

    @recorded
    def get_input(self, index: int) -> Any:
        return self._s.inputs[index] if index < len(self._s.inputs) else None

    @recorded
    def get_output(self, index: int) -> Any:
        return self._s.outputs[index] if index < len(self._s.outputs) else None


class ParserError(Fake):
    """Told by methods, not attributes."""

    @recorded
    def code(self) -> Any:
        return self._s.world.module.ErrorCode.UNSUPPORTED_NODE

    @recorded
    def desc(self) -> str:
        return str(self._s.fault.desc)

    @recorded
    def file(self) -> str:
        return "ModelImporter.cpp"

    @recorded
    def line(self) -> int:
        return 1

    @recorded
    def func(self) -> str:
        return "parseNode"

    @recorded
    def node(self) -> int:
        return int(self._s.fault.node)

    @recorded
    def node_name(self) -> str:
        return str(self._s.fault.node_name)

    @recorded
    def node_operator(self) -> str:
        return str(self._s.fault.node_operator)

    @recorded
    def local_function_stack(self) -> list[str]:
        return []


class OnnxParser(Fake):
    """Reads real ONNX files with the `onnx` package."""

    constructible = True

    def _begin(self) -> None:
        # The network's weights are the parser's memory: the binding makes the network keep it, not the other way.
        self._s.network._s.parsers.append(self)
        self._s.network = weakref.ref(self._s.network)

    @property
    def num_errors(self) -> int:
        return len(self._errors())

    @recorded
    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            parsed = onnx.load_model_from_string(bytes(model))
        except Exception as error:
            return self._refused([ParseFault(f"failed to parse the model: {error}", -1, "", "")])
        return self._parsed(parsed)

    @recorded
    def parse_from_file(self, model: str) -> bool:
        try:
            parsed = onnx.load(model)
        except Exception as error:
            return self._refused([ParseFault(f"failed to open or parse {model}: {error}", -1, "", "")])
        return self._parsed(parsed)

    @recorded
    def get_error(self, index: int) -> Any:
        return ParserError.made(self._s.world, fault=self._errors()[index])

    @recorded
    def clear_errors(self) -> None:
        self._s.errors = []

    @recorded
    def supports_operator(self, op_name: str) -> bool:
        return True

    @recorded
    def set_flag(self, flag: Any) -> None: ...

    @recorded
    def clear_flag(self, flag: Any) -> None: ...

    def _errors(self) -> list[ParseFault]:
        return getattr(self._s, "errors", [])

    def _refused(self, errors: Sequence[ParseFault]) -> bool:
        self._s.errors = list(errors)
        for one in errors:
            self._s.world.failed(self._s.logger, "parse", f"node {one.node} {one.node_name}: {one.desc}")
        return False

    def _parsed(self, model: onnx.ModelProto) -> bool:
        world: World = self._s.world
        if world.faults.parse:
            return self._refused(world.faults.parse)
        network = self._s.network()
        if network is None:
            world.violations.append("the network was gone before its parser")
            return False
        state = network._s
        constants = {one.name for one in model.graph.initializer}
        state.inputs = [_tensor(world, one, "input") for one in model.graph.input if one.name not in constants]
        state.outputs = [_tensor(world, one, "output") for one in model.graph.output]
        state.layers = _layers(model)
        return True


def _tensor(world: World, value: onnx.ValueInfoProto, mode: str) -> Any:
    tensor = ITensor.made(world)
    kind = value.type.tensor_type
    dtype = _DTYPES[onnx.TensorProto.DataType.Name(kind.elem_type)]
    shape = world.module.Dims([one.dim_value if one.HasField("dim_value") else -1 for one in kind.shape.dim])
    tensor._s.values.update(name=value.name, shape=shape, dtype=getattr(world.module.DataType, dtype))
    tensor._s.values[f"is_network_{mode}"] = True
    return tensor


def _layers(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Name, operator and data type of each node that computes with weights; the type is theirs, however they come."""
    types = {one.name: onnx.TensorProto.DataType.Name(one.data_type) for one in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    return [
        {"name": node.name, "operator": node.op_type, "type": _type_of(node.input[1], types, makers)}
        for node in model.graph.node
        if node.op_type in _COMPUTING
    ]


def _type_of(name: str, types: dict[str, str], makers: dict[str, onnx.NodeProto]) -> str:
    maker = makers.get(name)
    if maker is None:
        return _TYPE_NAMES.get(types.get(name, ""), "Float")
    if maker.op_type == "DequantizeLinear":
        return "Int8"
    if maker.op_type == "Cast":
        [to] = [one.i for one in maker.attribute if one.name == "to"]
        return _TYPE_NAMES.get(onnx.TensorProto.DataType.Name(to), "Float")
    return _type_of(maker.input[0], types, makers) if maker.input else "Float"
