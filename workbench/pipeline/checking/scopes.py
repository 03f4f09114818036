"""Which names a piece of Python binds, and which a function takes from around it."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Sequence

from workbench.pipeline.checking.notebook import Cell

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def globals_of(node: FUNCTIONS | ast.Lambda) -> set[str]:
    """Names that a function takes from the notebook when it is called; Python's own scoping."""
    top = symtable.symtable(ast.unparse(node), "cell", "exec")
    found: set[str] = set()
    waiting = list(top.get_children())
    while waiting:
        table = waiting.pop()
        waiting.extend(table.get_children())
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                found.add(symbol.get_name())
    return found


def defined_where(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The first cell that defines each name at its top level."""
    found: dict[str, Cell] = {}
    for cell in cells:
        for name in assigned_in(cell):
            found.setdefault(name, cell)
    return found


def assigned_in(cell: Cell) -> dict[str, int]:
    """Names that a cell defines at its top level, with the first line."""
    if cell.tree is None:
        return {}
    source = ast.unparse(cell.tree)
    try:
        table = symtable.symtable(source, "cell", "exec")
    except SyntaxError:  # a top-level await
        return {
            part.id: part.lineno
            for part in ast.walk(cell.tree)
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        }
    names = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    lines: dict[str, int] = {}
    for part in ast.walk(cell.tree):
        name = _binds(part)
        if name in names:
            lines[name] = min(lines.get(name, 10**9), getattr(part, "lineno", 1))
    return {name: lines.get(name, 1) for name in names}


def _binds(node: ast.AST) -> str:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, FUNCTIONS | ast.ClassDef):
        return node.name
    return ""
