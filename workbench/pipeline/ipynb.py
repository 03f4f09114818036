"""Read notebook files, with optional parts filled in."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.core.errors import ContractError
from workbench.core.text import path_hint
from workbench.core.types import Json

__all__ = ()


def import_nbformat() -> ModuleType:
    """The module ``nbformat``, imported in a third of the time.

    Its dependency jsonschema spends a second on compiling a grammar of IRIs, which the schema of
    notebooks does not use. The grammar is optional.
    """
    with blocked_imports(*([] if "jsonschema" in sys.modules else ["rfc3987_syntax"])):
        import nbformat
    return nbformat


@contextlib.contextmanager
def blocked_imports(*modules: str) -> Iterator[None]:
    """Within this context, importing these modules fails; modules already loaded stay."""
    blocked = [name for name in modules if name not in sys.modules]
    for name in blocked:
        sys.modules[name] = None  # type: ignore[assignment]  # this blocks an import
    try:
        yield
    finally:
        for name in blocked:
            del sys.modules[name]


def load_notebook(path: Path) -> Json:
    """The notebook's JSON, with optional parts filled in.

    Raises:
        ContractError: No such file, or it is not a notebook.
    """
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
        _fill_missing_parts(content)
        json.dumps(content, ensure_ascii=False).encode()  # half a character cannot be written again
        for part in (content, *content["cells"]):  # NaN is in outputs of many notebooks
            rest = {name: value for name, value in part.items() if name not in ("cells", "outputs")}
            json.dumps(rest, allow_nan=False)
    except FileNotFoundError as error:
        raise ContractError("no such notebook", where=path, hint=path_hint(path)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContractError(
            f"not a notebook: {_reason(error)}",
            where=path,
            hint="Pass an .ipynb file of format 4, or a marimo notebook",
        ) from error
    return content


def cell_source(cell: Json) -> str:
    """The cell's code or text."""
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def cell_tags(cell: Json) -> list[str]:
    """The cell's tags."""
    return list(cell["metadata"].get("tags", []))


def cell_id(cell: Json) -> str | None:
    """The cell's id; None if it has none."""
    identifier = cell.get("id")
    return identifier if isinstance(identifier, str) else None


def _fill_missing_parts(content: Json) -> None:
    """Fill in optional parts; raises `TypeError` or `KeyError` for invalid content."""
    _require_type(content, dict)
    metadata = _require_type(content.setdefault("metadata", {}), dict)
    for part in ("kernelspec", "language_info"):
        _require_type(metadata.get(part, {}), dict)
    for part in ("nbformat", "nbformat_minor"):
        _require_type(content.get(part, 0), int)
    for number, cell in enumerate(_require_type(content["cells"], list), start=1):
        try:
            _fill_cell(_require_type(cell, dict))
        except KeyError as error:
            raise ValueError(f"cell {number} has no {error}") from error
        except TypeError as error:
            raise TypeError(f"cell {number}: {error}") from error


def _fill_cell(cell: Json) -> None:
    _require_type(cell["cell_type"], str)
    metadata = _require_type(cell.setdefault("metadata", {}), dict)
    _require_type(metadata.get("tags", []), list)  # papermill fails on null
    lines = cell["source"] if isinstance(cell["source"], list) else [cell["source"]]
    for line in lines:
        _require_type(line, str)
    if cell["cell_type"] == "code":
        for output in _require_type(cell.setdefault("outputs", []), list):
            _require_type(output, dict)
        count = cell.setdefault("execution_count", None)
        _require_type(0 if count is None else count, int)


def _require_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.60} where {_KINDS[kind]} is expected")
    return value


_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        empty = not error.doc.strip()
        return "it is empty" if empty else f"line {error.lineno} is not JSON ({error.msg})"
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
