"""A TensorRT plan on the current CUDA context. TensorRT answers a refusal with None or False; here it is raised."""

from __future__ import annotations

from typing import Any

import tensorrt as trt

from serve_app.errors import GpuFailed
from serve_app.runtime.gpu.device import Memory
from serve_app.runtime.tensorrt.log import collected_log


class TensorRtExecution:
    """One execution context of a plan, for batches of 1 to `max_batch_size`; satisfies `gpu.device.Execution`.

    One thread uses it. Calls follow each other without waiting, in one stream.

    Args:
        plan: serialized engine with one input, uint8 (-1, height, width, 3), and one output, float32 (-1, classes).

    Raises:
        GpuFailed: TensorRT does not take it, or it has other inputs and outputs.
    """

    def __init__(self, plan: bytes) -> None:
        self._log = collected_log()
        self._mark = self._log.mark()
        self._runtime = trt.Runtime(self._log)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed("TensorRT does not load the plan; it was compiled for another GPU or TensorRT")
        self._engine: trt.ICudaEngine = engine
        self._input, self._output = self._names()
        _, height, width, channels = self._shape_of(self._input, trt.DataType.UINT8, 4)
        _, classes = self._shape_of(self._output, trt.DataType.FLOAT, 2)
        self.shape: tuple[int, int, int] = (height, width, channels)
        self.classes = classes
        least, _, most = engine.get_tensor_profile_shape(self._input, 0)
        self.min_batch_size, self.max_batch_size = int(least[0]), int(most[0])
        self.memory_bytes = int(engine.device_memory_size_v2)
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.STATIC)
        if context is None:
            raise self._failed("TensorRT makes no execution context; is the GPU's memory full?")
        self._context: trt.IExecutionContext = context
        self._batch_size = 0
        self._addresses: dict[str, int] = {}

    def enqueue(self, n: int, source: Memory, target: Memory, stream: Any) -> None:
        """See `gpu.device.Execution`."""
        self._mark = self._log.mark()
        self._set_shape(n)
        self._set_address(self._input, int(source))
        self._set_address(self._output, int(target))
        if not self._context.execute_async_v3(stream.handle):
            self._batch_size = 0
            raise self._failed(f"TensorRT did not start a batch of {n}")

    def close(self) -> None:
        """See `gpu.device.Execution`. The order is TensorRT's: contexts, engine, runtime."""
        del self._context
        del self._engine
        del self._runtime

    def _set_shape(self, n: int) -> None:
        if n == self._batch_size:
            return
        self._batch_size = 0
        if not self._context.set_input_shape(self._input, (n, *self.shape)):
            raise self._failed(
                f"the plan takes no batch of {n}; its profile is {self.min_batch_size} to {self.max_batch_size}"
            )
        if unspecified := self._context.infer_shapes():
            raise self._failed(f"the plan has more inputs than the pictures: {', '.join(unspecified)}")
        found = tuple(self._context.get_tensor_shape(self._output))
        if found != (n, self.classes):
            raise self._failed(f"the plan answers a batch of {n} in shape {found}, not {(n, self.classes)}")
        self._batch_size = n

    def _set_address(self, name: str, address: int) -> None:
        if self._addresses.get(name) == address:
            return
        if not self._context.set_tensor_address(name, address):
            raise self._failed(f"TensorRT does not take the address of {name}")
        self._addresses[name] = address

    def _names(self) -> tuple[str, str]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise self._failed(f"the plan has inputs {inputs} and outputs {outputs}, not one of each")
        return inputs[0], outputs[0]

    def _shape_of(self, name: str, dtype: trt.DataType, rank: int) -> tuple[int, ...]:
        found, shape = self._engine.get_tensor_dtype(name), tuple(self._engine.get_tensor_shape(name))
        if found != dtype or len(shape) != rank or shape[0] != -1 or any(size < 1 for size in shape[1:]):
            raise self._failed(
                f"the plan's {name} is {found.name} {shape}, not {dtype.name} of rank {rank} with a free batch size"
            )
        return shape

    def _failed(self, what: str) -> GpuFailed:
        return GpuFailed(what, self._log.errors_since(self._mark))
