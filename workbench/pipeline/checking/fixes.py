"""`workbench check --fix`: mechanical fixes that need no knowledge of what the notebook is for."""

from __future__ import annotations

import ast
import copy
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.core import digest, workspace
from workbench.pipeline import ipynb
from workbench.pipeline.checking import notebook, static_checks
from workbench.pipeline.checking.notebook import Cell, Notebook
from workbench.records.types import RECORD_TYPES

Json = dict[str, Any]
_Edit = tuple[ast.expr, str]

_SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}


def fix_notebook(path: Path) -> list[str]:
    """Mend the notebook in place; returns what was done, in words, empty when nothing was.

    Raises:
        ContractError: The file is no notebook.
    """
    book = notebook.read_notebook(path)
    before = copy.deepcopy(book.content)
    done: list[str] = []
    mends: tuple[Callable[[Notebook], list[str]], ...] = (
        _fix_format,
        _fix_cell_ids,
        _fix_kernelspec,
        _clear_outputs,
        _tag_parameters,
        _annotate_parameters,
        _add_contract,
        _fix_paths,
    )
    for one in mends:
        done += one(book)
        book = notebook.parse_notebook(path, book.content)
    if book.content != before:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = json.dumps(book.content, indent=1, ensure_ascii=False) + "\n"
        workspace.write_atomic(path, text.encode(), mode=mode)
    return done


def _fix_format(book: Notebook) -> list[str]:
    content = book.content
    if content.get("nbformat", 4) != 4 or content.get("nbformat_minor", 0) >= 5:
        return []
    content["nbformat"], content["nbformat_minor"] = 4, 5
    return ["format is now 4.5"]


def _fix_cell_ids(book: Notebook) -> list[str]:
    seen: set[str] = set()
    given = 0
    for place, raw in enumerate(book.content["cells"]):
        if not static_checks.is_cell_id(raw.get("id")) or raw["id"] in seen:
            tried = 0
            while True:
                text = f"{place} {tried} {ipynb.cell_source(raw)}"
                made = digest.of_bytes(text.encode())[:8]
                if made not in seen:
                    break
                tried += 1
            raw["id"] = made
            given += 1
        seen.add(raw["id"])
    return [f"{given} cells have new ids"] if given else []


def _fix_kernelspec(book: Notebook) -> list[str]:
    metadata = book.content["metadata"]
    done = []
    if not static_checks.is_neutral_kernelspec(metadata.get("kernelspec")):
        metadata["kernelspec"] = dict(static_checks.NEUTRAL_KERNELSPEC)
        done.append("kernelspec is now the neutral python3")
    extra = [name for name in static_checks.EDITOR_METADATA if name in metadata]
    for name in extra:
        del metadata[name]
    return [*done, f"metadata without {', '.join(extra)}"] if extra else done


def _clear_outputs(book: Notebook) -> list[str]:
    done = []
    for cell in book.cells:
        raw = cell.raw
        left = [n for n in static_checks.EXECUTION_METADATA if n in raw.get("metadata", {})]
        if raw.get("outputs") or raw.get("execution_count") is not None or left:
            done.append(f"cell {cell.number}: outputs and execution count cleared")
        raw["outputs"], raw["execution_count"] = [], None
        raw.setdefault("metadata", {})
        for name in left:
            del raw["metadata"][name]
    return done


def _tag_parameters(book: Notebook) -> list[str]:
    """Tag the one cell that is all annotated literals, when there is just one."""
    if book.parameters:
        return []
    candidates = [cell for cell in book.cells if _is_annotated_literals(cell)]
    if len(candidates) != 1:
        return []
    (cell,) = candidates
    cell.raw["metadata"]["tags"] = [*ipynb.cell_tags(cell.raw), "parameters"]
    return [f"cell {cell.number}: tagged `parameters`"]


def _is_annotated_literals(cell: Cell) -> bool:
    body = cell.tree.body if cell.tree else []
    return bool(body) and all(
        isinstance(one, ast.AnnAssign)
        and one.value is not None
        and _literal_value(one.value) is not None
        for one in body
    )


def _annotate_parameters(book: Notebook) -> list[str]:
    """``epochs = 12`` in the parameters cell becomes ``epochs: int = 12``."""
    done = []
    for cell in book.parameters:
        edits: list[_Edit] = []
        for one in _parse_source(cell).body:
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
                kind = _literal_type(one.value) if len(one.targets) == 1 else None
                if kind:
                    edits.append((one.targets[0], f"{one.targets[0].id}: {kind}"))
        if edits:
            _replace_expressions(cell, edits)
            done.append(f"cell {cell.number}: {len(edits)} parameters annotated")
    return done


def _add_contract(book: Notebook) -> list[str]:
    if "workbench" in book.content["metadata"]:
        return []
    used = static_checks.find_step_usage(book, static_checks.notebook_imports(book.cells))
    book.content["metadata"]["workbench"] = {
        "inputs": {name: {"kind": _guess_kind(name)} for name in used.named["input"]},
        "outputs": {name: {"kind": _guess_kind(name)} for name in used.named["output"]},
        "resources": {"threads": 1, "timeout_s": 600, "memory_gib": 2},
        "fixture": {"parameters": {}, "other": {}, "inputs": {}, "pipeline": {}},
    }
    return ["a contract to fill in now stands in the metadata under `workbench`"]


def _fix_paths(book: Notebook) -> list[str]:
    """Absolute paths below the project: relative in parameters, ``step.path`` elsewhere."""
    project = workspace.project_root(book.path)
    step = static_checks.find_step_usage(book, static_checks.notebook_imports(book.cells)).step
    done, step_known = [], False
    for cell in book.cells:
        edits: list[_Edit] = []
        for literal in static_checks.absolute_paths(_parse_source(cell)):
            inside = static_checks.path_below(str(literal.value), project)
            if inside is None:
                continue
            if cell.is_parameters:
                edits.append((literal, repr(inside)))
            elif step_known:
                edits.append((literal, f"{step}.path({inside!r})"))
        if edits:
            _replace_expressions(cell, edits)
            done.append(f"cell {cell.number}: {len(edits)} absolute paths made relative")
        step_known = step_known or f"{step} = workbench.step()" in cell.source
    return done


def _parse_source(cell: Cell) -> ast.Module:
    """The cell's own syntax tree, empty where columns would not be those of the source."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def _replace_expressions(cell: Cell, edits: list[_Edit]) -> None:
    """Replace expressions in the source, the last one first so that places stay true."""
    lines = [line.encode() for line in cell.source.splitlines(keepends=True)]
    for node, text in sorted(edits, key=lambda e: (e[0].lineno, e[0].col_offset), reverse=True):
        assert node.end_lineno is not None  # noqa: S101 - the parser always sets it
        first, last = node.lineno - 1, node.end_lineno - 1
        tail = lines[last][node.end_col_offset :]
        lines[first : last + 1] = [lines[first][: node.col_offset] + text.encode() + tail]
    source = b"".join(lines).decode()
    as_text = isinstance(cell.raw["source"], str)
    cell.raw["source"] = source if as_text else source.splitlines(keepends=True)


def _literal_value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _literal_type(node: ast.expr) -> str | None:
    value = _literal_value(node)
    if isinstance(value, list) and value:
        kinds = {_SCALARS.get(type(one)) for one in value}
        return f"list[{kinds.pop()}]" if len(kinds) == 1 and None not in kinds else None
    return _SCALARS.get(type(value))


def _guess_kind(name: str) -> str:
    """The record kind that a name speaks of; a guess for people to correct."""
    return next((kind for kind in RECORD_TYPES if kind in name), "dataset")
