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
    except FileNotFoundError as error:
        raise ContractError("no such notebook", where=path, hint=path_hint(path)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContractError(
            "not a notebook",
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
