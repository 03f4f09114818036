"""The types that a parameter may have, read from its annotation without executing a notebook.

Built-in types and containers, ``Literal``, ``Optional``, ``Union``, ``Path``, dates and times,
``Annotated`` with constraints, pydantic's constrained types, and models, dataclasses and enums that
a ``workbench`` module defines. Names are understood as the notebook's own imports say.
"""

from __future__ import annotations

import ast
import copy
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from workbench.errors import ContractError

_BUILT_IN = ("bool", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")
_TYPING = ("Annotated", "Any", "Dict", "List", "Literal", "Optional", "Set", "Tuple", "Union")
_TIMES = ("date", "datetime", "time", "timedelta")
_PYDANTIC = (
    "Field",
    "FiniteFloat",
    "NegativeFloat",
    "NegativeInt",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "StringConstraints",
    "confloat",
    "conint",
    "conlist",
    "constr",
)
_CONSTRAINTS = ("Ge", "Gt", "Interval", "Le", "Len", "Lt", "MaxLen", "MinLen", "MultipleOf")
_CALLABLE = {"Field", "StringConstraints", "confloat", "conint", "conlist", "constr", *_CONSTRAINTS}

_ALLOWED: dict[str, str] = {
    **{name: f"builtins.{name}" for name in _BUILT_IN},
    **{name: f"typing.{name}" for name in _TYPING},
    **{name: f"datetime.{name}" for name in _TIMES},
    **{name: f"pydantic.{name}" for name in _PYDANTIC},
    **{name: f"annotated_types.{name}" for name in _CONSTRAINTS},
    "Path": "pathlib.Path",
}
"""Short name to where it lives; a name the notebook imports is looked up by the latter."""

_HOMES = {
    **{home: home for home in _ALLOWED.values()},
    "typing_extensions.Literal": "typing.Literal",
}
_NODES = (
    ast.Name,
    ast.Attribute,
    ast.Load,
    ast.Subscript,
    ast.Tuple,
    ast.List,
    ast.BinOp,
    ast.BitOr,
    ast.Constant,
    ast.Call,
    ast.keyword,
    ast.UnaryOp,
    ast.USub,
)
_PACKAGE = "workbench"


def imports_in(sources: Iterable[str]) -> dict[str, str]:
    """Name to dotted origin for every import in these cells; broken cells are passed over."""
    found: dict[str, str] = {}
    for source in sources:
        found.update(_imports_of(source))
    return found


@lru_cache(maxsize=4096)  # the notebooks of a team begin alike
def _imports_of(source: str) -> tuple[tuple[str, str], ...]:
    if "import" not in source:
        return ()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found.append((alias.asname or alias.name, f"{node.module}.{alias.name}"))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found.append((alias.asname or first, alias.name if alias.asname else first))
    return tuple(found)


def read(node: ast.expr, imports: Mapping[str, str], where: str) -> Any:
    """The type that ``node`` stands for; raises `ContractError` unless all of it is allowed."""
    for part in ast.walk(node):
        if not isinstance(part, _NODES):
            raise refused("this annotation is not allowed", node, where)
    reader = _Reader(node, imports, where)
    tree = reader.visit(copy.deepcopy(node))
    code = compile(ast.fix_missing_locations(ast.Expression(tree)), where, "eval")
    try:
        return eval(code, {"__builtins__": {}}, reader.found)  # noqa: S307 - only what was allowed
    except (TypeError, ValueError) as error:
        raise refused(f"this annotation means nothing ({error})", node, where) from error


def refused(what: str, node: ast.AST, where: str) -> ContractError:
    """The error about a piece of a parameters cell."""
    line = getattr(node, "lineno", 0)
    text = ast.unparse(node)
    return ContractError(
        f"{what}: {text!r}",
        where=f"{where}, parameters cell, line {line}",
        hint="Write it like `epochs: int = 12`",
    )


class _Reader(ast.NodeTransformer):
    """Replaces each name, dotted or not, by one that stands for the allowed object it means."""

    def __init__(self, node: ast.expr, imports: Mapping[str, str], where: str) -> None:
        self.found: dict[str, Any] = {}
        self._whole = node
        self._imports = imports
        self._where = where
        self._text_allowed = False

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return self._replaced(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.Name:
        return self._replaced(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if self._home(node.func).rpartition(".")[2] not in _CALLABLE:
            raise refused("only Field(...) and constraints may be called", node, self._where)
        return self._with_text(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if self._home(node.value) == "typing.Literal":
            return self._with_text(node)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        # A text where a type belongs is a forward reference, which pydantic would evaluate.
        if isinstance(node.value, str) and not self._text_allowed:
            raise refused("a type cannot be a text", self._whole, self._where)
        return node

    def _with_text(self, node: ast.AST) -> ast.AST:
        before, self._text_allowed = self._text_allowed, True
        visited = self.generic_visit(node)
        self._text_allowed = before
        return visited

    def _replaced(self, node: ast.expr) -> ast.Name:
        home = self._home(node)
        name = f"_{len(self.found)}"
        self.found[name] = self._object(home, node)
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def _home(self, node: ast.expr) -> str:
        """Where the thing that a name or dotted name means is defined."""
        text = ast.unparse(node)
        first, dot, rest = text.partition(".")
        if first in self._imports:
            return self._imports[first] + dot + rest
        return _ALLOWED.get(text, text)

    def _object(self, home: str, node: ast.expr) -> Any:
        module, _, name = _HOMES.get(home, home).rpartition(".")
        if home in _HOMES:
            return getattr(importlib.import_module(module), name)
        if module.partition(".")[0] == _PACKAGE:
            return self._of_ours(module, name, node)
        raise refused(f"{ast.unparse(node)!r} is not an allowed type", self._whole, self._where)

    def _of_ours(self, module: str, name: str, node: ast.expr) -> Any:
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise refused(f"{module} has no {name}", node, self._where) from error
        is_model = isinstance(found, type) and issubclass(found, BaseModel | Enum)
        if is_model or is_dataclass(found):
            return found
        raise refused(f"{name} is no model, dataclass or enum", node, self._where)
