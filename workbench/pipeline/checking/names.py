"""Undefined and out-of-order names over the cells of a notebook, in execution order."""

# ruff: noqa: N815 - these are the names that ast.NodeVisitor calls
from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.checking.notebook import (
    FUNCTION_NODES,
    Cell,
    first_definitions,
    global_names,
)

_KERNEL_NAMES = frozenset(
    {"In", "Out", "_", "__", "___", "_dh", "_i", "_ih", "_oh", "display", "exit", "get_ipython"}
    | {"__file__", "__name__", "__doc__", "__builtins__", "__annotations__", "__class__", "quit"}
)
_CONSTRUCTOR_METHODS = ("__new__", "__init__", "__post_init__")
_CATCH_NAME_ERROR = {"NameError", "Exception", "BaseException"}
_COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def check_names(cells: Sequence[Cell]) -> list[Finding]:
    """Names that are used before anything defines them, with the pair of cells where there is."""
    book = _NameTracker(first_definitions(cells))
    for cell in cells:
        if any(magic.name in ("run", "load_ext", "load", "pylab") for magic in cell.magics):
            book.open_world = True
        if cell.tree is not None:
            try:
                _CellVisitor(book, cell).statements(cell.tree.body)
            except RecursionError:  # an expression of a thousand terms
                book.open_world = True
    for need in book.deferred.values():
        for one in need:
            book.require(one)
    return book.findings


@dataclass(frozen=True)
class _NameUse:
    """A name that a function needs when it is called."""

    name: str
    cell: Cell
    line: int


@dataclass
class _NameTracker:
    """What is known while walking from the first cell to the last."""

    first: dict[str, Cell]
    defined: set[str] = field(default_factory=lambda: {*dir(builtins), *_KERNEL_NAMES})
    deferred: dict[str, list[_NameUse]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    open_world: bool = False
    said: set[tuple[str, int]] = field(default_factory=set)

    def require(self, use: _NameUse, called: Cell | None = None, line: int | None = None) -> None:
        """Say it when ``use`` is not defined by now; ``called`` is where that came to matter."""
        if use.name in self.defined or self.open_world:
            return
        at, at_line = called or use.cell, line or use.line
        if (use.name, at.number) in self.said:
            return
        self.said.add((use.name, at.number))
        by = f", which cell {at.number} calls from cell {use.cell.number}" if called else ""
        later = self.first.get(use.name)
        if later is not None and later.number >= at.number:
            rule = "out-of-order"
            place = "further down" if later is at else f"in cell {later.number}"
            message = f"`{use.name}` is used{by} before it is defined {place}"
        else:
            rule, message = "undefined-name", f"`{use.name}` is defined nowhere{by}"
        self.findings.append(Finding(rule, message, at.number, at.id, at_line))

    def call(self, name: str, cell: Cell, line: int) -> None:
        """Everything that the function ``name``, and those it calls, needs by now."""
        waiting, seen = [name], set[str]()
        while waiting:
            current = waiting.pop()
            if current in seen:
                continue
            seen.add(current)
            for use in self.deferred.get(current, ()):
                self.require(use, cell, line)
                waiting.append(use.name)


class _CellVisitor(ast.NodeVisitor):
    """Walks what a cell evaluates at once, in evaluation order."""

    def __init__(self, book: _NameTracker, cell: Cell) -> None:
        self.book = book
        self.cell = cell
        self.local: list[set[str]] = []  # class bodies and comprehensions around
        self.branches = 0

    def statements(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def bind(self, name: str) -> None:
        (self.local[-1] if self.local else self.book.defined).add(name)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.bind(node.id)
        elif isinstance(node.ctx, ast.Load):
            if not any(node.id in names for names in self.local):
                self.book.require(_NameUse(node.id, self.cell, node.lineno))
        elif not self.branches and not self.local:
            self.book.defined.discard(node.id)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name):
            self.book.call(node.func.id, self.cell, node.lineno)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.bind(alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self.book.open_world = True
                message = f"`from {node.module} import *`"
                finding = Finding(
                    "star-import", message, self.cell.number, self.cell.id, node.lineno
                )
                self.book.findings.append(finding)
            else:
                self.bind(alias.asname or alias.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)
        if isinstance(node.value, ast.Lambda) and isinstance(node.targets[0], ast.Name):
            self._defer(node.targets[0].id, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.visit(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target))
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.book.defined.add(node.target.id)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        self._branch([*node.body, *node.orelse])

    visit_AsyncFor = visit_For

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._branch([*node.body, *node.orelse])

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._branch([*node.body, *node.orelse])

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        before = self.book.open_world
        self.book.open_world = before or any(map(_catches_name_error, node.handlers))
        self._branch([*node.body])
        self.book.open_world = before
        for handler in node.handlers:
            if handler.type is not None:
                self.visit(handler.type)
            if handler.name:
                self.bind(handler.name)
            self._branch(handler.body)
        self._branch([*node.orelse, *node.finalbody])

    visit_TryStar = visit_Try

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self.generic_visit(node)
        if node.name:
            self.bind(node.name)

    visit_MatchStar = visit_MatchAs  # both bind an optional ``name``

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self.bind(node.rest)

    def visit_FunctionDef(self, node: FUNCTION_NODES) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._signature(node.args)
        if node.returns is not None:
            self.visit(node.returns)
        self._defer(node.name, node)
        self.bind(node.name)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._signature(node.args)
        self._defer(f"<lambda {self.cell.number}:{node.lineno}:{node.col_offset}>", node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for expression in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(expression)
        self.local.append({"__module__", "__qualname__"})
        self.statements(node.body)
        self.local.pop()
        at_once = [
            self.book.deferred.pop(part.name, [])
            for part in node.body
            if isinstance(part, FUNCTION_NODES) and part.name in _CONSTRUCTOR_METHODS
        ]
        self.book.deferred[node.name] = [use for uses in at_once for use in uses]
        self.bind(node.name)

    def visit_ListComp(self, node: _COMPREHENSIONS) -> None:
        first = node.generators[0]
        self.visit(first.iter)  # evaluated outside
        self.local.append(set())
        for generator in node.generators:
            if generator is not first:
                self.visit(generator.iter)
            self.visit(generator.target)
            for test in generator.ifs:
                self.visit(test)
        if isinstance(node, ast.DictComp):
            self.visit(node.key)
            self.visit(node.value)
        else:
            self.visit(node.elt)
        self.local.pop()

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def _branch(self, body: Sequence[ast.stmt]) -> None:
        self.branches += 1
        self.statements(list(body))
        self.branches -= 1

    def _signature(self, arguments: ast.arguments) -> None:
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        extra = [one for one in (arguments.vararg, arguments.kwarg) if one]
        for one in (*every, *extra):
            if one.annotation is not None:
                self.visit(one.annotation)
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)

    def _defer(self, name: str, node: FUNCTION_NODES | ast.Lambda) -> None:
        if isinstance(node, FUNCTION_NODES) and self.local:
            name = (
                f"{self.cell.number}:{node.lineno}:{name}"
                if name not in _CONSTRUCTOR_METHODS
                else name
            )
        self.book.deferred[name] = list(self._needs(node))
        if isinstance(node, FUNCTION_NODES):
            made = {
                n for part in ast.walk(node) if isinstance(part, ast.Global) for n in part.names
            }
            self.book.defined |= made

    def _needs(self, node: FUNCTION_NODES | ast.Lambda) -> Iterator[_NameUse]:
        lines = {
            part.id: part.lineno
            for part in reversed(list(ast.walk(node)))
            if isinstance(part, ast.Name)
        }
        around = set().union(*self.local) if self.local else set()
        for name in sorted(global_names(node) - around):
            yield _NameUse(name, self.cell, lines.get(name, node.lineno))


def _catches_name_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(getattr(part, "id", "") in _CATCH_NAME_ERROR for part in ast.walk(handler.type))
