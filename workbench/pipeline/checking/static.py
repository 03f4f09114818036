"""All that can be said of a notebook without running it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from workbench.pipeline.checking import code, form, names, notebook, promises
from workbench.pipeline.checking.findings import Finding, ordered
from workbench.pipeline.checking.notebook import Notebook
from workbench.pipeline.contracts import ipynb
from workbench.pipeline.steps import secrets


def check(path: Path, known: Mapping[str, str] | None = None) -> list[Finding]:
    """Every finding of every static rule, in the order of cells.

    Args:
        known: Secret values by name, to be found in any spelling.

    Raises:
        ContractError: The file is no notebook at all.
    """
    book = notebook.read(path)
    imports = code.imports_of(book.cells)
    found = [*form.check(book), *promises.check(book, imports), *names.check(book.cells)]
    for cell in book.cells:
        found.extend(code.check(cell, imports, known or {}))
    found.extend(_in_words(book, known or {}))
    return ordered(found)


def _in_words(book: Notebook, known: Mapping[str, str]) -> list[Finding]:
    """Credentials in Markdown, where people paste them too."""
    found = []
    for raw in book.content["cells"]:
        if raw["cell_type"] != "code":
            for leak in secrets.scan(ipynb.source_of(raw), known):
                message = f"in a {raw['cell_type']} cell, looks like a credential: {leak.name}"
                found.append(Finding("secret", message, None, ipynb.id_of(raw), leak.line))
    return found
