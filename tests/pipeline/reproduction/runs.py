"""Recorded runs of real notebooks, without servers, and the command that rebuilds them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from workbench.cli.models import reproduce as command
from workbench.core import digest
from workbench.core.workspace import Workspace
from workbench.pipeline import cache, environment
from workbench.pipeline import contract as contracts
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.spec import ExitStatus, StepSpec
from workbench.records.base import Ref
from workbench.records.model_types import NotebookSource, StepRun
from workbench.records.store import Store

_EXECUTOR = LocalExecutor()  # its warm process is shared by all tests, and ends with them


def record(
    workspace: Workspace,
    notebook: Path,
    paths: dict[str, str] | None = None,
    **inputs: Ref | tuple[Ref, ...],
) -> StepRun:
    """Run a notebook and record it as the pipeline does, without servers."""
    store, contract = Store(workspace), contracts.read_contract(notebook)
    declared, folder = contract.declaration, workspace.runs / "one" / notebook.stem
    spec = StepSpec(
        step=notebook.stem,
        notebook=str(notebook),
        home=str(workspace.root),
        folder=str(folder),
        cache=str(workspace.scratch / notebook.stem),
        parameters=contract.validate({"n": 2 if inputs else 3}),
        inputs=dict(inputs),
        declared_inputs={n: d.model_dump() for n, d in declared.inputs.items()},
        declared_outputs={n: d.model_dump() for n, d in declared.outputs.items()},
        threads=1,
        timeout_s=60,
        memory_gib=4,
        environment={},
    )
    spec = spec.model_copy(update={"parameters": {**spec.parameters, **(paths or {})}})
    result = _EXECUTOR.execute(spec, lambda: None, threading.Event())
    assert result.status is ExitStatus.OK, result.failure
    source = NotebookSource(name=contract.name, code=contract.code)
    run = StepRun(
        step=notebook.stem,
        key=digest.of_bytes(notebook.stem.encode()),
        notebook=store.put(
            source, {"notebook.ipynb": contracts.notebook_without_outputs(notebook)}
        ),
        environment=store.put(environment.current_environment()),
        modules=environment.modules_digest(contract.import_sources),
        parameters=spec.parameters,
        inputs=dict(inputs),
        outputs=result.outputs,
        threads=1,
    )
    named = contract.path_parameters(spec.parameters)
    files = {name: cache.path_fingerprint(spec.parameters[name]) for name in named}
    store.put(
        run,
        cache.collect_small_files(spec.parameters, files),
        side={"place": {"folder": str(folder)}},
    )
    return run


def record_runs(workspace: Workspace, project: Path) -> StepRun:
    """The runs of ``a → b``; returns b's."""
    steps = project / "notebooks" / "steps"
    first = record(workspace, steps / "a.ipynb")
    return record(workspace, steps / "b.ipynb", upstream=first.outputs["selection"])


def reproduce(ref: Ref, *more: str) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(command, [ref, "--json", *more])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout), done.stderr


def bare_notebook() -> dict[str, Any]:
    cell = {
        "cell_type": "code",
        "id": "one",
        "metadata": {"tags": ["parameters"]},
        "source": "n: int = 1",
        "execution_count": None,
        "outputs": [],
    }
    return {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
