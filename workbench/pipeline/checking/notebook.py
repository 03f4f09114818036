"""A notebook as the checks read it: code cells in order, parsed, magics told apart from Python."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.pipeline.contracts import ipynb

Json = dict[str, Any]

_RUNS_PYTHON = frozenset({"capture", "prun", "time", "timeit"})
_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


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


def read(path: Path) -> Notebook:
    """Read and parse; raises `ContractError` when the file is no notebook."""
    return of_content(path, ipynb.load(path))


def of_content(path: Path, content: Json) -> Notebook:
    """The notebook that ``content`` is; its cells share their parts with it."""
    cells = [_cell(n, raw) for n, raw in enumerate(_code(content["cells"]), 1)]
    return Notebook(path, content, tuple(cells))


def _code(raws: list[Json]) -> list[Json]:
    return [raw for raw in raws if raw["cell_type"] == "code"]


def _cell(number: int, raw: Json) -> Cell:
    source = ipynb.source_of(raw)
    python, magics = _without_cell_magic(source)
    tree, error = _parse(python)
    if error is not None:
        python = _transformed(python)
        retried, error = _parse(python)
        if retried is not None:
            tree = retried
            magics += tuple(_line_magics(retried))
    is_parameters = "parameters" in ipynb.tags_of(raw)
    return Cell(number, ipynb.id_of(raw), source, is_parameters, tree, magics, error, raw)


def _parse(source: str) -> tuple[ast.Module | None, tuple[int, str] | None]:
    try:
        tree = compile(source, "cell", "exec", _FLAGS, dont_inherit=True)
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
    if name not in _RUNS_PYTHON:
        return "", (magic,)
    return "\n".join("" if n == first else line for n, line in enumerate(lines)), (magic,)


def _transformed(source: str) -> str:
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
