"""Read a notebook (or a marimo app) for the checks: parsed code cells, magics and the names they bind."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import symtable
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core import digest, workspace
from workbench.core.errors import ContractError
from workbench.core.workspace import Workspace
from workbench.pipeline import ipynb

Json = dict[str, Any]

_CONTRACT_VARIABLE = "__workbench__"
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}

_SCRIPT_METADATA = re.compile(r"(?m)^# /// script\s*$\n(?P<body>(?:^#(?: .*)?$\n)+?)^# ///\s*$")
_EXPORT_TIMEOUT_S = 120


def is_marimo_app(path: Path) -> bool:
    return path.suffix == ".py"


def as_ipynb(place: Workspace, path: Path) -> Path:
    """The notebook itself, or for a marimo app an .ipynb of it below the workspace.

    Raises:
        ContractError: The file is no marimo notebook, or its contract cannot be read.
    """
    if not is_marimo_app(path):
        return path
    if not path.is_file():
        raise ContractError("no such notebook", where=path)
    source = path.read_text(encoding="utf-8")
    target = place.root / "checks" / "marimo" / digest.of_bytes(source.encode())[:16]
    target = target / f"{path.stem}.ipynb"
    if not target.exists():
        content = _tag_parameters_cell(_export_marimo(path))
        declared = _marimo_contract(source, content, path)
        if declared:
            content["metadata"]["workbench"] = declared
        content["metadata"]["kernelspec"] = KERNELSPEC
        workspace.write_atomic(target, json.dumps(content, indent=1).encode())
    return target


def _export_marimo(path: Path) -> Json:
    command = [sys.executable, "-m", "marimo", "-y", "export", "ipynb", str(path.resolve())]
    command += ["--sort", "topological", "--no-include-outputs"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_EXPORT_TIMEOUT_S)
        content: Json = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        told = getattr(error, "stderr", b"") or b""
        last = told.decode(errors="replace").strip().splitlines()
        raise ContractError(
            f"marimo cannot export this: {last[-1] if last else error}",
            where=path,
            hint="A marimo notebook is a .py file that `marimo edit` opens",
        ) from error
    return content


def _tag_parameters_cell(content: Json) -> Json:
    """The cell named ``parameters`` tagged and put after the set-up cell, where papermill looks."""
    cells: list[Json] = content["cells"]
    named = [cell for cell in cells if _marimo_cell_name(cell) == "parameters"]
    for cell in named:
        cell["metadata"]["tags"] = ["parameters"]
        cells.remove(cell)
        start = 1 if cells and _marimo_cell_name(cells[0]) == "setup" else 0
        cells.insert(start, cell)
    return content


def _marimo_cell_name(cell: Json) -> str:
    return str(cell["metadata"].get("marimo", {}).get("name", ""))


def _marimo_contract(source: str, content: Json, path: Path) -> Json:
    block = _SCRIPT_METADATA.search(source)
    if block:
        lines = [line[2:] if line.startswith("# ") else "" for line in block["body"].splitlines()]
        try:
            table: Json = tomllib.loads("\n".join(lines)).get("tool", {}).get("workbench", {})
        except tomllib.TOMLDecodeError as error:
            raise ContractError(f"the script metadata is not TOML: {error}", where=path) from error
        if table:
            return table
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            found = _contract_literal("".join(cell["source"]), path)
            if found:
                return found
    return {}


def _contract_literal(source: str, path: Path) -> Json:
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == _CONTRACT_VARIABLE
            for target in statement.targets
        ):
            try:
                return dict(ast.literal_eval(statement.value))
            except ValueError as error:
                raise ContractError(
                    f"{_CONTRACT_VARIABLE} must be a literal", where=path
                ) from error
    return {}


# ---- A notebook as the checks read it: code cells in order, parsed, magics told apart from Python.


_PYTHON_CELL_MAGICS = frozenset({"capture", "prun", "time", "timeit"})
_COMPILE_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@dataclass(frozen=True)
class Magic:
    """``%name``, ``%%name`` or, with the name ``!``, a line for the shell."""

    name: str
    text: str
    line: int


@dataclass(frozen=True)
class Cell:
    """A code cell. ``number`` counts from 1; ``tree`` is None where it is not Python."""

    number: int
    id: str | None
    source: str
    is_parameters: bool
    tree: ast.Module | None
    magics: tuple[Magic, ...] = ()
    error: tuple[int, str] | None = None
    raw: Json = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True)
class Notebook:
    path: Path
    content: Json
    cells: tuple[Cell, ...]

    @property
    def parameters(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.is_parameters]


def read_notebook(path: Path) -> Notebook:
    """Read and parse; raises `ContractError` when the file is no notebook."""
    return parse_notebook(path, ipynb.load_notebook(path))


def parse_notebook(path: Path, content: Json) -> Notebook:
    """The notebook that ``content`` is; its cells share their parts with it."""
    cells = [_parse_cell(n, raw) for n, raw in enumerate(_code_cells(content["cells"]), 1)]
    return Notebook(path, content, tuple(cells))


def _code_cells(raws: list[Json]) -> list[Json]:
    return [raw for raw in raws if raw["cell_type"] == "code"]


def _parse_cell(number: int, raw: Json) -> Cell:
    source = ipynb.cell_source(raw)
    python, magics = _without_cell_magic(source)
    tree, error = _parse_python(python)
    if error is not None:
        python = _expand_magics(python)
        retried, error = _parse_python(python)
        if retried is not None:
            tree = retried
            magics += tuple(_line_magics(retried))
    is_parameters = "parameters" in ipynb.cell_tags(raw)
    return Cell(number, ipynb.cell_id(raw), source, is_parameters, tree, magics, error, raw)


def _parse_python(source: str) -> tuple[ast.Module | None, tuple[int, str] | None]:
    try:
        tree = compile(source, "cell", "exec", _COMPILE_FLAGS, dont_inherit=True)
    except SyntaxError as error:
        return None, (error.lineno or 1, error.msg)
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, endless brackets
        return None, (1, str(error) or "too deep")
    assert isinstance(tree, ast.Module)  # noqa: S101 - what ONLY_AST gives
    return tree, None


def _without_cell_magic(source: str) -> tuple[str, tuple[Magic, ...]]:
    """Python that is left, on its own lines, when the cell starts with ``%%name``."""
    lines = source.splitlines()
    first = next((n for n, line in enumerate(lines) if line.strip()), 0)
    if not lines or not lines[first].startswith("%%"):
        return source, ()
    name, _, _rest = lines[first][2:].partition(" ")
    magic = Magic(name, source, first + 1)
    if name not in _PYTHON_CELL_MAGICS:
        return "", (magic,)
    return "\n".join("" if n == first else line for n, line in enumerate(lines)), (magic,)


def _expand_magics(source: str) -> str:
    """IPython's own syntax as the calls that it stands for."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return str(TransformerManager().transform_cell(source))  # type: ignore[no-untyped-call]
    except SyntaxError:
        return source


def _line_magics(tree: ast.Module) -> list[Magic]:
    """``get_ipython().run_line_magic('pip', 'install x')`` and ``get_ipython().system('…')``."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        if node.func.attr in ("system", "getoutput") and len(texts) == 1:
            found.append(Magic("!", str(texts[0]), node.lineno))
        elif node.func.attr == "run_line_magic" and len(texts) == 2:
            found.append(Magic(str(texts[0]), str(texts[1]), node.lineno))
    return found


# ---- Which names a piece of Python binds, and which a function takes from around it.


FUNCTION_NODES = ast.FunctionDef | ast.AsyncFunctionDef


def global_names(node: FUNCTION_NODES | ast.Lambda) -> set[str]:
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


def first_definitions(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The first cell that defines each name at its top level."""
    found: dict[str, Cell] = {}
    for cell in cells:
        for name in assigned_names(cell):
            found.setdefault(name, cell)
    return found


def assigned_names(cell: Cell) -> dict[str, int]:
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
        name = _bound_name(part)
        if name in names:
            lines[name] = min(lines.get(name, 10**9), getattr(part, "lineno", 1))
    return {name: lines.get(name, 1) for name in names}


def _bound_name(node: ast.AST) -> str:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, FUNCTION_NODES | ast.ClassDef):
        return node.name
    return ""
