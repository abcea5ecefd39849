"""Whether source that uses TensorRT would find what it uses: its AST against the genuine binding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.gpu.inference import CLASS, MODULE, Scope, Types, element_type, unquoted
from tests.gpu.signatures import Binding, Class, Overload

_HOOKED = {"ILogger", "IProgressMonitor"}
"""Classes of the binding that are subclassed, whose methods TensorRT calls: each must be there."""


@dataclass(slots=True)
class Usage:
    """What was found in one source file.

    Attributes:
        problems: each begins with its line.
        checked: the `ast.Attribute` nodes that were held against the binding.
    """

    problems: list[str] = field(default_factory=list)
    checked: list[ast.Attribute] = field(default_factory=list)


def imports_tensorrt(source: str) -> bool:
    """Whether any line does, at whatever depth."""
    nodes = ast.walk(ast.parse(source))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return "tensorrt" in {name.partition(".")[0] for name in names} or "from tensorrt" in source


def problems(source: str, binding: Binding) -> list[str]:
    """What TensorRT 11.4 does not have or take, each as `line N: ...`; empty where all fits.

    Checked are names below `import tensorrt as trt`, calls of them, members of objects whose class can be inferred,
    assignments to those, and subclasses of the binding's classes. Of an object that comes from TensorRT but whose
    class is unknown, a member must exist in some class.
    """
    return usage(source, binding).problems


def usage(source: str, binding: Binding) -> Usage:
    """The same, with what was checked."""
    tree = ast.parse(source)
    walker = _Walker(binding, Types(tree, binding))
    walker.visit(tree)
    walker.found.problems.sort(key=lambda text: int(text.split()[1].rstrip(":")))
    return walker.found


class _Walker(ast.NodeVisitor):
    """Visits in source order, with the types that are known so far in `self._scope`."""

    def __init__(self, binding: Binding, types: Types) -> None:
        self.found = Usage()
        self._binding = binding
        self._types = types
        self._scope = Scope()
        self._called: set[int] = set()

    def _wrong(self, node: ast.AST, what: str) -> None:
        self.found.problems.append(f"line {getattr(node, 'lineno', 0)}: {what}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and node.module.partition(".")[0] == "tensorrt" and not node.level:
            self._wrong(node, "write `import tensorrt as trt`: names imported one by one are not checked")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            kind = self._types.of(base, self._scope)
            if kind and kind.startswith(CLASS):
                self._check_subclass(node, self._binding.classes[kind.removeprefix(CLASS)])
        outer, self._scope = self._scope, self._scope.inner(node.name)
        self.generic_visit(node)
        self._scope = outer

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for outside in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(outside)
        outer, self._scope = self._scope, self._types.parameters(node, self._scope)
        for annotation in _annotations(node):
            self.visit(unquoted(annotation))
        for statement in node.body:
            self.visit(statement)
        self._scope = outer

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815, ast.NodeVisitor's names

    def visit_Lambda(self, node: ast.Lambda) -> None:
        outer, self._scope = self._scope, self._scope.inner()
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self._scope.bind(argument.arg, None)
        self.visit(node.body)
        self._scope = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        kind = self._types.of(node.value, self._scope)
        for target in node.targets:
            self._assigned(target, kind)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        annotation = unquoted(node.annotation)
        self.visit(annotation)
        if node.value:
            self.visit(node.value)
        self._assigned(node.target, self._types.annotated(annotation, self._scope))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._assigned(node.target, None)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._assigned(node.target, self._types.of(node.value, self._scope))

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._assigned(node.target, element_type(self._types.of(node.iter, self._scope)))
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    visit_AsyncFor = visit_For  # noqa: N815

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if self._types.is_tensorrt(self._types.of(item.context_expr, self._scope)):
                self._wrong(item.context_expr, "TensorRT's objects are no context managers any more; use del")
            if item.optional_vars:
                self._assigned(item.optional_vars, None)
        for statement in node.body:
            self.visit(statement)

    visit_AsyncWith = visit_With  # noqa: N815

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        outer, self._scope = self._scope, self._scope.inner()
        for generator in node.generators:
            self.visit(generator.iter)
            self._assigned(generator.target, element_type(self._types.of(generator.iter, self._scope)))
            for condition in generator.ifs:
                self.visit(condition)
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(part)
        self._scope = outer

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp  # noqa: N815

    def _assigned(self, target: ast.expr, kind: str | None) -> None:
        if isinstance(target, ast.Name):
            self._scope.bind(target.id, kind)
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._assigned(part.value if isinstance(part, ast.Starred) else part, element_type(kind))
        elif isinstance(target, ast.Attribute):
            self.visit(target)
        else:
            self.visit(target)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.visit(node.value)
        owner = self._types.of(node.value, self._scope)
        if owner == MODULE:
            self._check_module_name(node)
        elif owner and self._types.is_tensorrt(owner) and not node.attr.startswith("__"):
            self._check_member(node, owner)

    def _check_module_name(self, node: ast.Attribute) -> None:
        self.found.checked.append(node)
        if node.attr not in {*self._binding.aliases, *self._binding.functions, *self._binding.values}:
            self._wrong(node, f"tensorrt has no {node.attr}")

    def _check_member(self, node: ast.Attribute, owner: str) -> None:
        self.found.checked.append(node)
        classes = self._types.classes(owner)
        having = [one for one in classes if node.attr in one.names()]
        if not having:
            self._wrong(node, f"{owner.removeprefix(CLASS)} has no {node.attr}")
        elif isinstance(node.ctx, ast.Store | ast.Del):
            # Properties of the class itself cannot be told from an instance's in an unknown object.
            if not any(one.properties.get(node.attr) and one.properties[node.attr].assignable for one in having):
                self._wrong(node, f"{owner.removeprefix(CLASS)}.{node.attr} cannot be assigned")
        elif owner.startswith(CLASS) and all(node.attr in one.properties for one in having):
            self._wrong(node, f"{owner.removeprefix(CLASS)}.{node.attr} is an attribute of instances")

    def visit_Call(self, node: ast.Call) -> None:
        self.visit(node.func)
        self._check_call(node, node.func, node.args, 0)
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr"):
            self._check_getattr(node)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("submit", "to_thread") and node.args:
            self._check_call(node, node.args[0], node.args[1:], 0)
        for part in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self.visit(part)

    def _check_getattr(self, node: ast.Call) -> None:
        owner, name = (*node.args, None, None)[:2]
        if owner is not None and isinstance(name, ast.Constant) and isinstance(name.value, str):
            context = ast.Store() if isinstance(node.func, ast.Name) and node.func.id == "setattr" else ast.Load()
            self.visit(ast.copy_location(ast.Attribute(owner, name.value, context), name))

    def _check_call(self, node: ast.Call, called: ast.expr, arguments: list[ast.expr], unbound: int) -> None:
        ways = list(self._ways(called))
        if not ways:
            return
        name, overloads, skipped = ways[0][0], [way for _, found, _ in ways for way in found], ways[0][2]
        positional = len(arguments) - skipped
        if any(isinstance(one, ast.Starred) for one in arguments) or any(one.arg is None for one in node.keywords):
            return
        keywords = [one.arg for one in node.keywords if one.arg]
        if not any(way.fits(positional, keywords) for way in overloads):
            given = ", ".join([f"{positional} by position", *keywords])
            self._wrong(node, f"{name} takes {' or '.join(map(str, overloads)) or 'no call'}, not ({given})")

    def _ways(self, called: ast.expr) -> Iterator[tuple[str, tuple[Overload, ...], int]]:
        """Name, overloads, and how many leading arguments are `self`, of each thing that may be called."""
        kind = self._types.of(called, self._scope)
        if kind and kind.startswith(CLASS):
            made = self._binding.classes[kind.removeprefix(CLASS)]
            yield made.name, made.constructors, 0
        elif isinstance(called, ast.Attribute):
            owner = self._types.of(called.value, self._scope)
            if owner == MODULE and called.attr in self._binding.functions:
                yield called.attr, self._binding.functions[called.attr], 0
            elif owner and self._types.is_tensorrt(owner):
                yield from self._methods(called.attr, owner)

    def _methods(self, name: str, owner: str) -> Iterator[tuple[str, tuple[Overload, ...], int]]:
        skipped = int(owner.startswith(CLASS))
        for one in self._types.classes(owner):
            if name == "__init__" and one.constructors:
                yield f"{one.name}.__init__", one.constructors, skipped
            elif one.methods.get(name):
                yield f"{one.name}.{name}", one.methods[name], skipped
            elif name in {*one.properties, *one.values}:
                yield f"{one.name}.{name}", (), 0

    def _check_subclass(self, node: ast.ClassDef, base: Class) -> None:
        if not base.constructors:
            self._wrong(node, f"{base.name} cannot be subclassed")
        own = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
        for name, overloads in base.methods.items():
            if name in own:
                self._check_override(own[name], f"{base.name}.{name}", overloads)
            elif base.name in _HOOKED:
                self._wrong(node, f"{node.name} does not implement {base.name}.{name}")
        if "__init__" in own and not any(_is_init_call(one) for one in ast.walk(own["__init__"])):
            self._wrong(own["__init__"], f"{base.name}.__init__(self) is not called; TensorRT refuses such an object")

    def _check_override(self, node: ast.FunctionDef, name: str, overloads: tuple[Overload, ...]) -> None:
        taken = [one.arg for one in (*node.args.posonlyargs, *node.args.args)][1:]
        if taken not in [[one.name for one in way.parameters] for way in overloads]:
            self._wrong(node, f"{name} takes {' or '.join(map(str, overloads))}, not ({', '.join(taken)})")


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    arguments = node.args
    for one in (*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg):
        if one is not None and one.annotation:
            yield one.annotation
    if node.returns:
        yield node.returns


def _is_init_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__"
