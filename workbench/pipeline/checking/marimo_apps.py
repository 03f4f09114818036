"""marimo notebooks as papermill wants them.

``marimo export ipynb`` keeps the names of cells but tags none. papermill then puts the values it is
given at the very top, and the notebook's own cell overwrites them without a word. So the cell that
is called ``parameters`` in the app is tagged, and moved before everything that is not needed by it.

A marimo notebook declares its contract in its script metadata (PEP 723), which marimo keeps when
it saves::

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
import sys
import tomllib
from pathlib import Path
from typing import Any

from workbench import digest, workspace
from workbench.errors import ContractError
from workbench.workspace import Workspace

Json = dict[str, Any]

LITERAL = "__workbench__"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

_BLOCK = re.compile(r"(?m)^# /// script\s*$\n(?P<body>(?:^#(?: .*)?$\n)+?)^# ///\s*$")
_EXPORT_S = 120


def is_app(path: Path) -> bool:
    return path.suffix == ".py"


def as_ipynb(place: Workspace, path: Path) -> Path:
    """The notebook itself, or for a marimo app an .ipynb of it below the workspace.

    Raises:
        ContractError: The file is no marimo notebook, or its contract cannot be read.
    """
    if not is_app(path):
        return path
    if not path.is_file():
        raise ContractError("no such notebook", where=path)
    source = path.read_text(encoding="utf-8")
    target = place.root / "checks" / "marimo" / digest.of_bytes(source.encode())[:16]
    target = target / f"{path.stem}.ipynb"
    if not target.exists():
        content = _tagged(_exported(path))
        declared = _declared(source, content, path)
        if declared:
            content["metadata"]["workbench"] = declared
        content["metadata"]["kernelspec"] = KERNEL
        workspace.write_atomic(target, json.dumps(content, indent=1).encode())
    return target


def _exported(path: Path) -> Json:
    command = [sys.executable, "-m", "marimo", "-y", "export", "ipynb", str(path.resolve())]
    command += ["--sort", "topological", "--no-include-outputs"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_EXPORT_S)
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


def _tagged(content: Json) -> Json:
    """The cell named ``parameters`` tagged and put after the set-up cell, where papermill looks."""
    cells: list[Json] = content["cells"]
    named = [cell for cell in cells if _name(cell) == "parameters"]
    for cell in named:
        cell["metadata"]["tags"] = ["parameters"]
        cells.remove(cell)
        start = 1 if cells and _name(cells[0]) == "setup" else 0
        cells.insert(start, cell)
    return content


def _name(cell: Json) -> str:
    return str(cell["metadata"].get("marimo", {}).get("name", ""))


def _declared(source: str, content: Json, path: Path) -> Json:
    block = _BLOCK.search(source)
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
            found = _literal("".join(cell["source"]), path)
            if found:
                return found
    return {}


def _literal(source: str, path: Path) -> Json:
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == LITERAL for target in statement.targets
        ):
            try:
                return dict(ast.literal_eval(statement.value))
            except ValueError as error:
                raise ContractError(f"{LITERAL} must be a literal", where=path) from error
    return {}
