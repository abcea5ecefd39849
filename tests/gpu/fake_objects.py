"""What the fake TensorRT's objects have in common: a journal of calls, and the strictness of pybind11's."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tests.gpu.signatures import Binding, Overload

Compute = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Work:
    """One run of a plan, to be called when its turn comes.

    Attributes:
        uses: address and bytes of the memory it touches.
    """

    run: Callable[[], None]
    batch_size: int
    uses: tuple[tuple[int, int], ...]

    def __call__(self) -> None:
        self.run()


Enqueue = Callable[[int, Work], bool | None]


@dataclass(frozen=True, slots=True)
class Call:
    """One call, assignment (`method` ends with "=") or end (`method` is "destroyed") of an object such as `Runtime#1`.

    Attributes:
        arguments: in the method's order; objects of the fake by name, bytes by length, others that are no plain
            values by `int()` or their type's name: nothing is kept alive.
        thread: its identity.
    """

    target: str
    method: str
    arguments: tuple[Any, ...] = ()
    thread: int = field(default_factory=threading.get_ident, compare=False)


class Journal:
    """Calls in their order; several fakes may write into one."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def add(self, target: str, method: str, arguments: tuple[Any, ...] = ()) -> None:
        self.calls.append(Call(target, method, arguments))

    def methods(self, *names: str) -> list[str]:
        """Methods that were called, in order, or those of `names` among them."""
        return [one.method for one in self.calls if not names or one.method in names]

    def of(self, method: str) -> list[Call]:
        return [one for one in self.calls if one.method == method]

    def destroyed(self) -> list[str]:
        """Objects that are gone, in the order they went, such as `IExecutionContext#1`."""
        return [one.target for one in self.of("destroyed")]


@dataclass(slots=True)
class ParseFault:
    """What one ParserError tells."""

    desc: str = "no importer is registered for this operator"
    node: int = 0
    node_name: str = "node"
    node_operator: str = "Odd"


@dataclass(slots=True)
class Faults:
    """Failures that TensorRT has, all off; each as long as it is set. With each, ERROR lines are logged.

    Attributes:
        parse: errors of the parser, which then does not take the model.
        execute: launches fail, and the output stays as it was.
        infer_shapes: inputs that are left unspecified.
        line: what is logged of a failure in the method named by `{}`.
    """

    build: bool = False
    network_unsupported: bool = False
    network: bool = False
    parse: list[ParseFault] = field(default_factory=list)
    profile_refused: bool = False
    profile_raises: bool = False
    timing_cache: bool = False
    deserialize: bool = False
    context: bool = False
    profile_switch: bool = False
    input_shape: bool = False
    tensor_address: bool = False
    execute: bool = False
    infer_shapes: list[str] = field(default_factory=list)
    line: str = "fault injected in {}"


class World:
    """What all objects of one fake module share.

    Attributes:
        compute: what the input holds, such as uint8 pictures, to float32 rows; None answers by `fake_run.first_bytes`.
        enqueue: given a stream handle and work, does the work at once or later; False where the stream takes none.
        alignment_bytes: that addresses of tensors must have.
        violations: of rules that TensorRT does not check, such as two threads in one context.
    """

    def __init__(self, module: ModuleType, binding: Binding, journal: Journal) -> None:
        self.module = module
        self.binding = binding
        self.journal = journal
        self.faults = Faults()
        self.compute: Compute | None = None
        self.enqueue: Enqueue = lambda stream, work: work()
        self.alignment_bytes = 256
        self.violations: list[str] = []
        self.alive: weakref.WeakSet[Fake] = weakref.WeakSet()
        self._counts: dict[str, int] = {}

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    def number(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}#{self._counts[kind]}"

    def failed(self, logger: Any, method: str, line: str | None = None) -> None:
        """Logs an ERROR line."""
        logger.log(self.module.ILogger.Severity.ERROR, line or self.faults.line.format(method))

    def injected(self, fault: Any, logger: Any, method: str) -> bool:
        if fault:
            self.failed(logger, method)
        return bool(fault)


class Value:
    """An attribute of instances; records assignments, and takes what the genuine property takes."""

    def __init__(self, default: Any = None, *, assignable: bool = False) -> None:
        self.default = default
        self.assignable = assignable

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return instance._s.values.get(self.name, self.default)

    def __set__(self, instance: Any, value: Any) -> None:
        world: World = instance._s.world
        if not self.assignable:
            raise AttributeError(f"property of {type(instance).__name__!r} object has no setter")
        kind = world.binding.classes[type(instance).__name__].properties[self.name].returns
        if value is not None and not accepts("SupportsInt" if kind == "int" else kind, value, world.module):
            raise TypeError(f"{type(instance).__name__}.{self.name} takes {kind}, not {value!r}")
        world.journal.add(instance._s.name, f"{self.name}=", (plain(value),))
        instance._s.values[self.name] = value


class Fake:
    """Base of the fakes. Public names are the genuine class's; arguments are held against its docstrings."""

    _s: Any
    constructible: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{type(self).__name__}: No constructor defined!")

    @classmethod
    def made(cls, world: World, **state: Any) -> Any:
        """An instance, as the fake itself makes them; `state` is the fake's own, in `_s`."""
        instance = object.__new__(cls)
        name = world.number(cls.__name__)
        object.__setattr__(instance, "_s", SimpleNamespace(world=world, name=name, values={}, **state))
        world.alive.add(instance)
        weakref.finalize(instance, world.journal.add, name, "destroyed").atexit = False
        return instance

    def _begin(self) -> None:
        """After the constructor of those that have one."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(getattr(type(self), name, None), Value | property):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


def recorded(method: Callable[..., Any]) -> Any:
    """A method of a fake: arguments are checked as pybind11 does, and the call is recorded before it is made."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        world: World = self._s.world
        bound = signature.bind(self, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        ways = world.binding.classes[type(self).__name__].methods[method.__name__]
        if not any(_takes(way, given, world.module) for way in ways):
            raise TypeError(f"{method.__name__}(): incompatible function arguments: {given!r}; it takes {ways}")
        bound.apply_defaults()
        world.journal.add(self._s.name, method.__name__, tuple(map(plain, bound.args[1:])))
        return method(self, *args, **kwargs)

    return call


def _takes(way: Overload, given: dict[str, Any], module: ModuleType) -> bool:
    kinds = {one.name: one.type for one in way.parameters}
    return given.keys() <= kinds.keys() and all(accepts(kinds[name], value, module) for name, value in given.items())


def accepts(kind: str, value: Any, module: ModuleType) -> bool:
    """Whether pybind11 converts `value` to a parameter whose docstring says `kind`; types it does not know pass."""
    if value is None:
        return kind not in ("SupportsInt", "SupportsFloat", "bool", "Buffer")
    if kind in ("SupportsInt", "SupportsFloat"):
        return hasattr(value, "__int__") and (kind == "SupportsFloat" or not isinstance(value, float | np.floating))
    if kind == "Dims":
        return isinstance(value, module.Dims | list | tuple)
    if kind == "Buffer":
        return _is_buffer(value)
    plain_kinds: dict[str, Any] = {"str": str, "bool": bool | np.bool_, "tuple": tuple, "list": list}
    if kind in plain_kinds:
        return isinstance(value, plain_kinds[kind])
    owner: Any = module
    for part in kind.split("."):
        owner = getattr(owner, part, None)
    return isinstance(value, owner) if isinstance(owner, type) else True


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def plain(value: Any) -> Any:
    """A value for the journal, which must keep nothing alive."""
    if isinstance(value, Fake | HostMemory):
        return value._s.name
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    if hasattr(value, "__members__") or type(value).__name__ == "Dims":
        return value
    return int(value) if hasattr(value, "__int__") else type(value).__name__


class HostMemory(bytes):
    """`IHostMemory`: a buffer, with two attributes and no length or items. A class in Python can only be a buffer by
    being bytes; all else that bytes have is hidden."""

    _s: Any

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("nbytes", "dtype"):
            raise AttributeError(f"'IHostMemory' object has no attribute {name!r}")
        return super().__getattribute__(name)

    @property
    def nbytes(self) -> int:
        return bytes.__len__(self)

    @property
    def dtype(self) -> Any:
        return self._s.world.module.DataType.INT8

    def __len__(self) -> int:
        raise TypeError("object of type 'IHostMemory' has no len()")

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("'IHostMemory' object is not subscriptable")

    def __iter__(self) -> Iterator[int]:
        raise TypeError("'IHostMemory' object is not iterable")


def host_memory(world: World, content: bytes) -> Any:
    """An IHostMemory with this content."""
    memory = world.module.IHostMemory.__new__(world.module.IHostMemory, content)
    memory._s = SimpleNamespace(world=world, name=world.number("IHostMemory"))
    return memory
