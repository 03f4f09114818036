"""A step notebook opened in JupyterLab: newest inputs, a scratch folder, running servers.

Nothing here is part of a step's behaviour in production, so step keys leave this module out.
"""

from __future__ import annotations

import os
from pathlib import Path

from workbench import services
from workbench.core.errors import ContractError
from workbench.core.workspace import find_workspace
from workbench.pipeline.contract import read_contract
from workbench.pipeline.step import Step
from workbench.records import catalog
from workbench.records.base import Ref, kind_of, short_ref
from workbench.records.model_types import Checkpoint, NotebookSource, StepRun
from workbench.records.store import Store

__all__ = ()

_NOTEBOOK_VARIABLES = ("WORKBENCH_NOTEBOOK", "JPY_SESSION_NAME")
"""Variables with the notebook's path; JupyterLab sets the second."""


def connect_interactive() -> Step:
    """The step of the open notebook, with its servers running.

    Raises:
        ContractError: The notebook is unknown, or its contract is invalid.
        ServiceError: A server that it declares cannot be started.
    """
    notebook = _this_notebook()
    contract = read_contract(notebook)
    declaration = contract.declaration
    workspace = find_workspace(notebook.parent)
    if declaration.services:
        services.up(workspace, declaration.services)
        os.environ.update(
            services.environment(workspace, declaration.services, passwords=True, inherited=True)
        )
    folder = workspace.scratch / notebook.stem
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    kinds = {name: declared.kind for name, declared in declaration.inputs.items()}
    store = Store(workspace)
    inputs = _newest_inputs(store, notebook, kinds)
    for name, given in inputs.items():
        print(f"{name}: {_input_text(store, given)}")
    spec = contract.spec(workspace, folder, folder / "cache", parameters={}, inputs=inputs)
    return Step.from_spec(spec.model_dump(mode="json"), headless=False)


def _input_text(store: Store, given: Ref | tuple[Ref, ...] | None) -> str:
    """What was taken for an input, for the person at the notebook."""
    if given is None:
        return "none"
    if not isinstance(given, str):
        return ", ".join(map(short_ref, given))
    if kind_of(given) == Checkpoint.KIND:
        return next((str(row) for row in catalog.list_models(store) if row.ref == given), given)
    return short_ref(given)


def _this_notebook() -> Path:
    for variable in _NOTEBOOK_VARIABLES:
        named = os.environ.get(variable)
        if named and Path(named).suffix == ".ipynb":
            path = Path(named)
            return path if path.is_file() else Path.cwd() / path.name
    raise ContractError(
        "unknown notebook path",
        hint=f"Open it in JupyterLab, or set {_NOTEBOOK_VARIABLES[0]} to its path",
    )


def _newest_inputs(
    store: Store, notebook: Path, kinds: dict[str, str]
) -> dict[str, Ref | tuple[Ref, ...] | None]:
    """Inputs of the newest run of this notebook; without a run, the newest record of each kind.

    Outputs of steps take precedence over records made by hand, so that a notebook that writes what
    it also reads does not read its own output.
    """
    runs = [run for _, run in store.readable(StepRun)][::-1]
    sources = dict(store.readable(NotebookSource))
    for run in runs:
        source = sources.get(run.notebook)
        if source and source.name == notebook.stem:
            return {name: run.inputs.get(name) for name in kinds}
    outputs = [ref for run in runs for ref in run.outputs.values()]
    inputs: dict[str, Ref | tuple[Ref, ...] | None] = {}
    for name, kind in kinds.items():
        by_steps = [ref for ref in outputs if kind_of(ref) == kind]
        known = by_steps[:1] or list(store.refs(kind))[-1:]
        inputs[name] = known[0] if known else None
    return inputs
