"""From a notebook with a fresh receipt to a version in the repository, with its test beside it."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ContractError
from workbench.pipeline.checking import marimo_apps, receipts
from workbench.pipeline.contracts import contract as contracts
from workbench.pipeline.promotion import conditions, generated, repository
from workbench.pipeline.promotion.aliases import alone
from workbench.pipeline.promotion.repository import PROMOTED, RECEIPT_FILE, STEP_FILE, Promoted
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import Receipt, StepVersion
from workbench.workspace import Workspace

Json = dict[str, Any]

_WRITING = ".writing-"
_SHAPING = ("notebook", "contract", "modules", "environment")


@dataclass(frozen=True)
class Made:
    """``new`` is False when this very content had been promoted before."""

    promoted: Promoted
    new: bool
    test: Path


def promote(
    place: Workspace, notebook: Path, *, owner: str | None = None, reviewer: str | None = None
) -> Made:
    """Make ``notebook`` the next version of its step; the same content again is the same version.

    Raises:
        VerificationError: It has no receipt, or what was checked has changed since.
        ContractError: Not committed, not the locked environment, or no step at all.
        ParameterError: No owner, no reviewer, or both are one.
    """
    notebook = notebook.resolve()
    readable = marimo_apps.as_ipynb(place, notebook)
    contract = contracts.read(readable)
    project = repository.project_of(notebook)
    if not repository.NAME.match(contract.name):
        raise ContractError(
            "this name cannot be a step's",
            where=notebook.name,
            hint="Name the notebook with letters, digits, - and _",
        )
    people = conditions.people(contract, owner, reviewer)
    receipt_ref, receipt = receipts.fresh(place, notebook)
    conditions.environment_is_locked(project)
    commit = conditions.commit(project, notebook, contract)
    with alone(place, project):
        made = _same(project, contract.name, receipt)
        new = made is None
        if made is None:
            record = StepVersion(
                name=contract.name,
                version=max(repository.versions(project, contract.name), default=0) + 1,
                receipt=receipt_ref,
                owner=people.owner,
                reviewer=people.reviewer,
                commit=commit,
                **{name: getattr(receipt, name) for name in _SHAPING},
            )
            made = _write(place, project, record, readable)
        test = generated.write(project, contract.name, contracts.read(made.path))
    return Made(made, new, test)


def _same(project: Path, name: str, receipt: Receipt) -> Promoted | None:
    """The newest version with the receipt's notebook, contract, modules and environment."""
    for version in reversed(repository.versions(project, name)):
        found = repository.load(project, name, version)
        if all(getattr(found.record, part) == getattr(receipt, part) for part in _SHAPING):
            return found
    return None


def _write(place: Workspace, project: Path, record: StepVersion, notebook: Path) -> Promoted:
    """Build the version's folder aside and give it its name last; its files are read-only."""
    store, name = Store(place), f"{record.name}.ipynb"
    ref = store.put(record, {name: _for_people(notebook)})
    folder = project / PROMOTED / record.name / str(record.version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{_WRITING}*"):  # by a promotion that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_WRITING) as elsewhere:
        work = Path(elsewhere) / folder.name
        work.mkdir()
        shutil.copyfile(store.payload(ref, name), work / name)
        (work / STEP_FILE).write_bytes(_record_file(store, ref))
        signature = store.side(record.receipt, receipts.SIGNATURE)
        (work / RECEIPT_FILE).write_bytes(_record_file(store, record.receipt, signature=signature))
        for path in work.iterdir():
            path.chmod(0o444)
        try:
            work.rename(folder)
        except OSError as error:
            raise ContractError("this version is there already", where=folder) from error
    return repository.load(project, record.name, record.version)


def _for_people(notebook: Path) -> bytes:
    """The notebook without outputs, a line a value, so that two versions can be compared."""
    content = json.loads(contracts.without_outputs(notebook))
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _record_file(store: Store, ref: Ref, **beside: Any) -> bytes:
    body = json.loads((store.folder(ref) / "record.json").read_bytes())
    content = {"ref": ref, "record": body, **beside}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
