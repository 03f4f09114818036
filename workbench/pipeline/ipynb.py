"""Reads notebook files and fills in what older writers leave out."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.core.errors import ContractError

Json = dict[str, Any]

_GRAMMAR = "rfc3987_syntax"


def import_nbformat() -> ModuleType:
    """The module ``nbformat``, imported in a third of the time.

    It imports jsonschema, which compiles a grammar of IRIs for a format that no schema of notebooks
    has: a second in every process that reads a notebook. Without the grammar it does without.
    """
    with blocked_imports(*([] if "jsonschema" in sys.modules else [_GRAMMAR])):
        import nbformat
    return nbformat


@contextlib.contextmanager
def blocked_imports(*modules: str) -> Iterator[None]:
    """Refuse to import these optional modules meanwhile; what is loaded already stays."""
    refused = [name for name in modules if name not in sys.modules]
    for name in refused:
        sys.modules[name] = None  # type: ignore[assignment]  # this is how an import is refused
    try:
        yield
    finally:
        for name in refused:
            del sys.modules[name]


def load_notebook(path: Path) -> Json:
    """The notebook's JSON; parts that older writers leave out are filled in.

    Raises:
        ContractError: There is no such file, or it is no notebook.
    """
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
        _fill_missing_parts(content)
    except FileNotFoundError as error:
        raise ContractError("no such notebook", where=path) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContractError(
            "this file is not a notebook",
            where=path,
            hint="Give an .ipynb of format 4, or a marimo notebook",
        ) from error
    return content


def cell_source(cell: Json) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def cell_tags(cell: Json) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def cell_id(cell: Json) -> str | None:
    """The cell's id, None where it has none that is a text."""
    name = cell.get("id")
    return name if isinstance(name, str) else None


def _fill_missing_parts(content: Json) -> None:
    """Fill in empty parts; raises `TypeError` or `KeyError` where a part is of another type."""
    metadata = content.setdefault("metadata", {})
    for part in ("kernelspec", "language_info"):
        _require_type(metadata.get(part, {}), dict)
    for part in ("nbformat", "nbformat_minor"):
        _require_type(content.get(part, 0), int)
    _require_type(content["cells"], list)
    for cell in content["cells"]:
        _require_type(cell["cell_type"], str)
        _require_type(cell.setdefault("metadata", {}).get("tags", []), list)
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
        raise TypeError(f"expected a {kind.__name__}")
    return value
