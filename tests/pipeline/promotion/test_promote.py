"""Promotion: from a checked notebook to an immutable version, with a generated test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.conftest import CONTRACT, write_notebook
from tests.pipeline.promotion.conftest import checked, commit, git, promoted
from workbench.core.errors import ContractError, ParameterError, VerificationError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline import promote, promoted_steps
from workbench.pipeline.promote import promote_notebook
from workbench.records.model_types import StepVersion
from workbench.records.store import Store

ROOT = Path(__file__).resolve().parents[3]
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


def test_a_version_contains_the_checked_notebook_and_its_owner(
    repository: Path, workspace: Workspace, store: Store
) -> None:
    promotion = promoted(workspace, repository, "word = 'first'")
    record = promotion.promoted.record
    assert (promotion.new, record.version, record.owner, record.reviewer) == (True, 1, "ann", "bob")
    assert record.commit == git(repository, "rev-parse", "HEAD")
    assert store.get(promotion.promoted.ref, StepVersion) == record
    receipt = json.loads(promotion.promoted.path.with_name("receipt.json").read_text())
    assert receipt["ref"] == record.receipt
    assert receipt["signature"]["signature"]
    step = promoted_steps.resolve_step(repository, "a@1")
    assert step.path == repository / "pipelines/promoted/a/1/a.ipynb"
    contract = contracts.read_contract(step.path)
    source = contracts.read_contract(repository / "notebooks/steps/a.ipynb")
    assert (contract.code, contract.name) == (source.code, source.name)


def test_equal_content_is_the_same_version_and_a_change_a_new_one(
    repository: Path, workspace: Workspace
) -> None:
    first = promoted(workspace, repository, "word = 'first'")
    leftover = repository / "pipelines/promoted/a/.writing-x/2"
    leftover.mkdir(parents=True)
    again = promoted(workspace, repository, "word = 'first'")
    assert (again.new, again.promoted.ref) == (False, first.promoted.ref)
    second = promoted(workspace, repository, "word = 'second'")
    assert (second.new, second.promoted.version) == (True, 2)
    assert not leftover.exists()
    back = promoted(workspace, repository, "word = 'first'")
    assert (back.new, back.promoted.version) == (False, 1)
    assert promoted_steps.list_versions(repository, "a") == [1, 2]


def test_each_missing_condition_is_an_error(repository: Path, workspace: Workspace) -> None:
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


def test_the_environment_must_match_the_lock(repository: Path, workspace: Workspace) -> None:
    (repository / "requirements.lock").write_text("click==0.0.1\n")
    commit(repository)
    with pytest.raises(ContractError, match=r"click==0\.0\.1 is "):
        promoted(workspace, repository, "word = 'locked'")
    (repository / "requirements.lock").unlink()
    notebook = repository / "notebooks/steps/a.ipynb"
    checked(workspace, notebook)
    with pytest.raises(ContractError, match="no lock"):
        promote_notebook(workspace, notebook, reviewer="bob")


def test_an_untracked_notebook_is_rejected(repository: Path, workspace: Workspace) -> None:
    (repository / ".gitignore").write_text("*.secret.ipynb\nhidden.ipynb\n")
    for name in ("fresh", "hidden"):
        notebook = write_notebook(repository / f"notebooks/steps/{name}.ipynb", "x = 1")
        checked(workspace, notebook)
        with pytest.raises(ContractError, match=f"not committed: notebooks/steps/{name}"):
            promote_notebook(workspace, notebook, owner="ann", reviewer="bob")


@pytest.mark.parametrize("name", ["a.ipynb", "step.json", "receipt.json"])
def test_a_changed_version_is_rejected(repository: Path, workspace: Workspace, name: str) -> None:
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


def test_a_renamed_version_is_rejected(repository: Path, workspace: Workspace) -> None:
    folder = promoted(workspace, repository, "word = 'first'").promoted.path.parent
    folder.rename(folder.with_name("7"))
    with pytest.raises(ContractError, match="belongs to a@1"):
        promoted_steps.resolve_step(repository, "a@7")


def test_a_marimo_app_is_promoted_as_its_checked_export(
    repository: Path, workspace: Workspace
) -> None:
    app = repository / "notebooks/steps/app.py"
    app.write_text(APP)
    commit(repository)
    checked(workspace, app)
    step = promote_notebook(workspace, app, owner="ann", reviewer="bob").promoted
    assert (step.path.name, step.version) == ("app.ipynb", 1)
    assert contracts.read_contract(step.path).validate({}) == {"n": 1}
    app.write_text(APP.replace("method", "way"))
    with pytest.raises(VerificationError, match="void"):
        promote_notebook(workspace, app, owner="ann", reviewer="bob")


def test_the_generated_test_passes_and_catches_a_change(
    repository: Path, workspace: Workspace
) -> None:
    (repository / "tests").mkdir()
    promotion = promoted(workspace, repository, "n + 1")
    assert promotion.test == repository / "tests/promoted/test_a.py"
    source = promotion.test.read_text()
    config = (f"--config={ROOT / 'pyproject.toml'}", f"--config=src=['{ROOT}']")
    for arguments in (("check", "--ignore=S101"), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *arguments, *config, str(promotion.test)]
        subprocess.run(ruff, check=True)
    assert "runs_on_its_fixture" in source
    assert _pytest(repository).returncode == 0
    promotion.promoted.path.chmod(0o644)
    promotion.promoted.path.write_text(
        promotion.promoted.path.read_text().replace("n + 1", "n + 2")
    )
    result = _pytest(repository)
    assert result.returncode == 1
    assert "never changes" in result.stdout


def _pytest(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/promoted"],
        check=False,
        cwd=project,
        capture_output=True,
        text=True,
    )


def test_the_generated_test_fits_every_contract(tmp_path: Path) -> None:
    many = {f"a_rather_long_output_name_{n}": {"kind": "selection"} for n in range(6)}
    needy = {**CONTRACT, "inputs": {"upstream": {"kind": "selection"}}, "outputs": many}
    notebook = write_notebook(tmp_path / "needs-input.ipynb", "x = 1", contract=needy)
    text = promote._render_test("needs-input", contracts.read_contract(notebook))
    assert "fixture" not in text and "def test_needs_input_is_unchanged" in text
    assert max(map(len, text.splitlines())) <= 100
    compile(text, "generated", "exec")
    write_notebook(notebook, "x = 1", parameters="word: str = ''", contract={"outputs": {}})
    assert 'step.validate({"word": -1})' in promote._render_test(
        "x", contracts.read_contract(notebook)
    )
