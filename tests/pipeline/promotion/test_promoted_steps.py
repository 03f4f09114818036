"""Aliases of promoted steps, the commands, and the mirror in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.pipeline.conftest import CONTRACT, write_notebook
from tests.pipeline.promotion.conftest import checked, commit, promoted
from tests.servers import Servers
from workbench.audit.log import read_log, verify_log
from workbench.cli import steps
from workbench.core import digest
from workbench.core.errors import ContractError
from workbench.core.keyring import signing_key
from workbench.core.signatures import sign_reference
from workbench.core.workspace import Workspace
from workbench.pipeline import promote, promoted_steps


def test_aliases_move_roll_back_and_keep_their_history(
    repository: Path, workspace: Workspace
) -> None:
    for work in ("n + 1", "n + 2", "n + 3"):
        promotion = promoted(workspace, repository, work)
        name = f"a@{promotion.promoted.version}"
        promoted_steps.move_alias(workspace, repository, name, "production", by="ann")
        promoted_steps.move_alias(workspace, repository, name, "production", by="ann")  # no change

    def version() -> int:
        return promoted_steps.resolve_step(repository, "a@production").version

    assert version() == 3
    assert (
        promoted_steps.roll_back_alias(workspace, repository, "a", "production", by="bob").version
        == 2
    )
    assert (
        promoted_steps.roll_back_alias(workspace, repository, "a", "production", by="bob").version
        == 1
    )
    with pytest.raises(ContractError, match="first version"):
        promoted_steps.roll_back_alias(workspace, repository, "a", "production", by="bob")
    with pytest.raises(ContractError, match="Did you mean 'production'"):
        promoted_steps.roll_back_alias(workspace, repository, "a", "produktion", by="bob")
    with pytest.raises(ContractError, match="no promoted step 'z'"):
        promoted_steps.roll_back_alias(workspace, repository, "z", "production", by="bob")
    promoted_steps.move_alias(workspace, repository, "a@3", "production", by="eve")
    assert (
        promoted_steps.roll_back_alias(workspace, repository, "a", "production", by="bob").version
        == 1
    )
    content = json.loads((repository / "pipelines/promoted/a/aliases.json").read_text())
    files = content["aliases"]["production"]
    moves = [(move["action"], move["version"], move["by"]) for move in files]
    assert moves[:2] == [("set", 1, "ann"), ("set", 2, "ann")]
    assert moves[2:4] == [("set", 3, "ann"), ("rollback", 2, "bob")]
    assert len(moves) == 7


def test_unknown_names_suggest_the_nearest_one(repository: Path, workspace: Workspace) -> None:
    promoted(workspace, repository, "n + 1", step="train")
    promoted_steps.move_alias(workspace, repository, "train@1", "production", by="ann")
    for wrong, message in {
        "trian@1": "Did you mean 'train'",
        "train@prodution": "Did you mean 'production'",
        "train@9": "has no version 9",
        "train": "invalid reference to a promoted step",
        "../train@1": "invalid reference to a promoted step",
    }.items():
        with pytest.raises(ContractError, match=message):
            promoted_steps.resolve_step(repository, wrong)
    for alias in ("3", "Latest", "latest", "v2", "a b", ""):
        with pytest.raises(ContractError, match="invalid alias"):
            promoted_steps.move_alias(workspace, repository, "train@1", alias, by="ann")
    for damaged in ("{half", "[]", '{"aliases": {"production": [{"action": "jump"}]}}'):
        (repository / "pipelines/promoted/train/aliases.json").write_text(damaged)
        with pytest.raises(ContractError, match="cannot be read"):
            promoted_steps.resolve_step(repository, "train@production")
    assert promoted_steps.resolve_step(repository, "train@1").version == 1


def test_the_commands_print_their_result(repository: Path, workspace: Workspace) -> None:
    contract = {**CONTRACT, "owner": "ann"}
    notebook = write_notebook(repository / "notebooks/steps/a.ipynb", "n + 7", contract=contract)
    commit(repository)
    checked(workspace, notebook)
    run = CliRunner().invoke
    done = run(steps.promote, [str(notebook), "--reviewer", "bob", "--alias", "production"])
    assert done.exit_code == 0, done.output
    assert "a@1 promoted" in done.stdout
    assert "MLflow was not updated" in done.stderr
    write_notebook(notebook, "n + 8", contract=contract)
    commit(repository)
    checked(workspace, notebook)
    done = run(steps.promote, [str(notebook), "--reviewer", "bob", "--json"])
    value = json.loads(done.stdout)
    assert (value["version"], value["new"], value["mirrored"]) == (2, True, False)
    done = run(steps.steps, ["alias", "a@2", "production", "--by", "ann"])
    assert "a@production is version 2" in done.stdout
    done = run(steps.steps, ["rollback", "a", "production"])
    assert "a@production is version 1" in done.stdout
    (row,) = json.loads(run(steps.steps, ["--json"]).stdout)["steps"]
    assert (row["name"], row["aliases"]) == ("a", {"production": 1})
    assert [version["version"] for version in row["versions"]] == [1, 2]


def test_mlflow_mirrors_missing_versions(
    repository: Path, workspace: Workspace, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = f"mirrored-{workspace.root.parent.name[-6:].replace('_', '-')}"
    first = promoted(workspace, repository, "n + 1", step=step)
    promoted_steps.move_alias(workspace, repository, f"{step}@1", "production", by="ann")
    uri = servers.mlflow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert promote.mirror_to_mlflow(workspace, repository) == 1
    assert promote.mirror_to_mlflow(workspace, repository) == 0
    promoted(workspace, repository, "n + 2", step=step)
    promoted_steps.move_alias(workspace, repository, f"{step}@2", "production", by="ann")
    assert promote.mirror_to_mlflow(workspace, repository, [step]) == 1
    promoted_steps.roll_back_alias(workspace, repository, step, "production", by="ann")
    promote.mirror_to_mlflow(workspace, repository, [step])

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    mlflow_version = client.get_model_version_by_alias(f"step.{step}", "production")
    assert mlflow_version.tags["workbench.step"] == first.promoted.ref
    assert mlflow_version.tags["workbench.version"] == "1"
    assert mlflow_version.tags["workbench.reviewer"] == "bob"
    files = [entry.path for entry in client.list_artifacts(mlflow_version.run_id, "step")]
    assert files == [f"step/{step}.ipynb", "step/receipt.json", "step/step.json"]


# Forged versions: every digest fits, and only the signatures do not.


def _write(path: Path, content: Any) -> None:
    path.chmod(0o644)
    path.write_text(json.dumps(content))


def _redigest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record file, and make its digest fit."""
    content = json.loads(path.read_text())
    change(content["record"])
    kind = content["ref"].partition("/")[0]
    content["ref"] = f"{kind}/{digest.of_json(content['record'])}"
    _write(path, content)


def _other_notebook(folder: Path, record: dict[str, Any]) -> None:
    notebook = folder / "a.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][2]["source"] = "import os; os.system('true')"
    _write(notebook, content)
    record["payload"]["a.ipynb"] = {
        "sha256": digest.of_file(notebook),
        "bytes": notebook.stat().st_size,
    }


def _strip_signature(folder: Path) -> None:
    content = json.loads((folder / "step.json").read_text())
    content.pop("signature")
    _write(folder / "step.json", content)


def _sign_with_another_key(folder: Path, tmp_path: Path) -> None:
    stranger = signing_key(Workspace(tmp_path / "stranger" / ".workbench"))
    content = json.loads((folder / "step.json").read_text())
    content["signature"] = sign_reference(stranger, "promoted step", content["ref"])
    _write(folder / "step.json", content)


FORGERIES: dict[str, Callable[[Path, Path], object]] = {
    "notebook and digests": lambda folder, _: _redigest(
        folder / "step.json", lambda record: _other_notebook(folder, record)
    ),
    "notebook, digests and no signature": lambda folder, _: (
        _redigest(folder / "step.json", lambda record: _other_notebook(folder, record)),
        _strip_signature(folder),
    ),
    "notebook, digests and another key": lambda folder, tmp_path: (
        _redigest(folder / "step.json", lambda record: _other_notebook(folder, record)),
        _sign_with_another_key(folder, tmp_path),
    ),
    "reviewer": lambda folder, _: _redigest(
        folder / "step.json", lambda record: record.update(reviewer="carol")
    ),
    "reviewer and no signature": lambda folder, _: (
        _redigest(folder / "step.json", lambda record: record.update(reviewer="carol")),
        _strip_signature(folder),
    ),
    "no signature": lambda folder, _: _strip_signature(folder),
    "receipt of an older version": lambda folder, _: (
        _redigest(folder / "receipt.json", lambda record: record.update(schema_version=1)),
        _redigest(
            folder / "step.json",
            lambda record: record.update(
                receipt=json.loads((folder / "receipt.json").read_text())["ref"]
            ),
        ),
        _strip_signature(folder),
    ),
    "receipt changed": lambda folder, _: _redigest(
        folder / "receipt.json", lambda record: record.update(watch="none")
    ),
}


@pytest.mark.parametrize("forgery", sorted(FORGERIES))
def test_a_version_forged_with_fitting_digests_is_refused(
    forgery: str, repository: Path, workspace: Workspace, tmp_path: Path
) -> None:
    promoted(workspace, repository, "n + 1")
    assert promoted_steps.resolve_step(repository, "a@1").version == 1
    FORGERIES[forgery](repository / "pipelines/promoted/a/1", tmp_path)
    with pytest.raises(ContractError, match=r"is not trusted|was changed|another notebook"):
        promoted_steps.resolve_step(repository, "a@1")


def _without_payload(folder: Path, _: Path) -> None:
    _redigest(folder / "step.json", lambda record: record.pop("payload"))


def _linked_notebook(folder: Path, _: Path) -> None:
    (folder / "a.ipynb").rename(folder.parent / "other.ipynb")
    (folder / "a.ipynb").symlink_to("../other.ipynb")


SHAPES: dict[str, Callable[[Path, Path], object]] = {
    "no payload": _without_payload,
    "a link": _linked_notebook,
    **{
        f"{file} {content[:9]}": lambda folder, _, file=file, content=content: (
            (folder / file).chmod(0o644),
            (folder / file).write_text(content),
        )
        for file in ("step.json", "receipt.json")
        for content in ("[" * 100_000, "[]", '{"ref": 1, "record": []}', "null", "")
    },
}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_version_of_another_shape_is_refused_by_name(
    shape: str, repository: Path, workspace: Workspace, tmp_path: Path
) -> None:
    promoted(workspace, repository, "n + 1")
    SHAPES[shape](repository / "pipelines/promoted/a/1", tmp_path)
    with pytest.raises(ContractError, match="a promoted version never changes"):
        promoted_steps.resolve_step(repository, "a@1")


def test_the_receipt_of_another_notebook_is_refused(repository: Path, workspace: Workspace) -> None:
    promoted(workspace, repository, "n + 1", step="a")
    promoted(workspace, repository, "n + 2", step="b")
    folder = repository / "pipelines/promoted"
    other = json.loads((folder / "b/1/receipt.json").read_text())
    _write(folder / "a/1/receipt.json", other)
    _redigest(folder / "a/1/step.json", lambda record: record.update(receipt=other["ref"]))
    with pytest.raises(ContractError, match="belongs to another notebook"):
        promoted_steps.load_step(repository, "a", 1)
    fields = {name: other["record"][name] for name in promoted_steps.IDENTITY_FIELDS}
    _redigest(folder / "a/1/step.json", lambda record: record.update(fields))
    with pytest.raises(ContractError, match="is not trusted"):
        promoted_steps.load_step(repository, "a", 1)


def test_a_version_promoted_before_versions_were_signed_is_still_loaded(
    repository: Path, workspace: Workspace
) -> None:
    promoted(workspace, repository, "n + 1")
    folder = repository / "pipelines/promoted/a/1"
    _redigest(folder / "receipt.json", lambda record: record.update(schema_version=1))
    receipt = json.loads((folder / "receipt.json").read_text())
    key = signing_key(workspace)
    receipt["signature"] = sign_reference(key, "check receipt", receipt["ref"])
    _write(folder / "receipt.json", receipt)
    _redigest(folder / "step.json", lambda record: record.update(receipt=receipt["ref"]))
    _strip_signature(folder)
    assert promoted_steps.load_step(repository, "a", 1).version == 1
    _redigest(folder / "step.json", lambda record: _other_notebook(folder, record))
    with pytest.raises(ContractError, match="not the notebook that was checked"):
        promoted_steps.load_step(repository, "a", 1)


def test_another_machine_trusts_the_keys_of_the_repository(
    repository: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(workspace, repository, "n + 1")
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "elsewhere" / ".workbench"))
    assert promoted_steps.load_step(repository, "a", 1).version == 1
    for key in (repository / "pipelines/promoted/keys").iterdir():
        key.unlink()
    with pytest.raises(ContractError, match="signed with another key"):
        promoted_steps.load_step(repository, "a", 1)


def test_promotions_and_moves_are_in_the_audit_log(repository: Path, workspace: Workspace) -> None:
    step = promoted(workspace, repository, "n + 1").promoted
    promoted_steps.move_alias(workspace, repository, "a@1", "production", by="ann")
    promoted_steps.move_alias(workspace, repository, "a@1", "production", by="ann")  # no change
    first, second = read_log(workspace, step.ref)
    assert (first.event, first.detail["owner"], first.detail["reviewer"]) == (
        "promoted",
        "ann",
        "bob",
    )
    assert (second.event, second.by, second.detail["alias"]) == ("alias-moved", "ann", "production")
    assert verify_log(workspace).problems == ()
