"""The notebook file itself: ids, kernelspec, and what execution left behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.checking.notebook import Notebook

Json = dict[str, Any]

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LEFT_BY_EXECUTION = ("execution", "papermill", "ExecuteTime", "collapsed", "scrolled")
LEFT_IN_METADATA = ("papermill", "widgets", "vscode", "varInspector", "toc", "colab", "interpreter")

_ID = re.compile(r"^[a-zA-Z0-9-_]{1,64}$")
_NEUTRAL_NAMES = ("Python 3", "Python 3 (ipykernel)")


def check(notebook: Notebook) -> Iterator[Finding]:
    content = notebook.content
    if content.get("nbformat") != 4 or content.get("nbformat_minor", 0) < 5:
        found = f"format {content.get('nbformat')}.{content.get('nbformat_minor')}"
        yield Finding("notebook-form", f"{found}, not 4.5 or a later 4")
    yield from _ids(content["cells"])
    yield from _kernel(content["metadata"])
    yield from _executed(notebook)


def is_id(value: object) -> bool:
    return isinstance(value, str) and bool(_ID.match(value))


def is_neutral(kernel: object) -> bool:
    """Whether a kernelspec is one that every machine has."""
    if not isinstance(kernel, dict) or kernel.get("name") != KERNEL["name"]:
        return False
    return kernel.get("display_name") in _NEUTRAL_NAMES


def _ids(cells: list[Json]) -> Iterator[Finding]:
    seen: set[str] = set()
    number = 0
    for place, raw in enumerate(cells, 1):
        is_code = raw["cell_type"] == "code"
        number += is_code
        at = number if is_code else None
        name = raw.get("id")
        said = "the cell" if is_code else f"the {raw['cell_type']} cell at place {place}"
        if not is_id(name):
            yield Finding("cell-id", f"{said} has no valid id", at)
        elif name in seen:
            yield Finding("cell-id", f"{said} has the id {name!r} of another one", at, name)
        seen.add(str(name))


def _kernel(metadata: Json) -> Iterator[Finding]:
    kernel = metadata.get("kernelspec")
    if not is_neutral(kernel):
        found = f"kernel {kernel.get('name')!r}" if isinstance(kernel, dict) else "no kernelspec"
        yield Finding("kernelspec", found)
    extra = [name for name in LEFT_IN_METADATA if name in metadata]
    if extra:
        yield Finding("kernelspec", f"metadata of one editor or run: {', '.join(extra)}")


def _executed(notebook: Notebook) -> Iterator[Finding]:
    counts = []
    for cell in notebook.cells:
        count = cell.raw.get("execution_count")
        if count is not None:
            counts.append(count)
        outputs = cell.raw.get("outputs", [])
        left = [name for name in LEFT_BY_EXECUTION if name in cell.raw.get("metadata", {})]
        if outputs or count is not None or left:
            many = f"{len(outputs)} outputs" if len(outputs) != 1 else "1 output"
            ran = "" if count is None else f", execution count {count}"
            yield Finding("outputs-committed", many + ran, cell.number, cell.id)
    if counts != sorted(counts):
        shown = ", ".join(str(count) for count in counts)
        yield Finding("ran-out-of-order", f"cells were run in the order {shown}")
