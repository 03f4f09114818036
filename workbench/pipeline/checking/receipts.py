"""Receipts: signed records of passed checks, void as soon as what was checked changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.core import digest
from workbench.core.errors import VerificationError
from workbench.core.keyring import signing_key, usable_keys
from workbench.core.signatures import check_reference, sign_reference
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.pipeline import environment
from workbench.pipeline.checking.notebook import as_ipynb
from workbench.pipeline.contract import StepContract, notebook_without_outputs, read_contract
from workbench.pipeline.promoted_steps import RECEIPT_PURPOSE
from workbench.records.base import Ref
from workbench.records.model_types import CheckReceipt, Environment, NotebookSource
from workbench.records.store import Store

__all__ = ()

CheckOutcome = Literal["passed", "partial", "not-applicable"]
Coverage = Literal["complete", "partial", "none"]
"""How much of the file and network access of a run was observed."""

SIGNATURE = "signature"
LOCK_FILE = "requirements.lock"

_MAX_LISTED = 5


@dataclass(frozen=True)
class _State:
    """What a receipt depends on, besides the environment."""

    contract: StepContract
    notebook: bytes
    declaration: str
    modules: str
    lock: str | None


def _current_state(workspace: Workspace, notebook: Path) -> _State:
    readable = as_ipynb(workspace, notebook)
    contract = read_contract(readable)
    return _State(
        contract=contract,
        notebook=notebook_without_outputs(readable),
        declaration=digest.of_json(contract.declaration.model_dump(mode="json")),
        modules=environment.modules_digest(contract.import_sources),
        lock=_lock_digest(notebook),
    )


def issue_receipt(
    workspace: Workspace,
    notebook: Path,
    *,
    checks: Mapping[str, CheckOutcome],
    watch: Coverage,
    warnings: tuple[Json, ...] = (),
    outputs: Mapping[str, Ref] | None = None,
) -> Ref:
    """Store and sign the receipt of a notebook that passed, for its current state on disk.

    Args:
        checks: Outcome of each check.
        watch: How much of the notebook's file and network access was observed.
        warnings: Findings that did not fail the check, as JSON.
        outputs: Records that the notebook made on its fixture.
    """
    store = Store(workspace)
    state = _current_state(workspace, notebook)
    source = NotebookSource(name=state.contract.name, code=state.contract.code)
    ref = store.put(
        CheckReceipt(
            notebook=store.put(source, {"notebook.ipynb": state.notebook}),
            contract=state.declaration,
            modules=state.modules,
            environment=store.put(environment.current_environment()),
            checks=dict(checks),
            watch=watch,
            warnings=warnings,
            outputs=dict(outputs or {}),
            lock=state.lock,
        )
    )
    key = signing_key(workspace)
    store.write_side(ref, SIGNATURE, sign_reference(key, RECEIPT_PURPOSE, ref))
    return ref


def state_digest(workspace: Workspace, notebook: Path) -> str:
    """One digest of everything that a receipt depends on: notebook, modules, packages, lock."""
    state = _current_state(workspace, notebook)
    packages = environment.current_environment().model_dump(mode="json")
    return digest.of_json(
        [digest.of_bytes(state.notebook), state.modules, state.lock, digest.of_json(packages)]
    )


def verify_receipt(workspace: Workspace, ref: Ref) -> CheckReceipt:
    """The receipt, if this workspace's key signed it.

    Raises:
        VerificationError: It is not signed, or signed with another key.
        RecordError: The receipt does not exist, or was changed.
    """
    store = Store(workspace)
    receipt = store.get(ref, CheckReceipt)
    keys = usable_keys(workspace, "release")
    check_reference(store.side(ref, SIGNATURE), RECEIPT_PURPOSE, ref, keys)
    return receipt


def fresh_receipt(workspace: Workspace, notebook: Path) -> tuple[Ref, CheckReceipt]:
    """The newest receipt that is valid for the current state of ``notebook``.

    Raises:
        VerificationError: There is none; the message lists what changed since the last one.
        ContractError: The notebook's contract cannot be read.
    """
    store = Store(workspace)
    state = _current_state(workspace, notebook)
    hint = f"Run `workbench check {notebook}`"
    changes: list[str] = []
    for ref, receipt in reversed(list(store.readable(CheckReceipt))):
        if store.get(receipt.notebook, NotebookSource).name != state.contract.name:
            continue
        differences = _changes_since(store, receipt, state)
        if not differences:
            try:
                return ref, verify_receipt(workspace, ref)
            except VerificationError as error:  # an older one may be signed
                differences = [error.what]
        changes = changes or differences
    if not changes:
        raise VerificationError("the notebook has no receipt", where=notebook, hint=hint)
    raise VerificationError(f"the receipt is void: {'; '.join(changes)}", where=notebook, hint=hint)


def _changes_since(store: Store, receipt: CheckReceipt, state: _State) -> list[str]:
    changes = []
    checked = store.payload(receipt.notebook, "notebook.ipynb").read_bytes()
    cells = _changed_cells(_code_cells(checked), _code_cells(state.notebook))
    if cells:
        changes.append(f"{cells} changed")
    if receipt.contract != state.declaration:
        changes.append("the contract changed")
    if receipt.modules != state.modules:
        changes.append("an imported workbench module changed")
    if receipt.lock != state.lock:
        changes.append(f"{LOCK_FILE} changed")
    packages = _changed_packages(
        store.get(receipt.environment, Environment), environment.current_environment()
    )
    if packages:
        changes.append(f"installed packages changed: {packages}")
    return changes


def _code_cells(notebook: bytes) -> list[tuple[str, bool]]:
    """Source of each code cell, and whether it is the parameters cell."""
    return [
        ("".join(cell["source"]), "parameters" in cell["metadata"].get("tags", []))
        for cell in json.loads(notebook)["cells"]
        if cell["cell_type"] == "code"
    ]


def _changed_cells(before: list[tuple[str, bool]], now: list[tuple[str, bool]]) -> str:
    if len(before) != len(now):
        return f"the number of code cells ({len(before)}, now {len(now)})"
    changed = [str(n) for n, (a, b) in enumerate(zip(before, now, strict=True), 1) if a != b]
    return f"cell {', '.join(changed)}" if changed else ""


def _changed_packages(before: Environment, now: Environment) -> str:
    """Names of the distributions that differ; another machine with the same lock is no change."""
    differing = {*before.distributions} ^ {*now.distributions}
    names = {entry.partition("==")[0] for entry in differing}
    if before.python != now.python:
        names.add(f"python {before.python} to {now.python}")
    listed = sorted(names)
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return ", ".join(listed[:_MAX_LISTED]) + more


def _lock_digest(notebook: Path) -> str | None:
    """Digest of the nearest lock above the notebook."""
    for folder in notebook.resolve().parents:
        if (folder / LOCK_FILE).is_file():
            return digest.of_file(folder / LOCK_FILE)
    return None
