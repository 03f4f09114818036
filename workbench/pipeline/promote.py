"""Promote a checked notebook to an immutable version, with a generated test and an MLflow entry.

A version needs a fresh receipt, a commit that contains everything that shapes the step, the locked
environment, an owner and another person as reviewer. The repository is the source of truth; MLflow
mirrors it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import services
from workbench.audit import log as audit
from workbench.core.errors import ContractError, ParameterError
from workbench.core.keyring import signing_key
from workbench.core.names import check_person, same_person
from workbench.core.signatures import sign_reference
from workbench.core.workspace import WORKSPACE_FOLDER, Workspace, write_atomic
from workbench.pipeline import environment, promoted_steps
from workbench.pipeline.checking import receipts
from workbench.pipeline.checking.notebook import as_ipynb
from workbench.pipeline.contract import StepContract, notebook_without_outputs, read_contract
from workbench.pipeline.environment import run_git
from workbench.pipeline.promoted_steps import (
    IDENTITY_FIELDS,
    KEYS_FOLDER,
    PROMOTED_FOLDER,
    RECEIPT_FILE,
    STEP_FILE,
    STEP_NAME,
    STEP_PURPOSE,
    PromotedStep,
    promotion_lock,
)
from workbench.pipeline.spec import StepResult
from workbench.records.base import Ref
from workbench.records.model_types import CheckReceipt, StepVersion
from workbench.records.store import Store
from workbench.services import doctor
from workbench.tracking import Tracker

__all__ = ["promote_notebook"]

_LOCK_FILE = "requirements.lock"
_LOCK_FILES = (_LOCK_FILE, "environment.yml", "pyproject.toml")
_MAX_LISTED = 5
_TEMPORARY_PREFIX = ".writing-"
_EXPERIMENT = "workbench"
_STEP_TAG = "workbench.step"
_SOURCE_FOLDER = "step"

_TESTS_FOLDER = Path("tests") / "promoted"
_INVALID_VALUES: tuple[Any, ...] = ("not a value", -1, [], None)
_LINE_LENGTH = 100


@dataclass(frozen=True)
class Promotion:
    """A promoted version and its test; ``new`` is False when equal content was promoted before."""

    promoted: PromotedStep
    new: bool
    test: Path


def promote_notebook(
    workspace: Workspace, notebook: Path, *, owner: str | None = None, reviewer: str | None = None
) -> Promotion:
    """Make ``notebook`` the next version of its step; equal content stays the same version.

    Args:
        notebook: An .ipynb or a marimo app.
        owner: Who answers for the step; None takes the contract's owner.
        reviewer: Who reviewed it; must be another person.

    Raises:
        VerificationError: It has no receipt, or what was checked has changed since.
        ContractError: It is not committed, not a step, or the environment is not the locked one.
        ParameterError: The owner or the reviewer is missing or no valid name, or both are the same
            person.
    """
    notebook = notebook.resolve()
    readable = as_ipynb(workspace, notebook)
    contract = read_contract(readable)
    project = promoted_steps.find_project(notebook)
    name = contract.name
    if not STEP_NAME.match(name):
        raise ContractError(
            "invalid step name",
            where=notebook.name,
            hint="Name the notebook with letters, digits, - and _",
        )
    owner, reviewer = _owner_and_reviewer(contract, owner, reviewer)
    receipt_ref, receipt = receipts.fresh_receipt(workspace, notebook)
    _check_locked_environment(project)
    commit = _find_commit(project, notebook, contract)
    with promotion_lock(workspace, project):
        existing = _find_same_version(project, name, receipt)
        if existing is None:
            record = StepVersion(
                name=name,
                version=max(promoted_steps.list_versions(project, name), default=0) + 1,
                receipt=receipt_ref,
                owner=owner,
                reviewer=reviewer,
                commit=commit,
                **{field: getattr(receipt, field) for field in IDENTITY_FIELDS},
            )
            promoted = _write_version(workspace, project, record, readable)
            audit.append(
                workspace,
                "promoted",
                subjects=(promoted.ref, receipt_ref),
                name=f"{name}@{record.version}",
                owner=owner,
                reviewer=reviewer,
            )
        else:
            promoted = existing
        test = _write_test_file(project, name, read_contract(promoted.path))
    return Promotion(promoted, existing is None, test)


def _owner_and_reviewer(
    contract: StepContract, owner: str | None, reviewer: str | None
) -> tuple[str, str]:
    owner = " ".join((owner or contract.declaration.owner or "").split())
    reviewer = " ".join((reviewer or "").split())
    if not owner:
        raise ParameterError(
            "the step has no owner",
            where=contract.notebook,
            hint="Pass --owner NAME, or set `owner` in the contract",
        )
    if not reviewer:
        raise ParameterError("the step has no reviewer", hint="Pass --reviewer NAME")
    owner, reviewer = check_person(owner, "owner"), check_person(reviewer, "reviewer")
    if same_person(owner, reviewer):
        raise ParameterError(
            f"owner and reviewer are the same person: {owner}", hint="Ask someone else to review"
        )
    return owner, reviewer


def _check_locked_environment(project: Path) -> None:
    """Raise `ContractError` unless the installed packages are those of the project's lock."""
    lock = project / _LOCK_FILE
    if not lock.is_file():
        raise ContractError("the project has no lock", where=lock, hint="Run `make lock`")
    wrong = doctor.mismatched_packages(lock)
    if wrong:
        raise ContractError(
            f"installed packages differ from the lock: {_shortened(wrong, '; ')}",
            where=lock,
            hint="`make setup` installs the lock; then check the notebook again",
        )


def _find_commit(project: Path, notebook: Path, contract: StepContract) -> str:
    """The commit that contains everything that shapes the step.

    That is the notebook, the locks, and every workbench module that the notebook imports from this
    project; a workbench installed elsewhere belongs to the environment.

    Raises:
        ContractError: There is no commit, or one of those files differs from it.
    """
    commit = run_git(project, "rev-parse", "--verify", "-q", "HEAD")
    if commit is None:
        raise ContractError(
            "the project has no git commit",
            where=project,
            hint="Commit the notebook first",
        )
    root = project.resolve()
    files = [notebook, *(project / name for name in _LOCK_FILES)]
    files += environment.reachable_modules(contract.import_sources).values()
    inside = [path.resolve() for path in files if path.resolve().is_relative_to(root)]
    names = [str(path.relative_to(root)) for path in inside]
    status = run_git(
        project, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--", *names
    )
    is_tracked = run_git(project, "ls-files", "--error-unmatch", "--", names[0]) is not None
    changed = sorted(entry[3:] for entry in (status or "").split("\0") if len(entry) > 3)
    if not is_tracked and not changed:  # git ignores it
        changed = [names[0]]
    if status is None or changed:
        raise ContractError(
            f"not committed: {_shortened(changed, ', ')}",
            where=project,
            hint="Commit these files, so that the version can be reproduced",
        )
    return commit.strip()


def _shortened(items: list[str], separator: str) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return separator.join(items[:_MAX_LISTED]) + more


def current_user() -> str:
    """The current user's name from git, or else from the operating system."""
    import getpass

    return (run_git(Path.cwd(), "config", "user.name") or "").strip() or getpass.getuser()


def _find_same_version(project: Path, name: str, receipt: CheckReceipt) -> PromotedStep | None:
    """The newest version with the receipt's notebook, contract, modules and environment."""
    for version in reversed(promoted_steps.list_versions(project, name)):
        step = promoted_steps.load_step(project, name, version)
        if all(getattr(step.record, f) == getattr(receipt, f) for f in IDENTITY_FIELDS):
            return step
    return None


def _write_version(
    workspace: Workspace, project: Path, record: StepVersion, notebook: Path
) -> PromotedStep:
    """Write the version's read-only files to a temporary folder, then rename it."""
    store, name = Store(workspace), f"{record.name}.ipynb"
    ref = store.put(record, {name: _readable_notebook(notebook)})
    folder = project / PROMOTED_FOLDER / record.name / str(record.version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f"{_TEMPORARY_PREFIX}*"):  # of a promotion that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_TEMPORARY_PREFIX) as temporary:
        work = Path(temporary) / folder.name
        work.mkdir()
        shutil.copyfile(store.payload(ref, name), work / name)
        key = signing_key(workspace)
        trusted = project / PROMOTED_FOLDER / KEYS_FOLDER / f"{key.fingerprint[:16]}.pub.pem"
        if not trusted.exists():
            write_atomic(trusted, key.public.read_bytes())
        signed = sign_reference(key, STEP_PURPOSE, ref)
        (work / STEP_FILE).write_bytes(_record_file(store, ref, signature=signed))
        signature = store.side(record.receipt, receipts.SIGNATURE)
        (work / RECEIPT_FILE).write_bytes(_record_file(store, record.receipt, signature=signature))
        for path in work.iterdir():
            path.chmod(0o444)
        try:
            work.rename(folder)
        except OSError as error:
            raise ContractError("the version exists already", where=folder) from error
    return promoted_steps.load_step(project, record.name, record.version)


def _readable_notebook(notebook: Path) -> bytes:
    """The notebook without outputs, indented, so that two versions can be compared."""
    content = json.loads(notebook_without_outputs(notebook))
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _record_file(store: Store, ref: Ref, **more: Any) -> bytes:
    body = json.loads((store.folder(ref) / "record.json").read_bytes())
    content = {"ref": ref, "record": body, **more}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


# MLflow's registry: what it misses while it is away is written the next time.


def mirror_to_mlflow(workspace: Workspace, project: Path, names: list[str] | None = None) -> int:
    """Register every version that MLflow lacks, and point its aliases as in the repository.

    Args:
        names: Steps to mirror; None mirrors all.

    Returns:
        Number of versions that were new to MLflow.

    Raises:
        ServiceError: MLflow is not reachable.
    """
    services.up(workspace, ("mlflow",))
    tracker = Tracker(services.tracking_address(workspace), _EXPERIMENT)
    new = 0
    for name in promoted_steps.list_steps(project) if names is None else names:
        model = f"step.{name}"
        registered: dict[int, int] = {}
        for version in promoted_steps.list_versions(project, name):
            step = promoted_steps.load_step(project, name, version)
            known = tracker.version_of(model, _STEP_TAG, step.ref)
            registered[version] = known or _register_version(tracker, model, step)
            new += known is None
        aliases = promoted_steps.current_aliases(project, name)
        tracker.point(model, {alias: registered[move.version] for alias, move in aliases.items()})
    return new


def _register_version(tracker: Tracker, model: str, step: PromotedStep) -> int:
    record = step.record
    tags = {
        _STEP_TAG: step.ref,
        "workbench.version": str(step.version),
        "workbench.owner": record.owner,
        "workbench.reviewer": record.reviewer,
        "workbench.commit": record.commit,
        "workbench.notebook": record.notebook,
        "workbench.environment": record.environment,
        "workbench.receipt": record.receipt,
    }
    run = tracker.start(f"promote {step.name}@{step.version}", tags=tags, parameters={})
    files = [step.path, *(step.path.with_name(name) for name in (STEP_FILE, RECEIPT_FILE))]
    tracker.log_files(run, files, _SOURCE_FOLDER)
    tracker.end(run, "FINISHED")
    return tracker.register(
        model, run, source=_SOURCE_FOLDER, tags=tags, aliases=(), known_by=_STEP_TAG
    )


# The test that is generated beside a promoted step.

_TEST_TEMPLATE = '''\
"""Every promoted version of step `{name}` is unchanged and rejects invalid parameters.

Generated by `workbench promote`, which overwrites it: change the notebook instead.
"""

from __future__ import annotations

{path_import}import pytest

from workbench.core.errors import ParameterError
from workbench.pipeline.contract import read_contract
{run}from workbench.pipeline.promoted_steps import find_project, list_versions, load_step

PROJECT = find_project(__file__)
VERSIONS = list_versions(PROJECT, "{name}")
OUTPUTS = {outputs}


@pytest.mark.parametrize("version", VERSIONS)
def test_{function}_is_unchanged(version: int) -> None:
    step = read_contract(load_step(PROJECT, "{name}", version).path)
    assert step.name == "{name}"
    assert step.validate({{}}).keys() == step.parameters.model_fields.keys()


def test_{function}_rejects_invalid_parameters() -> None:
    step = read_contract(load_step(PROJECT, "{name}", VERSIONS[-1]).path)
    assert sorted(step.declaration.outputs) == OUTPUTS
    with pytest.raises(ParameterError):
        step.validate({{"no_such_parameter": 1}})
'''

_TYPE_TEST_TEMPLATE = """    with pytest.raises(ParameterError):
        step.validate({{{parameter}: {value}}})
"""

_RUN_TEST_TEMPLATE = """

def test_{function}_runs_on_its_fixture(tmp_path: Path) -> None:
    promoted = load_step(PROJECT, "{name}", VERSIONS[-1])
    result = run_on_fixture(promoted, tmp_path)
    assert result.failure is None
    assert sorted(result.outputs) == OUTPUTS
"""


def _write_test_file(project: Path, name: str, contract: StepContract) -> Path:
    """Write ``tests/promoted/test_STEP.py`` for the newest version."""
    folder = project / _TESTS_FOLDER
    if (folder.parent / "__init__.py").exists() and not (folder / "__init__.py").exists():
        write_atomic(folder / "__init__.py", b"")
    path = folder / f"test_{name.replace('-', '_')}.py"
    write_atomic(path, _render_test(name, contract).encode())
    return path


def _render_test(name: str, contract: StepContract) -> str:
    """The test's source, in ruff's format."""
    runs = _runs_alone(contract)
    words = {
        "name": name,
        "function": name.replace("-", "_"),
        "outputs": _python_list(sorted(contract.declaration.outputs)),
        "path_import": "from pathlib import Path\n\n" if runs else "",
        "run": "from workbench.pipeline.promote import run_on_fixture\n" if runs else "",
    }
    parts = [_TEST_TEMPLATE.format(**words)]
    rejected = _find_rejected_value(contract)
    if rejected is not None:
        parameter, value = rejected
        literal = "None" if value is None else json.dumps(value)
        parts.append(_TYPE_TEST_TEMPLATE.format(parameter=json.dumps(parameter), value=literal))
    if runs:
        parts.append(_RUN_TEST_TEMPLATE.format(**words))
    return "".join(parts)


def _python_list(names: list[str]) -> str:
    line = json.dumps(names)
    if len(f"OUTPUTS = {line}") <= _LINE_LENGTH:
        return line
    return "[\n" + "".join(f"    {json.dumps(name)},\n" for name in names) + "]"


def _find_rejected_value(contract: StepContract) -> tuple[str, Any] | None:
    """A parameter and a value that its type rejects, if there is one."""
    for name in contract.parameters.model_fields:
        for value in _INVALID_VALUES:
            try:
                contract.validate({name: value})
            except ParameterError:
                return name, value
    return None


def _runs_alone(contract: StepContract) -> bool:
    """Whether a step runs without inputs, servers and secrets."""
    declared = contract.declaration
    required = [name for name, given in declared.inputs.items() if not given.optional]
    return not (required or declared.services or declared.secrets or declared.access.network)


def run_on_fixture(promoted: PromotedStep, folder: Path) -> StepResult:
    """Run a version on its own fixture.

    Args:
        folder: Where its workspace is created.
    """
    from workbench.pipeline.executors.local import run_once

    contract = read_contract(promoted.path)
    workspace = Workspace(folder / WORKSPACE_FOLDER)
    spec = contract.spec(
        workspace,
        workspace.runs / "fixture" / promoted.name,
        workspace.scratch / promoted.name,
        parameters=contract.validate(contract.declaration.fixture.parameters),
        inputs={},
        step=promoted.name,
    )
    return run_once(spec)
