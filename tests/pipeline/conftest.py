"""A project of tiny notebooks, to run real pipelines on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SETUP = "import workbench\nfrom workbench.records.types import Selection\nstep = workbench.step()"
PUT = (
    "step.output('selection', step.store.put(Selection(dataset='dataset/' + '0' * 64, budget=n,"
    " seed=0, method='trial', chosen=())))"
)
CONTRACT: dict[str, Any] = {
    "inputs": {"upstream": {"kind": "selection", "optional": True}},
    "outputs": {"selection": {"kind": "selection"}},
    "resources": {"threads": 1, "timeout_s": 60},
}


def write_notebook(
    path: Path, work: str, *, parameters: str = "n: int = 1", contract: dict[str, Any] | None = None
) -> Path:
    """A notebook with a parameters cell, ``step``, one cell of work and an output."""
    sources = [(parameters, ["parameters"]), (SETUP, []), (work, []), (PUT, [])]
    cells = [
        {
            "cell_type": "code",
            "id": f"cell{number}",
            "metadata": {"tags": tags} if tags else {},
            "source": source,
            "execution_count": None,
            "outputs": [],
        }
        for number, (source, tags) in enumerate(sources)
    ]
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "workbench": CONTRACT if contract is None else contract,
    }
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_pipeline(project: Path, text: str) -> Path:
    path = project / "pipelines" / "trial.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with two step notebooks and a pipeline ``a → b``."""
    steps = tmp_path / "notebooks" / "steps"
    write_notebook(steps / "a.ipynb", "step.metric('loss', 0.5)")
    write_notebook(
        steps / "b.ipynb",
        "upstream = step.optional_input('upstream')\nstep.progress(1, 1)",
        parameters="n: int = 1\nword: str = ''",
    )
    write_pipeline(
        tmp_path,
        """
name: trial
parameters:
  n: {type: int, default: 3, minimum: 1, maximum: 9}
  word: {default: calm, choices: [calm, loud]}
steps:
  a: {parameters: {n: "${n}"}}
  b: {inputs: {upstream: a.selection}, parameters: {n: 2, word: "${word}"}}
""",
    )
    return tmp_path
