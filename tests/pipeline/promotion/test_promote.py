"""From a checked notebook to a version that never changes and an alias that moves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.pipeline.conftest import CONTRACT, write_notebook
from tests.pipeline.promotion.conftest import checked, commit, git, promoted
from tests.servers import Servers
from workbench.commands import promote as commands
from workbench.errors import ContractError, ParameterError, VerificationError
from workbench.pipeline import contract as contracts
from workbench.pipeline import promotion
from workbench.pipeline.promotion import generated, mirror
from workbench.pipeline.promotion.promote import promote
from workbench.records.store import Store
from workbench.records.types import StepVersion
from workbench.workspace import Workspace

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


def test_a_version_holds_what_was_checked_and_who_answers(
    repository: Path, place: Workspace, store: Store
) -> None:
    made = promoted(place, repository, "word = 'first'")
    record = made.promoted.record
    assert (made.new, record.version, record.owner, record.reviewer) == (True, 1, "ann", "bob")
    assert record.commit == git(repository, "rev-parse", "HEAD")
    assert store.get(made.promoted.ref, StepVersion) == record
    receipt = json.loads(made.promoted.path.with_name("receipt.json").read_text())
    assert receipt["ref"] == record.receipt
    assert receipt["signature"]["signature"]
    found = promotion.resolve(repository, "a@1")
    assert found.path == repository / "pipelines/promoted/a/1/a.ipynb"
    contract = contracts.read(found.path)
    source = contracts.read(repository / "notebooks/steps/a.ipynb")
    assert (contract.code, contract.name) == (source.code, source.name)


def test_the_same_content_is_the_same_version_and_a_change_the_next(
    repository: Path, place: Workspace
) -> None:
    first = promoted(place, repository, "word = 'first'")
    killed = repository / "pipelines/promoted/a/.writing-x/2"
    killed.mkdir(parents=True)
    again = promoted(place, repository, "word = 'first'")
    assert (again.new, again.promoted.ref) == (False, first.promoted.ref)
    second = promoted(place, repository, "word = 'second'")
    assert (second.new, second.promoted.version) == (True, 2)
    assert not killed.exists()
    back = promoted(place, repository, "word = 'first'")
    assert (back.new, back.promoted.version) == (False, 1)
    assert promotion.versions(repository, "a") == [1, 2]


def test_every_missing_condition_refuses_and_says_what_to_do(
    repository: Path, place: Workspace
) -> None:
    notebook = repository / "notebooks/steps/a.ipynb"
    with pytest.raises(ParameterError, match="nobody answers"):
        promote(place, notebook, reviewer="bob")
    with pytest.raises(ParameterError, match="nobody reviewed"):
        promote(place, notebook, owner="ann")
    with pytest.raises(ParameterError, match="cannot review"):
        promote(place, notebook, owner="Ann", reviewer="ann ")
    with pytest.raises(VerificationError, match="no receipt"):
        promote(place, notebook, owner="ann", reviewer="bob")
    write_notebook(notebook, "word = 'changed'")
    checked(place, notebook)
    with pytest.raises(ContractError, match=r"not committed: notebooks/steps/a\.ipynb"):
        promote(place, notebook, owner="ann", reviewer="bob")
    commit(repository)
    write_notebook(notebook, "word = 'changed again'")
    commit(repository)
    with pytest.raises(VerificationError, match="void"):
        promote(place, notebook, owner="ann", reviewer="bob")
    assert promotion.steps(repository) == []


def test_the_environment_has_to_be_the_locked_one(repository: Path, place: Workspace) -> None:
    (repository / "requirements.lock").write_text("click==0.0.1\n")
    commit(repository)
    with pytest.raises(ContractError, match=r"click==0\.0\.1 is "):
        promoted(place, repository, "word = 'locked'")
    (repository / "requirements.lock").unlink()
    notebook = repository / "notebooks/steps/a.ipynb"
    checked(place, notebook)
    with pytest.raises(ContractError, match="no lock"):
        promote(place, notebook, reviewer="bob")


def test_a_notebook_that_git_does_not_know_is_refused(repository: Path, place: Workspace) -> None:
    (repository / ".gitignore").write_text("*.secret.ipynb\nhidden.ipynb\n")
    for name in ("fresh", "hidden"):
        notebook = write_notebook(repository / f"notebooks/steps/{name}.ipynb", "x = 1")
        checked(place, notebook)
        with pytest.raises(ContractError, match=f"not committed: notebooks/steps/{name}"):
            promote(place, notebook, owner="ann", reviewer="bob")


@pytest.mark.parametrize("name", ["a.ipynb", "step.json", "receipt.json"])
def test_a_changed_version_is_refused(repository: Path, place: Workspace, name: str) -> None:
    path = promoted(place, repository, "word = 'first'").promoted.path.with_name(name)
    assert path.stat().st_mode & 0o222 == 0
    path.chmod(0o644)
    path.write_text(
        path.read_text()
        .replace("first", "worst")
        .replace("bob", "bib")
        .replace("passed", "partial")
    )
    with pytest.raises(ContractError, match="never changes"):
        promotion.resolve(repository, "a@1")


def test_a_version_under_another_name_is_refused(repository: Path, place: Workspace) -> None:
    folder = promoted(place, repository, "word = 'first'").promoted.path.parent
    folder.rename(folder.with_name("7"))
    with pytest.raises(ContractError, match="is that of a@1"):
        promotion.resolve(repository, "a@7")


def test_aliases_move_and_roll_back_and_remember(repository: Path, place: Workspace) -> None:
    for work in ("n + 1", "n + 2", "n + 3"):
        made = promoted(place, repository, work)
        name = f"a@{made.promoted.version}"
        promotion.move(place, repository, name, "production", by="ann")
        promotion.move(place, repository, name, "production", by="ann")  # changes nothing

    def version() -> int:
        return promotion.resolve(repository, "a@production").version

    assert version() == 3
    assert promotion.roll_back(place, repository, "a", "production", by="bob").version == 2
    assert promotion.roll_back(place, repository, "a", "production", by="bob").version == 1
    with pytest.raises(ContractError, match="first version"):
        promotion.roll_back(place, repository, "a", "production", by="bob")
    promotion.move(place, repository, "a@3", "production", by="eve")
    assert promotion.roll_back(place, repository, "a", "production", by="bob").version == 1
    content = json.loads((repository / "pipelines/promoted/a/aliases.json").read_text())
    kept = content["aliases"]["production"]
    moves = [(move["action"], move["version"], move["by"]) for move in kept]
    assert moves[:2] == [("set", 1, "ann"), ("set", 2, "ann")]
    assert moves[2:4] == [("set", 3, "ann"), ("rollback", 2, "bob")]
    assert len(moves) == 7


def test_wrong_names_are_told_with_the_nearest_right_one(
    repository: Path, place: Workspace
) -> None:
    promoted(place, repository, "n + 1", step="train")
    promotion.move(place, repository, "train@1", "production", by="ann")
    for wrong, message in {
        "trian@1": "did you mean 'train'",
        "train@prodution": "did you mean 'production'",
        "train@9": "has no version 9",
        "train": "not the name of a promoted step",
        "../train@1": "not the name of a promoted step",
    }.items():
        with pytest.raises(ContractError, match=message):
            promotion.resolve(repository, wrong)
    for alias in ("3", "Latest", "latest", "v2", "a b", ""):
        with pytest.raises(ContractError, match="not an alias"):
            promotion.move(place, repository, "train@1", alias, by="ann")
    for rubbish in ("{half", "[]", '{"aliases": {"production": [{"action": "jump"}]}}'):
        (repository / "pipelines/promoted/train/aliases.json").write_text(rubbish)
        with pytest.raises(ContractError, match="cannot be read"):
            promotion.resolve(repository, "train@production")
    assert promotion.resolve(repository, "train@1").version == 1


def test_the_generated_test_passes_and_catches_a_change(repository: Path, place: Workspace) -> None:
    (repository / "tests").mkdir()
    made = promoted(place, repository, "n + 1")
    assert made.test == repository / "tests/promoted/test_a.py"
    source = made.test.read_text()
    config = (f"--config={ROOT / 'pyproject.toml'}", f"--config=src=['{ROOT}']")
    for arguments in (("check", "--ignore=S101"), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *arguments, *config, str(made.test)]
        subprocess.run(ruff, check=True)
    assert "runs_on_its_fixture" in source
    assert _pytest(repository).returncode == 0
    made.promoted.path.chmod(0o644)
    made.promoted.path.write_text(made.promoted.path.read_text().replace("n + 1", "n + 2"))
    told = _pytest(repository)
    assert told.returncode == 1
    assert "never changes" in told.stdout


def _pytest(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/promoted"],
        check=False,
        cwd=project,
        capture_output=True,
        text=True,
    )


def test_the_generated_text_fits_every_contract(tmp_path: Path) -> None:
    many = {f"a_rather_long_output_name_{n}": {"kind": "selection"} for n in range(6)}
    needy = {**CONTRACT, "inputs": {"upstream": {"kind": "selection"}}, "outputs": many}
    notebook = write_notebook(tmp_path / "needs-input.ipynb", "x = 1", contract=needy)
    text = generated.text("needs-input", contracts.read(notebook))
    assert "fixture" not in text and "def test_needs_input_is_unchanged" in text
    assert max(map(len, text.splitlines())) <= 100
    compile(text, "generated", "exec")
    write_notebook(notebook, "x = 1", parameters="word: str = ''", contract={"outputs": {}})
    assert 'step.validate({"word": -1})' in generated.text("x", contracts.read(notebook))


def test_a_marimo_app_is_promoted_as_the_notebook_that_was_checked(
    repository: Path, place: Workspace
) -> None:
    app = repository / "notebooks/steps/app.py"
    app.write_text(APP)
    commit(repository)
    checked(place, app)
    found = promote(place, app, owner="ann", reviewer="bob").promoted
    assert (found.path.name, found.version) == ("app.ipynb", 1)
    assert contracts.read(found.path).validate({}) == {"n": 1}
    app.write_text(APP.replace("method", "way"))
    with pytest.raises(VerificationError, match="void"):
        promote(place, app, owner="ann", reviewer="bob")


def test_the_commands_say_what_they_did(repository: Path, place: Workspace) -> None:
    contract = {**CONTRACT, "owner": "ann"}
    notebook = write_notebook(repository / "notebooks/steps/a.ipynb", "n + 7", contract=contract)
    commit(repository)
    checked(place, notebook)
    run = CliRunner().invoke
    done = run(commands.promote, [str(notebook), "--reviewer", "bob", "--alias", "production"])
    assert done.exit_code == 0, done.output
    assert "a@1 promoted" in done.stdout
    assert "MLflow was not told" in done.stderr
    write_notebook(notebook, "n + 8", contract=contract)
    commit(repository)
    checked(place, notebook)
    done = run(commands.promote, [str(notebook), "--reviewer", "bob", "--json"])
    value = json.loads(done.stdout)
    assert (value["version"], value["new"], value["mirrored"]) == (2, True, False)
    done = run(commands.steps, ["alias", "a@2", "production", "--by", "ann"])
    assert "a@production is version 2" in done.stdout
    done = run(commands.steps, ["rollback", "a", "production"])
    assert "a@production is version 1" in done.stdout
    (row,) = json.loads(run(commands.steps, ["--json"]).stdout)["steps"]
    assert (row["name"], row["aliases"]) == ("a", {"production": 1})
    assert [version["version"] for version in row["versions"]] == [1, 2]


def test_mlflow_mirrors_what_it_missed(
    repository: Path, place: Workspace, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = f"mirrored-{place.root.parent.name[-6:].replace('_', '-')}"
    first = promoted(place, repository, "n + 1", step=step)
    promotion.move(place, repository, f"{step}@1", "production", by="ann")
    uri = servers.environment["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mirror.mirror(place, repository) == 1
    assert mirror.mirror(place, repository) == 0
    promoted(place, repository, "n + 2", step=step)
    promotion.move(place, repository, f"{step}@2", "production", by="ann")
    assert mirror.mirror(place, repository, [step]) == 1
    promotion.roll_back(place, repository, step, "production", by="ann")
    mirror.mirror(place, repository, [step])

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    standing = client.get_model_version_by_alias(f"step.{step}", "production")
    assert standing.tags["workbench.step"] == first.promoted.ref
    assert standing.tags["workbench.version"] == "1"
    assert standing.tags["workbench.reviewer"] == "bob"
    kept = [entry.path for entry in client.list_artifacts(standing.run_id, "step")]
    assert kept == [f"step/{step}.ipynb", "step/receipt.json", "step/step.json"]
