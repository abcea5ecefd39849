"""What the binding accepts, read from its classes and pybind11's docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

_QUALIFIER = re.compile(
    r"(?:[A-Za-z_]\w*::|tensorrt_bindings\.tensorrt\.|typing\.|typing_extensions\.|collections\.abc\.)"
)
_CPP_NAMES = {"IParserError": "ParserError"}
_ENUM_PARTS = {"name", "value"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; pybind11 calls those without a name arg0, arg1: they are not taken by keyword."""

    name: str
    type: str
    has_default: bool

    @property
    def by_keyword(self) -> bool:
        return re.fullmatch(r"arg\d+", self.name) is None


@dataclass(frozen=True, slots=True)
class Overload:
    """One way to call something, without `self`; `returns` is a type as in `Binding`."""

    parameters: tuple[Parameter, ...]
    returns: str

    def fits(self, positional: int, keywords: Collection[str]) -> bool:
        """Whether a call with so many positional arguments and these keywords binds."""
        named = {one.name for one in self.parameters[positional:] if one.by_keyword}
        missing = {one.name for one in self.parameters[positional:] if not one.has_default} - set(keywords)
        return positional <= len(self.parameters) and set(keywords) <= named and not missing

    def __str__(self) -> str:
        return "(" + ", ".join(one.name + ("=..." if one.has_default else "") for one in self.parameters) + ")"


@dataclass(frozen=True, slots=True)
class Property:
    """An attribute of instances."""

    returns: str
    assignable: bool


@dataclass(slots=True)
class Class:
    """Members of a class of the binding, the inherited ones among them; `values` maps constants to their type."""

    name: str
    bases: tuple[str, ...] = ()
    constructors: tuple[Overload, ...] = ()
    methods: dict[str, tuple[Overload, ...]] = field(default_factory=dict)
    properties: dict[str, Property] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    nested: dict[str, str] = field(default_factory=dict)

    @property
    def is_enum(self) -> bool:
        return set(self.properties) >= _ENUM_PARTS and bool(self.values)

    def names(self) -> set[str]:
        """Of all public members."""
        return {*self.methods, *self.properties, *self.values, *self.nested}


class Binding:
    """The whole module. Types are class names such as `ILogger.Severity`, `list[Dims]`, or Python's, as `int`."""

    def __init__(self, module: ModuleType) -> None:
        self.classes: dict[str, Class] = {}
        self.functions: dict[str, tuple[Overload, ...]] = {}
        self.values: dict[str, str] = {"__version__": "str"}
        self.aliases: dict[str, str] = {}
        public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        for name, value in public.items():
            if isinstance(value, type) and _is_own(value):
                self._add(value)
                self.aliases[name] = value.__qualname__
            elif callable(value) and (inspect.isfunction(value) or inspect.isbuiltin(value)):
                self.functions[name] = overloads(value, name)
            elif _is_own(type(value)):
                self.values[name] = type(value).__qualname__

    def _add(self, kind: type) -> None:
        if kind.__qualname__ in self.classes:
            return
        added = Class(kind.__qualname__, tuple(one.__qualname__ for one in kind.__mro__[1:] if _is_own(one)))
        self.classes[kind.__qualname__] = added
        constructor: Any = vars(kind).get("__init__")
        if not isinstance(constructor, type(object.__init__)):  # a slot that only raises: no constructor defined
            added.constructors = overloads(constructor, "__init__")
        for owner in reversed([one for one in kind.__mro__ if _is_own(one)]):
            for name, member in vars(owner).items():
                if not name.startswith("_"):
                    self._add_member(added, name, member)

    def _add_member(self, owner: Class, name: str, member: Any) -> None:
        if isinstance(member, property):
            owner.properties[name] = Property(_returned(member.fget), member.fset is not None)
        elif isinstance(member, type):
            self._add(member)
            owner.nested[name] = member.__qualname__
        elif callable(member) or isinstance(member, staticmethod):
            owner.methods[name] = overloads(getattr(member, "__func__", member), name)
        else:
            owner.values[name] = type(member).__qualname__ if _is_own(type(member)) else ""

    def with_member(self, name: str) -> list[Class]:
        """Classes that have a member of this name."""
        return [one for one in self.classes.values() if name in one.names()]


def _is_own(kind: type) -> bool:
    return kind.__module__.startswith("tensorrt_bindings")


def overloads(function: Any, name: str) -> tuple[Overload, ...]:
    """Signatures of a function or method of the binding, without `self`; empty where it does not tell."""
    if inspect.isfunction(function):
        return (_of_python(function),)
    lines = (line.strip() for line in (function.__doc__ or "").splitlines())
    pattern = re.compile(rf"(?:\d+\. )?{re.escape(name)}\((?P<parameters>.*)\) -> (?P<returns>.+)")
    matches = [match for match in map(pattern.fullmatch, lines) if match]
    return tuple(Overload(tuple(_parameters(match["parameters"])), plain_type(match["returns"])) for match in matches)


def _of_python(function: Any) -> Overload:
    taken = [one for one in inspect.signature(function).parameters.values() if one.name not in ("self", "this")]
    return Overload(tuple(Parameter(one.name, "", one.default is not one.empty) for one in taken), "")


def _parameters(text: str) -> Iterator[Parameter]:
    for part in _split(text):
        declared, has_default, _ = part.partition(" = ")
        name, _, kind = declared.partition(": ")
        if name != "self":
            yield Parameter(name.strip(), plain_type(kind), bool(has_default))


def _split(text: str) -> list[str]:
    """At commas outside brackets, and outside <...>, which defaults are printed as."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _returned(getter: Any) -> str:
    _, arrow, kind = (getattr(getter, "__doc__", None) or "").partition(" -> ")
    return plain_type(kind.splitlines()[0]) if arrow else ""


def plain_type(text: str) -> str:
    """`tensorrt_bindings.tensorrt.ITensor` and `nvinfer1::ITensor` -> `ITensor`."""
    name = _QUALIFIER.sub("", text.strip())
    return _CPP_NAMES.get(name, name)
