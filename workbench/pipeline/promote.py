"""Promote a checked notebook to an immutable version, with a generated test and an entry in MLflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import services
from workbench.core import workspace
from workbench.core.errors import ContractError, ParameterError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline import environment, promoted_steps
from workbench.pipeline.checking import notebook as marimo_apps
from workbench.pipeline.checking import receipts
from workbench.pipeline.contract import StepContract
from workbench.pipeline.promoted_steps import (
    PROMOTED_FOLDER,
    RECEIPT_FILE,
    STEP_FILE,
    PromotedStep,
    promotion_lock,
)
from workbench.pipeline.spec import StepResult
from workbench.records.base import Ref
from workbench.records.model_types import CheckReceipt, StepVersion
from workbench.records.store import Store
from workbench.services import doctor
from workbench.tracking import Tracker

LOCK_FILE = "requirements.lock"
_LOCK_FILES = (LOCK_FILE, "environment.yml", "pyproject.toml")
_GIT_TIMEOUT_S = 30
_MAX_LISTED = 5


@dataclass(frozen=True)
class _People:
    """Who answers for a version, and who looked at it before it became one."""

    owner: str
    reviewer: str


def _owner_and_reviewer(contract: StepContract, owner: str | None, reviewer: str | None) -> _People:
    """Owner and reviewer, who must not be the same; the contract may name the owner."""
    owner = (owner or contract.declaration.owner or "").strip()
    reviewer = (reviewer or "").strip()
    if not owner:
        raise ParameterError(
            "nobody answers for this step",
            where=contract.notebook,
            hint="Pass --owner NAME, or set `owner` in the contract",
        )
    if not reviewer:
        raise ParameterError("nobody reviewed this step", hint="Pass --reviewer NAME")
    if owner.casefold() == reviewer.casefold():
        raise ParameterError(
            f"{owner!r} cannot review what they own", hint="Have someone else look at it"
        )
    return _People(owner, reviewer)


def _find_commit(project: Path, notebook: Path, contract: StepContract) -> str:
    """The commit that holds everything which shapes the step.

    Looked at are the notebook, the locks and every workbench module that the notebook imports; a
    workbench that is installed elsewhere belongs to the environment, not to this commit.

    Raises:
        ContractError: There is no commit, or one of those files differs from it.
    """
    found = _git(project, "rev-parse", "--verify", "-q", "HEAD")
    if found is None:
        raise ContractError(
            "the project has no git commit to promote from",
            where=project,
            hint="Commit the notebook first",
        )
    shaping = [notebook, *(project / name for name in _LOCK_FILES)]
    shaping += environment.reachable_modules(contract.import_sources).values()
    inside = [path for path in shaping if path.resolve().is_relative_to(project.resolve())]
    names = [str(path.resolve().relative_to(project.resolve())) for path in inside]
    listed = _git(project, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--", *names)
    tracked = _git(project, "ls-files", "--error-unmatch", "--", names[0])
    changed = sorted(entry[3:] for entry in (listed or "").split("\0") if len(entry) > 3)
    if tracked is None and not changed:  # git ignores it
        changed = [names[0]]
    if listed is None or changed:
        more = f" and {len(changed) - _MAX_LISTED} more" if len(changed) > _MAX_LISTED else ""
        raise ContractError(
            f"not committed: {', '.join(changed[:_MAX_LISTED])}{more}",
            where=project,
            hint="Commit what shapes the step, so that the version can be found again",
        )
    return found.strip()


def _check_locked_environment(project: Path) -> None:
    """Raise `ContractError` unless what is installed is what the project's lock says."""
    lock = project / LOCK_FILE
    if not lock.is_file():
        raise ContractError(
            "the project has no lock", where=lock, hint="Resolve one with `make lock`"
        )
    wrong = doctor.mismatched_packages(lock)
    if wrong:
        more = f" and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ContractError(
            f"the environment is not the locked one: {'; '.join(wrong[:_MAX_LISTED])}{more}",
            where=lock,
            hint="`make setup` installs the lock; then check the notebook again",
        )


def current_user() -> str:
    """The person at the keyboard, as git or else the system knows them."""
    import getpass

    return (_git(Path.cwd(), "config", "user.name") or "").strip() or getpass.getuser()


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where it fails."""
    try:
        told = subprocess.run(
            [
                "git",
                "-c",
                "core.fsmonitor=false",
                "-c",
                "core.quotePath=false",
                "-C",
                str(folder),
                *arguments,
            ],
            capture_output=True,
            check=True,
            timeout=_GIT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.decode(errors="replace")


# ---- The test that stands beside a promoted step and runs with all others.


Json = dict[str, Any]

TESTS_FOLDER = Path("tests") / "promoted"
_INVALID_VALUES: tuple[Any, ...] = ("not a value", -1, [], None)
_LINE_LENGTH = 100

_TEST_TEMPLATE = '''"""Every promoted version of step `{name}` still is what was promoted.

Written by `workbench promote`, which writes it again: change the notebook, not this.
"""

from __future__ import annotations

{path_import}import pytest

from workbench.core.errors import ParameterError
from workbench.pipeline import promotion
from workbench.pipeline.contracts import contract

PROJECT = promotion.project_of(__file__)
VERSIONS = promotion.versions(PROJECT, "{name}")
OUTPUTS = {outputs}


@pytest.mark.parametrize("version", VERSIONS)
def test_{function}_is_unchanged(version: int) -> None:
    step = contract.read(promotion.load(PROJECT, "{name}", version).path)
    assert step.name == "{name}"
    assert step.validate({{}}).keys() == step.parameters.model_fields.keys()


def test_{function}_refuses_bad_values() -> None:
    step = contract.read(promotion.load(PROJECT, "{name}", VERSIONS[-1]).path)
    assert sorted(step.declaration.outputs) == OUTPUTS
    with pytest.raises(ParameterError):
        step.validate({{"no_such_parameter": 1}})
'''

_TYPE_TEST_TEMPLATE = """    with pytest.raises(ParameterError):
        step.validate({{{parameter}: {value}}})
"""

_RUN_TEST_TEMPLATE = """

def test_{function}_runs_on_its_fixture(tmp_path: Path) -> None:
    promoted = promotion.load(PROJECT, "{name}", VERSIONS[-1])
    result = promotion.run_on_fixture(promoted, tmp_path)
    assert result.failure is None
    assert sorted(result.outputs) == OUTPUTS
"""


def write_test_file(project: Path, name: str, contract: StepContract) -> Path:
    """Write ``tests/promoted/test_STEP.py`` for the newest version; returns where."""
    folder = project / TESTS_FOLDER
    if (folder.parent / "__init__.py").exists() and not (folder / "__init__.py").exists():
        workspace.write_atomic(folder / "__init__.py", b"")
    path = folder / f"test_{name.replace('-', '_')}.py"
    workspace.write_atomic(path, render_test(name, contract).encode())
    return path


def render_test(name: str, contract: StepContract) -> str:
    """The test's source, as ruff would format it."""
    words = {
        "name": name,
        "function": name.replace("-", "_"),
        "outputs": _python_list(sorted(contract.declaration.outputs)),
        "path_import": "from pathlib import Path\n\n" if is_cheap(contract) else "",
    }
    parts = [_TEST_TEMPLATE.format(**words)]
    bad = find_refused_value(contract)
    if bad is not None:
        parts.append(
            _TYPE_TEST_TEMPLATE.format(parameter=json.dumps(bad[0]), value=_python_literal(bad[1]))
        )
    if is_cheap(contract):
        parts.append(_RUN_TEST_TEMPLATE.format(**words))
    return "".join(parts)


def _python_list(names: list[str]) -> str:
    line = json.dumps(names)
    if len(f"OUTPUTS = {line}") <= _LINE_LENGTH:
        return line
    return "[\n" + "".join(f"    {json.dumps(name)},\n" for name in names) + "]"


def _python_literal(value: Any) -> str:
    return "None" if value is None else json.dumps(value)


def find_refused_value(contract: StepContract) -> tuple[str, Any] | None:
    """A parameter and a value that its type refuses, if there is one."""
    for name in contract.parameters.model_fields:
        for value in _INVALID_VALUES:
            try:
                contract.validate({name: value})
            except ParameterError:
                return name, value
    return None


def is_cheap(contract: StepContract) -> bool:
    """Whether a step can be tried alone: no input, no server, no secret."""
    declared = contract.declaration
    needed = [name for name, given in declared.inputs.items() if not given.optional]
    return not (needed or declared.services or declared.secrets or declared.access.network)


def run_on_fixture(promoted: PromotedStep, folder: Path) -> StepResult:
    """Run a version on its own fixture in a workspace of its own below ``folder``."""
    from workbench.pipeline import contract as contracts
    from workbench.pipeline.executors.local import run_once

    contract = contracts.read_contract(promoted.path)
    place = Workspace(folder / workspace.WORKSPACE_FOLDER)
    spec = contract.spec(
        place,
        place.runs / "fixture" / promoted.name,
        place.scratch / promoted.name,
        parameters=contract.validate(contract.declaration.fixture.parameters),
        inputs={},
        step=promoted.name,
    )
    return run_once(spec)


# ---- MLflow's view of the promoted steps. What it misses is written the next time.


_EXPERIMENT = "workbench"
_STEP_TAG = "workbench.step"
_SOURCE_FOLDER = "step"


def mirror_to_mlflow(place: Workspace, project: Path, names: list[str] | None = None) -> int:
    """Register every version that MLflow lacks and let its aliases point as they do here.

    Args:
        names: Steps to mirror; all when left out.

    Returns:
        How many versions were new to MLflow.

    Raises:
        ServiceError: MLflow is away. The repository is whole all the same.
    """
    services.up(place, ("mlflow",))
    uri = services.environment(place, ("mlflow",))["MLFLOW_TRACKING_URI"]
    tracker = Tracker(uri, _EXPERIMENT)
    new = 0
    for name in promoted_steps.list_steps(project) if names is None else names:
        registered: dict[int, int] = {}
        for version in promoted_steps.list_versions(project, name):
            promoted = promoted_steps.load_step(project, name, version)
            known = tracker.version_of(_model_name(name), _STEP_TAG, promoted.ref)
            registered[version] = known or _register_version(tracker, promoted)
            new += known is None
        aliases = promoted_steps.current_aliases(project, name)
        tracker.point(
            _model_name(name), {alias: registered[at.version] for alias, at in aliases.items()}
        )
    return new


def _register_version(tracker: Tracker, promoted: PromotedStep) -> int:
    record = promoted.record
    tags = {
        _STEP_TAG: promoted.ref,
        "workbench.version": str(promoted.version),
        "workbench.owner": record.owner,
        "workbench.reviewer": record.reviewer,
        "workbench.commit": record.commit,
        "workbench.notebook": record.notebook,
        "workbench.environment": record.environment,
        "workbench.receipt": record.receipt,
    }
    run = tracker.start(f"promote {promoted.name}@{promoted.version}", tags=tags, parameters={})
    files = [promoted.path, *(promoted.path.with_name(name) for name in (STEP_FILE, RECEIPT_FILE))]
    tracker.log_files(run, files, _SOURCE_FOLDER)
    tracker.end(run, "FINISHED")
    return tracker.register(
        _model_name(promoted.name),
        run,
        source=_SOURCE_FOLDER,
        tags=tags,
        aliases=(),
        known_by=_STEP_TAG,
    )


def _model_name(name: str) -> str:
    return f"step.{name}"


# ---- From a notebook with a fresh receipt to a version in the repository, with its test beside it.


_TEMPORARY_PREFIX = ".writing-"
_IDENTITY_FIELDS = ("notebook", "contract", "modules", "environment")


@dataclass(frozen=True)
class Promotion:
    """``new`` is False when this very content had been promoted before."""

    promoted: PromotedStep
    new: bool
    test: Path


def promote_notebook(
    place: Workspace, notebook: Path, *, owner: str | None = None, reviewer: str | None = None
) -> Promotion:
    """Make ``notebook`` the next version of its step; the same content again is the same version.

    Raises:
        VerificationError: It has no receipt, or what was checked has changed since.
        ContractError: Not committed, not the locked environment, or no step at all.
        ParameterError: No owner, no reviewer, or both are one.
    """
    notebook = notebook.resolve()
    readable = marimo_apps.as_ipynb(place, notebook)
    contract = contracts.read_contract(readable)
    project = promoted_steps.find_project(notebook)
    if not promoted_steps.STEP_NAME.match(contract.name):
        raise ContractError(
            "this name cannot be a step's",
            where=notebook.name,
            hint="Name the notebook with letters, digits, - and _",
        )
    people = _owner_and_reviewer(contract, owner, reviewer)
    receipt_ref, receipt = receipts.fresh_receipt(place, notebook)
    _check_locked_environment(project)
    commit = _find_commit(project, notebook, contract)
    with promotion_lock(place, project):
        made = _find_same_version(project, contract.name, receipt)
        new = made is None
        if made is None:
            record = StepVersion(
                name=contract.name,
                version=max(promoted_steps.list_versions(project, contract.name), default=0) + 1,
                receipt=receipt_ref,
                owner=people.owner,
                reviewer=people.reviewer,
                commit=commit,
                **{name: getattr(receipt, name) for name in _IDENTITY_FIELDS},
            )
            made = _write_version(place, project, record, readable)
        test = write_test_file(project, contract.name, contracts.read_contract(made.path))
    return Promotion(made, new, test)


def _find_same_version(project: Path, name: str, receipt: CheckReceipt) -> PromotedStep | None:
    """The newest version with the receipt's notebook, contract, modules and environment."""
    for version in reversed(promoted_steps.list_versions(project, name)):
        found = promoted_steps.load_step(project, name, version)
        if all(getattr(found.record, part) == getattr(receipt, part) for part in _IDENTITY_FIELDS):
            return found
    return None


def _write_version(
    place: Workspace, project: Path, record: StepVersion, notebook: Path
) -> PromotedStep:
    """Build the version's folder aside and give it its name last; its files are read-only."""
    store, name = Store(place), f"{record.name}.ipynb"
    ref = store.put(record, {name: _readable_notebook(notebook)})
    folder = project / PROMOTED_FOLDER / record.name / str(record.version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{_TEMPORARY_PREFIX}*"):  # by a promotion that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_TEMPORARY_PREFIX) as elsewhere:
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
    return promoted_steps.load_step(project, record.name, record.version)


def _readable_notebook(notebook: Path) -> bytes:
    """The notebook without outputs, a line a value, so that two versions can be compared."""
    content = json.loads(contracts.notebook_without_outputs(notebook))
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _record_file(store: Store, ref: Ref, **beside: Any) -> bytes:
    body = json.loads((store.folder(ref) / "record.json").read_bytes())
    content = {"ref": ref, "record": body, **beside}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
