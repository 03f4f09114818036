"""`workbench check --fix`: mechanical fixes that need no knowledge of what the notebook is for.

Fixing twice changes nothing the second time; the file is replaced as a whole.
"""

from __future__ import annotations

import ast
import copy
import itertools
import json
import stat
from pathlib import Path
from typing import Any

from workbench.core import digest
from workbench.core.text import counted
from workbench.core.workspace import project_root, write_atomic
from workbench.pipeline import ipynb
from workbench.pipeline.checking.notebook import (
    KERNELSPEC,
    Cell,
    Notebook,
    parse_notebook,
    read_notebook,
)
from workbench.pipeline.checking.static_checks import (
    EDITOR_METADATA,
    EXECUTION_METADATA,
    absolute_paths,
    find_step_usage,
    is_cell_id,
    is_neutral_kernelspec,
    notebook_imports,
)
from workbench.records.types import RECORD_TYPES

__all__ = ["fix_notebook"]

_Edit = tuple[ast.expr, str]

_SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}


def fix_notebook(path: Path) -> list[str]:
    """Fix the notebook in place.

    Returns:
        What was changed, a line each; empty when nothing was.

    Raises:
        ContractError: The file is not a notebook.
    """
    notebook = read_notebook(path)
    before = copy.deepcopy(notebook.content)
    changes: list[str] = []
    for fix in (
        _fix_format,
        _fix_cell_ids,
        _fix_metadata,
        _clear_outputs,
        _tag_parameters,
        _annotate_parameters,
        _add_contract,
        _fix_paths,
    ):
        changes += fix(notebook)
        notebook = parse_notebook(path, notebook.content)
    if notebook.content != before:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = json.dumps(notebook.content, indent=1, ensure_ascii=False) + "\n"
        write_atomic(path, text.encode(), mode=mode)
    return changes


def _fix_format(notebook: Notebook) -> list[str]:
    content = notebook.content
    if content.get("nbformat", 4) != 4 or content.get("nbformat_minor", 0) >= 5:
        return []
    content["nbformat"], content["nbformat_minor"] = 4, 5
    return ["notebook format set to 4.5"]


def _fix_cell_ids(notebook: Notebook) -> list[str]:
    seen: set[str] = set()
    changed = 0
    for position, raw in enumerate(notebook.content["cells"]):
        if not is_cell_id(raw.get("id")) or raw["id"] in seen:
            texts = (f"{position} {n} {ipynb.cell_source(raw)}" for n in itertools.count())
            ids = (digest.of_bytes(text.encode())[:8] for text in texts)
            raw["id"] = next(one for one in ids if one not in seen)
            changed += 1
        seen.add(raw["id"])
    return [f"new ids for {counted(changed, 'cell')}"] if changed else []


def _fix_metadata(notebook: Notebook) -> list[str]:
    metadata = notebook.content["metadata"]
    changes = []
    if not is_neutral_kernelspec(metadata.get("kernelspec")):
        metadata["kernelspec"] = dict(KERNELSPEC)
        changes.append("kernelspec set to python3")
    extra = [name for name in EDITOR_METADATA if name in metadata]
    for name in extra:
        del metadata[name]
    return [*changes, f"metadata removed: {', '.join(extra)}"] if extra else changes


def _clear_outputs(notebook: Notebook) -> list[str]:
    changes = []
    for cell in notebook.cells:
        raw = cell.raw
        extra = [name for name in EXECUTION_METADATA if name in raw.get("metadata", {})]
        if raw.get("outputs") or raw.get("execution_count") is not None or extra:
            changes.append(f"cell {cell.number}: outputs and execution count cleared")
        raw["outputs"], raw["execution_count"] = [], None
        raw.setdefault("metadata", {})
        for name in extra:
            del raw["metadata"][name]
    return changes


def _tag_parameters(notebook: Notebook) -> list[str]:
    """Tag the cell that consists of annotated literals, if there is exactly one."""
    candidates = [cell for cell in notebook.cells if _is_annotated_literals(cell)]
    if notebook.parameters or len(candidates) != 1:
        return []
    (cell,) = candidates
    cell.raw["metadata"]["tags"] = [*ipynb.cell_tags(cell.raw), "parameters"]
    return [f"cell {cell.number}: tagged `parameters`"]


def _is_annotated_literals(cell: Cell) -> bool:
    body = cell.tree.body if cell.tree else []
    return bool(body) and all(
        isinstance(node, ast.AnnAssign)
        and node.value is not None
        and _literal_value(node.value) is not None
        for node in body
    )


def _annotate_parameters(notebook: Notebook) -> list[str]:
    """``epochs = 12`` in the parameters cell becomes ``epochs: int = 12``."""
    changes = []
    for cell in notebook.parameters:
        edits: list[_Edit] = []
        for node in _parse_source(cell).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                kind = _literal_type(node.value) if len(node.targets) == 1 else None
                if kind:
                    edits.append((node.targets[0], f"{node.targets[0].id}: {kind}"))
        if edits:
            _replace_expressions(cell, edits)
            changes.append(f"cell {cell.number}: {counted(len(edits), 'parameter')} annotated")
    return changes


def _add_contract(notebook: Notebook) -> list[str]:
    if "workbench" in notebook.content["metadata"]:
        return []
    names = find_step_usage(notebook, notebook_imports(notebook.cells)).names
    notebook.content["metadata"]["workbench"] = {
        "inputs": {name: {"kind": _guess_kind(name)} for name in names["input"]},
        "outputs": {name: {"kind": _guess_kind(name)} for name in names["output"]},
        "resources": {"threads": 1, "timeout_s": 600, "memory_gib": 2},
        "fixture": {"parameters": {}, "other": {}, "inputs": {}, "pipeline": {}},
    }
    return ["contract template added to the metadata under `workbench`"]


def _fix_paths(notebook: Notebook) -> list[str]:
    """Absolute paths below the project: relative in parameters, ``step.path`` elsewhere."""
    project = project_root(notebook.path)
    step = find_step_usage(notebook, notebook_imports(notebook.cells)).variable
    changes, step_exists = [], False
    for cell in notebook.cells:
        edits: list[_Edit] = []
        for literal in absolute_paths(_parse_source(cell)):
            path = _path_below(str(literal.value), project)
            if path is None:
                continue
            if cell.is_parameters:
                edits.append((literal, repr(path)))
            elif step_exists:
                edits.append((literal, f"{step}.path({path!r})"))
        if edits:
            _replace_expressions(cell, edits)
            paths = counted(len(edits), "absolute path")
            changes.append(f"cell {cell.number}: {paths} made relative")
        step_exists = step_exists or f"{step} = workbench.step()" in cell.source
    return changes


def _path_below(path: str, project: Path) -> str | None:
    """``path`` relative to the project, None when it is elsewhere."""
    try:
        return str(Path(path.removeprefix("file://")).expanduser().relative_to(project))
    except (ValueError, RuntimeError):
        return None


def _parse_source(cell: Cell) -> ast.Module:
    """The syntax tree of the cell's own source; empty when it has IPython syntax."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def _replace_expressions(cell: Cell, edits: list[_Edit]) -> None:
    """Replace expressions in the source, last one first so that positions stay valid."""
    lines = [line.encode() for line in cell.source.splitlines(keepends=True)]
    for node, text in sorted(edits, key=lambda e: (e[0].lineno, e[0].col_offset), reverse=True):
        assert node.end_lineno is not None  # noqa: S101 - the parser always sets it
        first, last = node.lineno - 1, node.end_lineno - 1
        tail = lines[last][node.end_col_offset :]
        lines[first : last + 1] = [lines[first][: node.col_offset] + text.encode() + tail]
    source = b"".join(lines).decode()
    is_text = isinstance(cell.raw["source"], str)
    cell.raw["source"] = source if is_text else source.splitlines(keepends=True)


def _literal_value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _literal_type(node: ast.expr) -> str | None:
    value = _literal_value(node)
    if isinstance(value, list) and value:
        kinds = {_SCALARS.get(type(element)) for element in value}
        return f"list[{kinds.pop()}]" if len(kinds) == 1 and None not in kinds else None
    return _SCALARS.get(type(value))


def _guess_kind(name: str) -> str:
    """The record kind that a name contains; the author corrects a wrong guess."""
    return next((kind for kind in RECORD_TYPES if kind in name), "dataset")
