"""Which class of the binding an expression has, from annotations, constructors and the binding's return types."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from tests.gpu.signatures import Binding, Class

MODULE = "module"
"""The type of `trt` itself."""

CLASS = "class "
"""Before a class's name: the class, not an instance."""

SOME = "some object of TensorRT"
"""Comes from TensorRT, but its class is not told."""

_LISTS = {"list", "Sequence", "Iterable", "Iterator", "Collection", "tuple", "set"}


@dataclass(slots=True)
class Scope:
    """Types of names, innermost first; `owner` is the class whose body this is in."""

    names: dict[str, str | None] = field(default_factory=dict)
    outer: Scope | None = None
    owner: str | None = None

    def inner(self, owner: str | None = None) -> Scope:
        return Scope(outer=self, owner=owner or self.owner)

    def bind(self, name: str, kind: str | None) -> None:
        self.names[name] = kind

    def knows(self, name: str) -> bool:
        return name in self.names or (self.outer is not None and self.outer.knows(name))

    def of(self, name: str) -> str | None:
        if name in self.names:
            return self.names[name]
        return self.outer.of(name) if self.outer else None


@dataclass(slots=True)
class _Local:
    """A class of the source: its base in the binding, its attributes, and what its methods return."""

    base: str | None = None
    members: set[str] = field(default_factory=set)
    attributes: dict[str, str] = field(default_factory=dict)
    returns: dict[str, str] = field(default_factory=dict)


class Types:
    """Types in one source: names of the binding's classes, `list[...]` of one, `MODULE`, `SOME`, a local class as
    `local NAME`, or None where it is not TensorRT's."""

    def __init__(self, tree: ast.Module, binding: Binding) -> None:
        self._binding = binding
        self._modules = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "tensorrt"
        }
        self._locals: dict[str, _Local] = {}
        self._functions: dict[str, str] = {}
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self._locals = {node.name: _Local() for node in classes}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
                self._note(self._functions, node.name, self.annotated(unquoted(node.returns), Scope()))
        for _ in range(2):  # an attribute may be made from one of another class
            for node in classes:
                self._describe(node)

    def is_tensorrt(self, kind: str | None) -> bool:
        """An instance or class that is the binding's, or derived from one of those."""
        return bool(kind) and (kind == SOME or bool(self.classes(kind or "")))

    def classes(self, kind: str) -> list[Class]:
        """Classes of the binding that an object of this type may have."""
        if kind == SOME:
            return list(self._binding.classes.values())
        name = kind.removeprefix(CLASS)
        return [self._binding.classes[name]] if name in self._binding.classes else []

    def of(self, node: ast.expr, scope: Scope) -> str | None:
        """Of an expression."""
        if isinstance(node, ast.Name):
            return self._of_name(node.id, scope)
        if isinstance(node, ast.Attribute):
            return self._of_attribute(node, scope)
        if isinstance(node, ast.Call):
            return self._of_call(node, scope)
        if isinstance(node, ast.Subscript):
            return element_type(self.of(node.value, scope)) if not isinstance(node.slice, ast.Slice) else None
        if isinstance(node, ast.Await | ast.NamedExpr):
            return self.of(node.value, scope)
        if isinstance(node, ast.BoolOp):
            return next((kind for one in node.values if (kind := self.of(one, scope))), None)
        if isinstance(node, ast.IfExp):
            return self.of(node.body, scope) or self.of(node.orelse, scope)
        if isinstance(node, ast.ListComp | ast.List | ast.Tuple):
            return None
        return None

    def annotated(self, node: ast.expr, scope: Scope) -> str | None:
        """Of a variable with this annotation."""
        node = unquoted(node)
        if isinstance(node, ast.BinOp):  # X | None
            return self.annotated(node.left, scope) or self.annotated(node.right, scope)
        if isinstance(node, ast.Subscript):
            name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
            inner = self.annotated(first, scope)
            return f"list[{inner}]" if inner and name in _LISTS else inner if name in ("Optional", "Final") else None
        if isinstance(node, ast.Name) and node.id in self._locals:
            return f"local {node.id}"
        kind = self.of(node, scope) if isinstance(node, ast.Attribute) else None
        return kind.removeprefix(CLASS) if kind and kind.startswith(CLASS) else None

    def parameters(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> Scope:
        """The scope of a function's body."""
        inner = scope.inner()
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for one in arguments:
            inner.bind(one.arg, self.annotated(one.annotation, scope) if one.annotation else None)
        if scope.owner and arguments and arguments[0].annotation is None:
            inner.bind(arguments[0].arg, f"local {scope.owner}")
        return inner

    def _of_name(self, name: str, scope: Scope) -> str | None:
        if scope.knows(name):
            return scope.of(name)
        return MODULE if name in self._modules else None

    def _of_attribute(self, node: ast.Attribute, scope: Scope) -> str | None:
        owner = self.of(node.value, scope)
        if owner is None:
            return None
        if owner == MODULE:
            if node.attr in self._binding.aliases:
                return CLASS + self._binding.aliases[node.attr]
            return self._binding.values.get(node.attr) or None
        if owner.startswith("local "):
            return self._local(owner).attributes.get(node.attr)
        if owner == SOME:
            return None
        for one in self.classes(owner):
            if node.attr in one.nested:
                return CLASS + one.nested[node.attr]
            if node.attr in one.properties:
                return self._returned(one.properties[node.attr].returns)
            return one.values.get(node.attr) or None
        return None

    def _of_call(self, node: ast.Call, scope: Scope) -> str | None:
        called = node.func
        if isinstance(called, ast.Name) and called.id in self._functions and not scope.knows(called.id):
            return self._functions[called.id]
        if isinstance(called, ast.Name) and called.id in self._locals:
            return f"local {called.id}"
        kind = self.of(called, scope)
        if kind and kind.startswith(CLASS):
            return kind.removeprefix(CLASS)
        if not isinstance(called, ast.Attribute):
            return None
        owner = self.of(called.value, scope)
        if owner and owner.startswith("local "):
            return self._local(owner).returns.get(called.attr)
        for one in self.classes(owner) if owner and owner != SOME else []:
            ways = one.methods.get(called.attr, ())
            return self._returned(ways[0].returns) if ways else None
        return None

    def _returned(self, kind: str) -> str | None:
        """A type as the binding tells it, of what comes from TensorRT."""
        if element := element_type(kind):
            return kind if element in self._binding.classes else None
        if kind in self._binding.classes:
            return kind
        return SOME if kind in ("", "object") or kind.startswith("I") else None

    def _local(self, kind: str) -> _Local:
        return self._locals.get(kind.removeprefix("local "), _Local())

    def _describe(self, node: ast.ClassDef) -> None:
        local, scope = self._locals[node.name], Scope(owner=node.name)
        for base in node.bases:
            kind = self.of(base, scope)
            local.base = kind.removeprefix(CLASS) if kind and kind.startswith(CLASS) else local.base
        for one in node.body:
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                self._note(local.attributes, one.target.id, self.annotated(one.annotation, scope))
            elif isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                self._describe_method(one, local, scope)

    def _describe_method(self, node: ast.FunctionDef | ast.AsyncFunctionDef, local: _Local, scope: Scope) -> None:
        returned = self.annotated(node.returns, scope) if node.returns else None
        is_property = any(isinstance(one, ast.Name) and "property" in one.id for one in node.decorator_list)
        self._note(local.attributes if is_property else local.returns, node.name, returned)
        inner = self.parameters(node, scope)
        for one in ast.walk(node):
            if isinstance(one, ast.AnnAssign):
                self._note_assigned(local, one.target, self.annotated(one.annotation, inner), inner)
            elif isinstance(one, ast.Assign):
                for target in one.targets:
                    self._note_assigned(local, target, self.of(one.value, inner), inner)

    def _note_assigned(self, local: _Local, target: ast.expr, kind: str | None, scope: Scope) -> None:
        if isinstance(target, ast.Name) and kind:
            scope.bind(target.id, kind)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            self._note(local.attributes, target.attr, kind)

    @staticmethod
    def _note(notes: dict[str, str], name: str, kind: str | None) -> None:
        if kind:
            notes.setdefault(name, kind)


def element_type(kind: str | None) -> str | None:
    """`list[Dims]` -> `Dims`."""
    return kind[5:-1] if kind and kind.startswith("list[") else None


def unquoted(node: ast.expr) -> ast.expr:
    """An annotation that was written as a string, as an expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return ast.copy_location(ast.parse(node.value, mode="eval").body, node)
    return node
