"""Small notebooks with chosen violations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PARAMETERS = ("n: int = 1", ["parameters"])
STEP = "import workbench\nstep = workbench.step()"
CONTRACT: dict[str, Any] = {
    "inputs": {},
    "outputs": {"selection": {"kind": "selection"}},
    "resources": {"threads": 1, "timeout_s": 60, "memory_gib": 2},
    "fixture": {"parameters": {"n": 1}, "other": {"n": 2}},
    "owner": "ana",
}
OUT = (
    "from workbench.records.types import SelectedFrame, Selection\n"
    "chosen = (SelectedFrame(frame='0' * 64, rank=1, score=float(n)),)\n"
    "record = Selection(dataset='dataset/' + '0' * 64, budget=n, seed=0, method='trial',"
    " chosen=chosen)\n"
    "step.output('selection', step.store.put(record))"
)

Source = str | tuple[str, list[str]]


def book(
    path: Path, *cells: Source, contract: dict[str, Any] | None = None, **metadata: Any
) -> Path:
    """Write a notebook of these code cells; a cell may come with tags."""
    raws = []
    for number, cell in enumerate(cells, 1):
        source, tags = cell if isinstance(cell, tuple) else (cell, [])
        raws.append(
            {
                "cell_type": "code",
                "id": f"c{number}",
                "metadata": {"tags": tags} if tags else {},
                "source": source.splitlines(keepends=True),
                "execution_count": None,
                "outputs": [],
            }
        )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": raws,
        "metadata": {"kernelspec": kernel, "workbench": contract or CONTRACT, **metadata},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def good(path: Path, *work: str, contract: dict[str, Any] | None = None) -> Path:
    """A valid step with additional cells."""
    return book(path, PARAMETERS, STEP, *work, OUT, contract=contract)
