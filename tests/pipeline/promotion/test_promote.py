"""From a checked notebook to a version that never changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.conftest import write_notebook
from tests.pipeline.promotion.conftest import checked, commit, git, promoted
from workbench.core.errors import ContractError, ParameterError, VerificationError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline import promoted_steps
from workbench.pipeline.promote import promote_notebook
from workbench.records.model_types import StepVersion
from workbench.records.store import Store

APP = """import marimo

app = marimo.App()


@app.cell
def declare():
    __workbench__ = {"outputs": {"selection": {"kind": "selection"}}}
    return


@app.cell
def parameters():
    n: int = 1
    return (n,)


@app.cell
def work(n):
    method = n + 1
    return (method,)
"""


def test_a_version_holds_what_was_checked_and_who_answers(
    repository: Path, workspace: Workspace, store: Store
) -> None:
    made = promoted(workspace, repository, "word = 'first'")
    record = made.promoted.record
    assert (made.new, record.version, record.owner, record.reviewer) == (True, 1, "ann", "bob")
    assert record.commit == git(repository, "rev-parse", "HEAD")
    assert store.get(made.promoted.ref, StepVersion) == record
    receipt = json.loads(made.promoted.path.with_name("receipt.json").read_text())
    assert receipt["ref"] == record.receipt
    assert receipt["signature"]["signature"]
    found = promoted_steps.resolve_step(repository, "a@1")
    assert found.path == repository / "pipelines/promoted/a/1/a.ipynb"
    contract = contracts.read_contract(found.path)
    source = contracts.read_contract(repository / "notebooks/steps/a.ipynb")
    assert (contract.code, contract.name) == (source.code, source.name)


def test_the_same_content_is_the_same_version_and_a_change_the_next(
    repository: Path, workspace: Workspace
) -> None:
    first = promoted(workspace, repository, "word = 'first'")
    killed = repository / "pipelines/promoted/a/.writing-x/2"
    killed.mkdir(parents=True)
    again = promoted(workspace, repository, "word = 'first'")
    assert (again.new, again.promoted.ref) == (False, first.promoted.ref)
    second = promoted(workspace, repository, "word = 'second'")
    assert (second.new, second.promoted.version) == (True, 2)
    assert not killed.exists()
    back = promoted(workspace, repository, "word = 'first'")
    assert (back.new, back.promoted.version) == (False, 1)
    assert promoted_steps.list_versions(repository, "a") == [1, 2]


def test_every_missing_condition_refuses_and_says_what_to_do(
    repository: Path, workspace: Workspace
) -> None:
    notebook = repository / "notebooks/steps/a.ipynb"
    with pytest.raises(ParameterError, match="no owner"):
        promote_notebook(workspace, notebook, reviewer="bob")
    with pytest.raises(ParameterError, match="no reviewer"):
        promote_notebook(workspace, notebook, owner="ann")
    with pytest.raises(ParameterError, match="the same person"):
        promote_notebook(workspace, notebook, owner="Ann", reviewer="ann ")
    with pytest.raises(VerificationError, match="no receipt"):
        promote_notebook(workspace, notebook, owner="ann", reviewer="bob")
    write_notebook(notebook, "word = 'changed'")
    checked(workspace, notebook)
    with pytest.raises(ContractError, match=r"not committed: notebooks/steps/a\.ipynb"):
        promote_notebook(workspace, notebook, owner="ann", reviewer="bob")
    commit(repository)
    write_notebook(notebook, "word = 'changed again'")
    commit(repository)
    with pytest.raises(VerificationError, match="void"):
        promote_notebook(workspace, notebook, owner="ann", reviewer="bob")
    assert promoted_steps.list_steps(repository) == []


def test_the_environment_has_to_be_the_locked_one(repository: Path, workspace: Workspace) -> None:
    (repository / "requirements.lock").write_text("click==0.0.1\n")
    commit(repository)
    with pytest.raises(ContractError, match=r"click==0\.0\.1 is "):
        promoted(workspace, repository, "word = 'locked'")
    (repository / "requirements.lock").unlink()
    notebook = repository / "notebooks/steps/a.ipynb"
    checked(workspace, notebook)
    with pytest.raises(ContractError, match="no lock"):
        promote_notebook(workspace, notebook, reviewer="bob")


def test_a_notebook_that_git_does_not_know_is_refused(
    repository: Path, workspace: Workspace
) -> None:
    (repository / ".gitignore").write_text("*.secret.ipynb\nhidden.ipynb\n")
    for name in ("fresh", "hidden"):
        notebook = write_notebook(repository / f"notebooks/steps/{name}.ipynb", "x = 1")
        checked(workspace, notebook)
        with pytest.raises(ContractError, match=f"not committed: notebooks/steps/{name}"):
            promote_notebook(workspace, notebook, owner="ann", reviewer="bob")


@pytest.mark.parametrize("name", ["a.ipynb", "step.json", "receipt.json"])
def test_a_changed_version_is_refused(repository: Path, workspace: Workspace, name: str) -> None:
    path = promoted(workspace, repository, "word = 'first'").promoted.path.with_name(name)
    assert path.stat().st_mode & 0o222 == 0
    path.chmod(0o644)
    path.write_text(
        path.read_text()
        .replace("first", "worst")
        .replace("bob", "bib")
        .replace("passed", "partial")
    )
    with pytest.raises(ContractError, match="never changes"):
        promoted_steps.resolve_step(repository, "a@1")


def test_a_version_under_another_name_is_refused(repository: Path, workspace: Workspace) -> None:
    folder = promoted(workspace, repository, "word = 'first'").promoted.path.parent
    folder.rename(folder.with_name("7"))
    with pytest.raises(ContractError, match="belongs to a@1"):
        promoted_steps.resolve_step(repository, "a@7")


def test_a_marimo_app_is_promoted_as_the_notebook_that_was_checked(
    repository: Path, workspace: Workspace
) -> None:
    app = repository / "notebooks/steps/app.py"
    app.write_text(APP)
    commit(repository)
    checked(workspace, app)
    found = promote_notebook(workspace, app, owner="ann", reviewer="bob").promoted
    assert (found.path.name, found.version) == ("app.ipynb", 1)
    assert contracts.read_contract(found.path).validate({}) == {"n": 1}
    app.write_text(APP.replace("method", "way"))
    with pytest.raises(VerificationError, match="void"):
        promote_notebook(workspace, app, owner="ann", reviewer="bob")
