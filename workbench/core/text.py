"""Text for people: counts with their noun, and small HTML tables for notebooks."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["counted", "did_you_mean", "html_table", "natural_key"]

_CELL = "text-align:left;padding:2px 12px 2px 0"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 drive``, ``2 drives``, ``1,200 frames``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


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
