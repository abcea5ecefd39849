"""A TensorRT that runs without a GPU, for tests of behaviour; specified from the genuine binding.

Enums, loggers, the progress monitor and Dims are the genuine ones. The rest are fakes whose names, parameters and
read-only attributes are held against the genuine classes when the module is made; what they do not have, fails.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.gpu import fake_build, fake_onnx, fake_run
from tests.gpu.binding import needs_binding
from tests.gpu.fake_objects import Fake, Faults, HostMemory, Journal, Value, World, accepts
from tests.gpu.signatures import Binding, Class

GENUINE = {"ILogger", "Logger", "IProgressMonitor", "Dims", "nptype", "volume", "__version__"}
FAKES: dict[str, type[Fake]] = {
    kind.__name__: kind
    for module in (fake_onnx, fake_build, fake_run)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Fake) and kind is not Fake
}
OURS = ("serve_app.runtime.tensorrt", "engine_build.tensorrt")
"""Packages of ours whose modules import TensorRT."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class FakeTensorRT:
    """The module, and how a test controls and watches it.

    Attributes:
        module: to be imported as `tensorrt`.
        world: faults to set, `compute` and `enqueue` to plug in, violations of rules that TensorRT does not check.
    """

    module: ModuleType
    world: World

    @property
    def faults(self) -> Faults:
        return self.world.faults

    @property
    def journal(self) -> Journal:
        return self.world.journal

    def alive(self) -> list[str]:
        """Names of the fake's objects that still exist, such as `Runtime#1`."""
        return sorted(one._s.name for one in self.world.alive)


def make_fake(journal: Journal | None = None) -> FakeTensorRT:
    """A fresh fake; skips the calling test where the binding cannot be had.

    Args:
        journal: to share with other fakes, for the order of calls between them.
    """
    genuine = needs_binding()
    binding = Binding(genuine)
    module = ModuleType("tensorrt", "fake")
    world = World(module, binding, journal or Journal())
    for name, value in vars(genuine).items():
        kind = binding.classes.get(binding.aliases.get(name, ""))
        if name in GENUINE or name in binding.values or (kind is not None and kind.is_enum):
            setattr(module, name, value)
    for name, fake in FAKES.items():
        if wrong := differences(fake, binding.classes[name]):
            raise TypeError(f"the fake {name} is not as the genuine one: {'; '.join(wrong)}")
        setattr(module, name, _bound(fake, world))
    module.__dict__["IHostMemory"] = HostMemory
    return FakeTensorRT(module, world)


def differences(fake: type[Fake], genuine: Class) -> list[str]:
    """Where a fake's public names, parameters or read-only attributes are not the genuine class's."""
    found = []
    if fake.constructible != bool(genuine.constructors):
        found.append("one has a constructor, the other none")
    for name, member in vars(fake).items():
        if name.startswith("_") or name == "constructible":
            continue
        if isinstance(member, Value | property):
            assignable = member.assignable if isinstance(member, Value) else member.fset is not None
            if name not in genuine.properties:
                found.append(f"{name} is no attribute")
            elif assignable and not genuine.properties[name].assignable:
                found.append(f"{name} is read-only")
        elif name not in genuine.methods:
            found.append(f"{name} is no method")
        else:
            found += _parameters(member, genuine)
    return found


def _parameters(method: Any, genuine: Class) -> list[str]:
    ways = genuine.methods[method.__name__]
    own = list(inspect.signature(method).parameters.values())[1:]
    taken = [(one.name, one.default is not one.empty) for one in own]
    if taken in [[(one.name, one.has_default) for one in way.parameters] for way in ways]:
        return []
    return [f"{method.__name__} takes {' or '.join(map(str, ways))}"]


def _bound(fake: type[Fake], world: World) -> type[Fake]:
    """The fake as a class of this module; those with a constructor get it here."""
    if not fake.constructible:
        return fake
    kinds = {one.name: one.type for one in world.binding.classes[fake.__name__].constructors[0].parameters}
    signature = inspect.Signature([inspect.Parameter(one, inspect.Parameter.POSITIONAL_OR_KEYWORD) for one in kinds])

    def new(cls: type[Fake], *args: Any, **kwargs: Any) -> Fake:
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            if value is None or not accepts(kinds[name], value, world.module):
                raise TypeError(f"{fake.__name__}(): {name} is no {kinds[name]}: {value!r}")
        made: Fake = cls.made(world, **given)
        made._begin()
        world.journal.add(made._s.name, "__init__")
        return made

    return type(fake.__name__, (fake,), {"__new__": new, "__init__": lambda self, *args, **kwargs: None})


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeTensorRT) -> None:
    """Makes `import tensorrt` find the fake until the test ends; modules of ours that import it are loaded anew."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module)
    for package in OURS:
        importlib.import_module(package)
        for path in (ROOT / package.replace(".", "/")).glob("*.py"):
            if path.stem != "__init__":
                _unload(monkeypatch, package, path.stem)


def _unload(monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    """Set, then deleted: so that the end of the test also takes away what the test loads."""
    full = f"{package}.{name}"
    monkeypatch.setitem(sys.modules, full, ModuleType(full))
    del sys.modules[full]
    attributes = vars(sys.modules[package])
    monkeypatch.setitem(attributes, name, None)
    del attributes[name]
