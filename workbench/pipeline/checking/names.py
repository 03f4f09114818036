"""Undefined and out-of-order names over the cells of a notebook, in execution order.

ruff (rules F403 and F821) finds names that do not exist when a cell evaluates them. It takes for
granted that functions are called after the whole notebook has run, so calls that come before a name
in the function's body is bound are found here.
"""

# ruff: noqa: N815 - the methods' names are those that ast.NodeVisitor calls
from __future__ import annotations

import ast
import json
import subprocess
import symtable
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workbench.core.errors import WorkbenchError
from workbench.core.types import Json
from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.checking.notebook import FUNCTION_NODES, Cell, assigned_names

__all__ = ()


_KERNEL_NAMES = ("In", "Out", "_", "__", "___", "_dh", "_i", "_ih", "_oh", "exit", "quit")
_RUFF = (
    sys.executable,
    "-m",
    "ruff",
    "check",
    "--isolated",
    "--no-cache",
    "--quiet",
    "--exit-zero",
)
_RUFF_TIMEOUT_S = 60
_DEFINING_MAGICS = frozenset({"run", "load_ext", "load", "pylab"})
"""Magics that may define any name."""

_CONSTRUCTOR_METHODS = ("__new__", "__init__", "__post_init__")


def check_names(cells: Sequence[Cell]) -> list[Finding]:
    """Names that are used before a cell defines them, or that no cell defines.

    Args:
        cells: In execution order; those after a magic such as ``%run``, which may define any name,
            are not checked.

    Raises:
        WorkbenchError: ruff cannot be run.
    """
    checked = list(_cells_with_known_names(cells))
    bound: dict[str, tuple[Cell, int]] = {}
    for cell in checked:
        for name, line in assigned_names(cell).items():
            bound.setdefault(name, (cell, line))
    calls = _CallOrder(bound)
    for cell in checked:
        calls.check(cell)
    findings = [_as_finding(result, checked, bound) for result in _run_ruff(checked)]
    return _first_of_each([*findings, *calls.findings])


def _cells_with_known_names(cells: Sequence[Cell]) -> Iterator[Cell]:
    for cell in cells:
        if any(magic.name in _DEFINING_MAGICS for magic in cell.magics):
            return
        if cell.tree is not None:
            yield cell


def _run_ruff(cells: Sequence[Cell]) -> list[Json]:
    """ruff's results for a notebook of these cells; ``cell`` in a result counts them from 1."""
    content = {
        "cells": [
            {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
            | {"id": f"cell-{number}", "source": cell.python}
            for number, cell in enumerate(cells)
        ],
        "metadata": {"language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    options = ["--select", "F403,F821", "--output-format", "json", "--stdin-filename", "a.ipynb"]
    options += ["--config", f"builtins={json.dumps(_KERNEL_NAMES)}", "-"]
    done = subprocess.run(
        [*_RUFF, *options],
        input=json.dumps(content),
        capture_output=True,
        text=True,
        timeout=_RUFF_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise WorkbenchError(
            f"ruff failed: {done.stderr.strip() or done.stdout.strip()}",
            hint="`make setup` installs it again",
        )
    results: list[Json] = json.loads(done.stdout)
    return [result for result in results if result["code"] in ("F403", "F821")]


def _as_finding(
    result: Json, cells: Sequence[Cell], bound: dict[str, tuple[Cell, int]]
) -> tuple[str, Finding]:
    """The name that a result of ruff is about, and the finding."""
    cell, line, name = cells[result["cell"] - 1], result["location"]["row"], ""
    if result["code"] == "F403":
        rule, message = "star-import", result["message"].partition(" used;")[0]
    else:
        name = result["message"].split("`")[1]
        rule, message = "undefined-name", f"`{name}` is not defined"
        definition = bound.get(name)
        if definition is not None and definition[0].number >= cell.number:
            same = definition[0] is cell
            where = "further down" if same else f"in cell {definition[0].number}"
            rule, message = "out-of-order", f"`{name}` is used before it is defined {where}"
    return name, Finding(rule, message, cell.number, cell.id, line)


def _first_of_each(findings: Sequence[tuple[str, Finding]]) -> list[Finding]:
    """One finding for each name and cell."""
    unique: dict[tuple[str, int | None], Finding] = {}
    for name, finding in findings:
        unique.setdefault((name, finding.cell), finding)
    return list(unique.values())


@dataclass(frozen=True)
class _Function:
    """A function or class of the notebook, and the global names that a call of it needs."""

    cell: Cell
    needs: frozenset[str]


class _CallOrder(ast.NodeVisitor):
    """Finds calls of functions that need a name which is bound after the call."""

    def __init__(self, bound: dict[str, tuple[Cell, int]]) -> None:
        self.findings: list[tuple[str, Finding]] = []
        self._bound = bound
        self._functions: dict[str, _Function] = {}
        self._cell: Cell

    def check(self, cell: Cell) -> None:
        assert cell.tree is not None  # noqa: S101 - `check_names` selects such cells
        self._cell = cell
        try:
            self.visit(cell.tree)
        except RecursionError:  # an expression of a thousand terms
            return

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name):
            return
        waiting, seen = [node.func.id], set[str]()
        while waiting:
            function = self._functions.get(waiting.pop())
            for name in sorted(function.needs - seen) if function else ():
                seen.add(name)
                waiting.append(name)
                self._require(name, function, node.lineno)

    def _require(self, name: str, function: _Function | None, line: int) -> None:
        definition = self._bound.get(name)
        if definition is None or function is None:
            return
        cell, bound_line = definition
        if (cell.number, bound_line) > (self._cell.number, line):
            where = "further down" if cell is self._cell else f"in cell {cell.number}"
            message = (
                f"the cell calls a function of cell {function.cell.number} that uses `{name}` "
                f"before it is defined {where}"
            )
            at = self._cell
            self.findings.append((name, Finding("out-of-order", message, at.number, at.id, line)))

    def visit_FunctionDef(self, node: FUNCTION_NODES) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._functions[node.name] = _Function(self._cell, _global_names(node))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        pass  # its body runs when it is called

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        if isinstance(node.value, ast.Lambda) and isinstance(node.targets[0], ast.Name):
            self._functions[node.targets[0].id] = _Function(self._cell, _global_names(node.value))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        body = [part for part in node.body if isinstance(part, FUNCTION_NODES)]
        needs = [_global_names(part) for part in body if part.name in _CONSTRUCTOR_METHODS]
        self._functions[node.name] = _Function(self._cell, frozenset().union(*needs))
        for part in node.body:
            if not isinstance(part, FUNCTION_NODES):
                self.visit(part)


def _global_names(node: FUNCTION_NODES | ast.Lambda) -> frozenset[str]:
    """Names that a function takes from the notebook when it is called, by Python's own scoping."""
    waiting = list(symtable.symtable(ast.unparse(node), "cell", "exec").get_children())
    names: set[str] = set()
    while waiting:
        table = waiting.pop()
        waiting.extend(table.get_children())
        names |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return frozenset(names)
