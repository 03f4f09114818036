"""Read a notebook or a marimo app for the checks: parsed code cells, magics, bound names.

``marimo export ipynb`` keeps the names of cells and tags none of them; papermill would then insert
its values at the top, where the app's own cell overwrites them. So the cell named ``parameters`` is
tagged and moved to the front.

A marimo app declares its contract in its script metadata (PEP 723), which marimo keeps when it
saves::

    # /// script
    # [tool.workbench.outputs.selection]
    # kind = "selection"
    # ///

or as a literal ``__workbench__ = {...}`` at the top of a cell.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import symtable
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import ContractError
from workbench.core.text import path_hint
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic
from workbench.pipeline import ipynb

__all__ = ()

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
"""The kernel that exists on every machine."""

FUNCTION_NODES = ast.FunctionDef | ast.AsyncFunctionDef

_CONTRACT_VARIABLE = "__workbench__"
_SCRIPT_METADATA = re.compile(r"(?m)^# /// script\s*$\n(?P<body>(?:^#(?: .*)?$\n)+?)^# ///\s*$")
_EXPORT_TIMEOUT_S = 120
_PYTHON_CELL_MAGICS = frozenset({"capture", "prun", "time", "timeit"})
_COMPILE_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@dataclass(frozen=True)
class Magic:
    """``%name``, ``%%name``, or a shell line under the name ``!``."""

    name: str
    text: str
    line: int


@dataclass(frozen=True)
class Cell:
    """A code cell.

    Attributes:
        number: Counted from 1 over the code cells.
        source: As it stands in the notebook.
        python: The source with IPython's syntax replaced by the calls that it stands for.
        tree: The parsed ``python``; None when it is not Python.
        error: Line and message of the syntax error, if there is one.
        raw: The cell's JSON, shared with the notebook's content.
    """

    number: int
    id: str | None
    source: str
    is_parameters: bool
    python: str
    tree: ast.Module | None
    magics: tuple[Magic, ...] = ()
    error: tuple[int, str] | None = None
    raw: Json = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True)
class Notebook:
    """A notebook with its parsed code cells."""

    path: Path
    content: Json
    cells: tuple[Cell, ...]

    @property
    def parameters(self) -> list[Cell]:
        """The cells tagged ``parameters``; a valid notebook has one."""
        return [cell for cell in self.cells if cell.is_parameters]


def read_notebook(path: Path) -> Notebook:
    """Read and parse an .ipynb.

    Raises:
        ContractError: The file is not a notebook.
    """
    return parse_notebook(path, ipynb.load_notebook(path))


def parse_notebook(path: Path, content: Json) -> Notebook:
    """Parse a notebook's JSON.

    Args:
        content: Format 4 JSON; the cells' ``raw`` parts are shared with it.
    """
    code = [raw for raw in content["cells"] if raw["cell_type"] == "code"]
    return Notebook(path, content, tuple(_parse_cell(n, raw) for n, raw in enumerate(code, 1)))


def assigned_names(cell: Cell) -> dict[str, int]:
    """Names that a cell binds at its top level, each with the first line that binds it."""
    if cell.tree is None:
        return {}
    try:
        table = symtable.symtable(ast.unparse(cell.tree), "cell", "exec")
    except SyntaxError:  # a top-level await
        return {
            node.id: node.lineno
            for node in ast.walk(cell.tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
    names = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    lines: dict[str, int] = {}
    for node in ast.walk(cell.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = min(lines.get(node.id, node.lineno), node.lineno)
        elif isinstance(node, FUNCTION_NODES | ast.ClassDef):
            lines[node.name] = min(lines.get(node.name, node.lineno), node.lineno)
    return {name: lines.get(name, 1) for name in names}


def _parse_cell(number: int, raw: Json) -> Cell:
    source = ipynb.cell_source(raw)
    python, magics = _without_cell_magic(source)
    tree, error = _parse_python(python)
    if error is not None:
        python = _expand_magics(python)
        tree, error = _parse_python(python)
        if tree is not None:
            magics += tuple(_line_magics(tree))
    is_parameters = "parameters" in ipynb.cell_tags(raw)
    return Cell(number, ipynb.cell_id(raw), source, is_parameters, python, tree, magics, error, raw)


def _parse_python(source: str) -> tuple[ast.Module | None, tuple[int, str] | None]:
    try:
        tree = compile(source, "cell", "exec", _COMPILE_FLAGS, dont_inherit=True)
    except SyntaxError as error:
        return None, (error.lineno or 1, error.msg)
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, endless brackets
        return None, (1, str(error) or "nested too deeply")
    assert isinstance(tree, ast.Module)  # noqa: S101 - what ONLY_AST gives
    return tree, None


def _without_cell_magic(source: str) -> tuple[str, tuple[Magic, ...]]:
    """The Python of a cell that starts with ``%%name``, with unchanged line numbers."""
    lines = source.splitlines()
    first = next((n for n, line in enumerate(lines) if line.strip()), 0)
    if not lines or not lines[first].startswith("%%"):
        return source, ()
    name = lines[first][2:].partition(" ")[0]
    magic = Magic(name, source, first + 1)
    if name not in _PYTHON_CELL_MAGICS:
        return "", (magic,)
    return "\n".join("" if n == first else line for n, line in enumerate(lines)), (magic,)


def _expand_magics(source: str) -> str:
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return str(TransformerManager().transform_cell(source))  # type: ignore[no-untyped-call]
    except SyntaxError:
        return source


def _line_magics(tree: ast.Module) -> list[Magic]:
    """``get_ipython().run_line_magic('pip', 'install x')`` and ``get_ipython().system('…')``."""
    magics = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        if node.func.attr in ("system", "getoutput") and len(texts) == 1:
            magics.append(Magic("!", str(texts[0]), node.lineno))
        elif node.func.attr == "run_line_magic" and len(texts) == 2:
            magics.append(Magic(str(texts[0]), str(texts[1]), node.lineno))
    return magics


def is_marimo_app(path: Path) -> bool:
    """Whether ``path`` is taken for a marimo app rather than an .ipynb."""
    return path.suffix == ".py"


def as_ipynb(workspace: Workspace, path: Path) -> Path:
    """The notebook itself; for a marimo app, an .ipynb exported below the workspace.

    Raises:
        ContractError: The file is not a marimo notebook, or its contract cannot be read.
    """
    if not is_marimo_app(path):
        return path
    if not path.is_file():
        raise ContractError("no such notebook", where=path, hint=path_hint(path))
    source = path.read_text(encoding="utf-8")
    folder = workspace.root / "checks" / "marimo" / digest.of_bytes(source.encode())[:16]
    target = folder / f"{path.stem}.ipynb"
    if not target.exists():
        content = _export_marimo(path)
        _tag_parameters_cell(content["cells"])
        contract = _marimo_contract(source, content, path)
        if contract:
            content["metadata"]["workbench"] = contract
        content["metadata"]["kernelspec"] = KERNELSPEC
        write_atomic(target, json.dumps(content, indent=1).encode())
    return target


def _export_marimo(path: Path) -> Json:
    command = [sys.executable, "-m", "marimo", "-y", "export", "ipynb", str(path.resolve())]
    command += ["--sort", "topological", "--no-include-outputs"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_EXPORT_TIMEOUT_S)
        content: Json = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        output = getattr(error, "stderr", b"") or b""
        lines = output.decode(errors="replace").strip().splitlines()
        raise ContractError(
            f"marimo cannot export this file: {lines[-1] if lines else error}",
            where=path,
            hint="A marimo notebook is a .py file that `marimo edit` opens",
        ) from error
    return content


def _tag_parameters_cell(cells: list[Json]) -> None:
    """Tag the cell named ``parameters`` and move it to where papermill inserts its values."""
    for cell in [cell for cell in cells if _marimo_cell_name(cell) == "parameters"]:
        cell["metadata"]["tags"] = ["parameters"]
        cells.remove(cell)
        cells.insert(1 if cells and _marimo_cell_name(cells[0]) == "setup" else 0, cell)


def _marimo_cell_name(cell: Json) -> str:
    return str(cell["metadata"].get("marimo", {}).get("name", ""))


def _marimo_contract(source: str, content: Json, path: Path) -> Json:
    block = _SCRIPT_METADATA.search(source)
    if block:
        lines = [line[2:] if line.startswith("# ") else "" for line in block["body"].splitlines()]
        try:
            table: Json = tomllib.loads("\n".join(lines)).get("tool", {}).get("workbench", {})
        except tomllib.TOMLDecodeError as error:
            raise ContractError(
                f"invalid TOML in the script metadata: {error}", where=path
            ) from error
        if table:
            return table
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            contract = _contract_literal("".join(cell["source"]), path)
            if contract:
                return contract
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
