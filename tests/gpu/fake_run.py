"""The running half of the fake TensorRT: plans that `fake_build` made, computed on plain host addresses."""

from __future__ import annotations

import ctypes
import json
import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu.fake_build import MAGIC
from tests.gpu.fake_objects import Fake, Value, Work, World, host_memory, recorded


def first_bytes(pictures: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What a plan answers if it is told nothing else: row i has its peak at picture i's first value, modulo classes."""
    logits = np.zeros(shape, np.float32)
    values = pictures.reshape(len(pictures), -1)[:, 0].astype(int)
    logits[np.arange(len(pictures)), values % shape[1]] = 1 + values
    return logits


class Runtime(Fake):
    """Reads plans."""

    constructible = True
    max_threads = Value(1, assignable=True)
    engine_host_code_allowed = Value(False, assignable=True)

    @recorded
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        world: World = self._s.world
        if world.injected(world.faults.deserialize, self._s.logger, "deserialize_cuda_engine"):
            return None
        content = bytes(serialized_engine)
        if not content.startswith(MAGIC):
            world.failed(self._s.logger, "deserialize_cuda_engine", "Serialization assertion magicTagRead failed.")
            return None
        plan = json.loads(content.removeprefix(MAGIC))
        if plan["version"] != world.version:
            told = f"The engine plan file was made by version {plan['version']}, this is version {world.version}"
            world.failed(self._s.logger, "deserialize_cuda_engine", told)
            return None
        return ICudaEngine.made(world, runtime=self, logger=self._s.logger, plan=plan)


class ICudaEngine(Fake):
    """A plan; keeps its runtime alive, and its contexts keep it."""

    device_memory_size_v2, num_aux_streams, refittable = Value(2**20), Value(0), Value(False)
    name, hardware_compatibility_level = Value("network"), Value()

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors())

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._s.plan["profiles"]))

    @property
    def num_layers(self) -> int:
        return len(self._s.plan["layers"])

    @recorded
    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors()[index]["name"])

    @recorded
    def get_tensor_mode(self, name: str) -> Any:
        modes = self._s.world.module.TensorIOMode
        if self._tensor(name) is None:
            return modes.NONE
        return modes.INPUT if self._tensor(name) in self._s.plan["inputs"] else modes.OUTPUT

    @recorded
    def get_tensor_shape(self, name: str) -> Any:
        tensor = self._tensor(name)
        return self._s.world.module.Dims(tensor["shape"] if tensor else [])

    @recorded
    def get_tensor_dtype(self, name: str) -> Any:
        tensor = self._tensor(name)
        return getattr(self._s.world.module.DataType, tensor["dtype"] if tensor else "FLOAT")

    @recorded
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        return [self._s.world.module.Dims(shape) for shape in self._shapes(name, profile_index)]

    @recorded
    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return int(self.device_memory_size_v2)

    @recorded
    def create_execution_context(self, strategy: Any = None) -> Any:
        world: World = self._s.world
        if world.injected(world.faults.context, self._s.logger, "create_execution_context"):
            return None
        state: dict[str, Any] = {"shapes": {}, "addresses": {}, "profile": 0, "busy": threading.Lock()}
        return IExecutionContext.made(world, engine=self, logger=self._s.logger, **state)

    @recorded
    def create_engine_inspector(self) -> Any:
        return EngineInspector.made(self._s.world, engine=self)

    @recorded
    def serialize(self) -> Any:
        return host_memory(self._s.world, MAGIC + json.dumps(self._s.plan).encode())

    def _tensors(self) -> list[dict[str, Any]]:
        return [*self._s.plan["inputs"], *self._s.plan["outputs"]]

    def _tensor(self, name: str) -> dict[str, Any] | None:
        return next((one for one in self._tensors() if one["name"] == name), None)

    def _shapes(self, name: str, profile: int) -> list[list[int]]:
        """Least, best and largest shape of an input; empty for what is none."""
        profiles = self._s.plan["profiles"]
        if profile < len(profiles) and name in profiles[profile]:
            found: list[list[int]] = profiles[profile][name]
            return found
        return []


class EngineInspector(Fake):
    """Tells of layers in the layout of TensorRT 11; names only, unless the plan was built with DETAILED."""

    execution_context = Value(assignable=True)

    @recorded
    def get_engine_information(self, format: Any) -> str:
        plan = self._s.engine._s.plan
        layers = [_layer(one) if plan["detailed"] else one["name"] for one in plan["layers"]]
        return json.dumps({"Layers": layers, "I/O Tensors": [one["name"] for one in self._s.engine._tensors()]})

    @recorded
    def get_layer_information(self, layer_index: int, format: Any) -> str:
        plan = self._s.engine._s.plan
        layer = plan["layers"][layer_index]
        return json.dumps(_layer(layer) if plan["detailed"] else layer["name"])


def _layer(layer: dict[str, str]) -> dict[str, Any]:
    tensor = {"Dimensions": [1], "Format": "Linear", "DataType": layer["type"]}
    return {"Name": layer["name"], "LayerType": layer["operator"], "Inputs": [tensor], "Outputs": [tensor]}


class IExecutionContext(Fake):
    """Runs a plan. Two threads in it at once, and ends before its queued work, are violations."""

    name = Value("", assignable=True)
    enqueue_emits_profile = Value(True, assignable=True)

    @property
    def engine(self) -> Any:
        return self._s.engine

    @property
    def active_optimization_profile(self) -> int:
        return int(self._s.profile)

    @recorded
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        world: World = self._s.world
        wrong = not 0 <= profile_index < self._s.engine.num_optimization_profiles
        if world.injected(world.faults.profile_switch or wrong, self._s.logger, "set_optimization_profile_async"):
            raise RuntimeError("Error in set optimization profile async.")
        self._s.profile = int(profile_index)
        self._s.shapes.clear()
        return True

    @recorded
    def set_input_shape(self, name: str, shape: Any) -> bool:
        with self._alone():
            world, wanted = self._s.world, [int(size) for size in tuple(shape)]
            bounds = self._s.engine._shapes(name, self._s.profile) or [self._s.engine.get_tensor_shape(name)] * 3
            least, _, most = map(list, bounds)
            fits = len(wanted) == len(least) and all(a <= b <= c for a, b, c in zip(least, wanted, most, strict=True))
            if world.injected(world.faults.input_shape or not fits or not least, self._s.logger, "set_input_shape"):
                return False
            self._s.shapes[name] = wanted
            return True

    @recorded
    def infer_shapes(self) -> list[str]:
        with self._alone():
            world: World = self._s.world
            if world.injected(world.faults.infer_shapes, self._s.logger, "infer_shapes"):
                return list(world.faults.infer_shapes)
            return [one["name"] for one in self._s.engine._s.plan["inputs"] if -1 in self._shape(one)]

    @recorded
    def get_tensor_shape(self, name: str) -> Any:
        tensor = self._s.engine._tensor(name)
        return self._s.world.module.Dims(self._shape(tensor) if tensor else [])

    @recorded
    def set_tensor_address(self, name: str, memory: int) -> bool:
        with self._alone():
            world: World = self._s.world
            unknown = self._s.engine._tensor(name) is None
            unaligned = int(memory) % world.alignment_bytes != 0
            if world.injected(
                world.faults.tensor_address or unknown or unaligned, self._s.logger, "set_tensor_address"
            ):
                return False
            self._s.addresses[name] = int(memory)
            return True

    @recorded
    def get_tensor_address(self, name: str) -> int:
        return int(self._s.addresses.get(name, 0))

    @recorded
    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._alone():
            world: World = self._s.world
            tensors = self._s.engine._tensors()
            ready = all(-1 not in self._shape(one) and self._s.addresses.get(one["name"]) for one in tensors)
            if world.injected(world.faults.execute or not ready, self._s.logger, "execute_async_v3"):
                return False
            if world.enqueue(int(stream_handle), self._work()) is False:
                world.failed(self._s.logger, "execute_async_v3", "Cuda failure in enqueueV3")
                return False
            return True

    def _shape(self, tensor: dict[str, Any]) -> list[int]:
        """With the batch size of the first input that has one."""
        batches = [shape[0] for shape in self._s.shapes.values()]
        own = self._s.shapes.get(tensor["name"], tensor["shape"])
        is_output = tensor in self._s.engine._s.plan["outputs"]
        return [batches[0], *own[1:]] if is_output and batches and own[:1] == [-1] else list(own)

    def _work(self) -> Work:
        """The run as it is now: shapes and addresses are those of the call, contents those of its turn."""
        world, context, name = self._s.world, weakref.ref(self), self._s.name
        plan = self._s.engine._s.plan
        [source], [target] = [
            [(self._s.addresses[one["name"]], self._shape(one), _dtype(world, one["dtype"])) for one in plan[mode]]
            for mode in ("inputs", "outputs")
        ]

        def work() -> None:
            if context() is None:
                world.violations.append(f"{name} was destroyed before its queued work was done")
            pictures = _array(*source)
            logits = world.compute(pictures) if world.compute else first_bytes(pictures, tuple(target[1]))
            _array(*target)[...] = logits

        uses = tuple((address, math.prod(shape) * dtype.itemsize) for address, shape, dtype in (source, target))
        return Work(work, source[1][0], uses)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._s.busy.acquire(blocking=False):
            self._s.world.violations.append(f"two threads are in {self._s.name} at once")
            yield
            return
        try:
            yield
        finally:
            self._s.busy.release()


def _dtype(world: World, name: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(world.module.nptype(getattr(world.module.DataType, name)))
    return dtype


def _array(address: int, shape: list[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The memory at an address, without a copy."""
    memory: Any = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(address)
    array: NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)
    return array
