"""Text for people: counts with their noun, and small HTML tables for notebooks."""

from __future__ import annotations

import dataclasses
import difflib
import html
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["counted", "html_table", "path_hint", "terminal_text"]

_T = TypeVar("_T")
_MAX_VALUE = 60  # characters of one value in a repr
_MAX_FIELDS = 20

_CELL = "text-align:left;padding:2px 12px 2px 0"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 drive``, ``2 drives``, ``1,200 frames``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def terminal_text(text: str) -> str:
    """``text`` with control characters as escapes: a file name could colour or clear a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def html_table(
    title: str, rows: Mapping[str, str] | Sequence[Sequence[str]], header: Sequence[str] = ()
) -> str:
    """A table that follows the notebook's theme; every text is escaped."""
    lines = list(rows.items()) if isinstance(rows, Mapping) else rows
    head = "".join(f'<th style="{_CELL}">{html.escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{_CELL}">{html.escape(str(cell))}</td>' for cell in line)
        + "</tr>"
        for line in lines
    )
    return f"<div><b>{html.escape(title)}</b><table><tr>{head}</tr>{body}</table></div>"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names what was probably meant, else everything that is known.

    ``night`` is taken for ``light=night``.
    """
    names = list(known)
    near = [name for name in names if name.partition("=")[2] == word]
    near += difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names) or 'none'}"


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key by which ``2.png`` comes before ``10.png``."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if n % 2 else (0, part) for n, part in enumerate(parts)]


def path_hint(path: Path) -> str | None:
    """A hint with the file or folder that a path which does not exist probably meant, if any."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"Did you mean {parent / near[0]}?" if near else None


def short_repr(cls: type[_T]) -> type[_T]:
    """Class decorator: a repr below 2 kB, and a table in notebooks, for a dataclass of any size."""

    def represent(self: Any) -> str:
        fields = short_fields(self, (field.name for field in dataclasses.fields(self)))
        return f"{cls.__name__}({', '.join(f'{name}={text}' for name, text in fields.items())})"

    def table(self: Any) -> str:
        fields = short_fields(self, (field.name for field in dataclasses.fields(self)))
        return html_table(cls.__name__, fields)

    cls.__repr__ = represent  # type: ignore[method-assign, assignment]
    cls._repr_html_ = table  # type: ignore[attr-defined]
    return cls


def short_fields(value: object, names: Iterable[str]) -> dict[str, str]:
    """Fields of an object as short text; what is long is counted, as ``<1,200 items>``."""
    shown = list(names)
    fields = {name: _short_text(getattr(value, name)) for name in shown[:_MAX_FIELDS]}
    if len(shown) > _MAX_FIELDS:
        fields["…"] = counted(len(shown) - _MAX_FIELDS, "more field")
    return fields


def _short_text(value: object) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):  # an array: its own repr shows values
        size = ", ".join(map(str, shape))
        return f"<{getattr(value, 'dtype', type(value).__name__)} [{size}]>"
    if isinstance(value, str | bytes):
        text = repr(value[:_MAX_VALUE])
    elif isinstance(value, Collection) and (len(value) > 8 or len(repr(value)) > _MAX_VALUE):
        return f"<{counted(len(value), 'item')}>"
    else:
        text = repr(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
