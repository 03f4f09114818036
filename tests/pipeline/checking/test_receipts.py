"""A receipt is signed, and void when code, parameters, contract, lock or packages change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.conftest import CONTRACT, write_notebook
from workbench.core.errors import VerificationError
from workbench.core.workspace import Workspace
from workbench.pipeline import environment
from workbench.pipeline.checking import receipts
from workbench.records.store import Store


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    (tmp_path / receipts.LOCK_FILE).write_text("numpy==2\n")
    return write_notebook(tmp_path / "notebooks" / "steps" / "a.ipynb", "x = 1")


def issue(workspace: Workspace, notebook: Path) -> str:
    return receipts.issue_receipt(
        workspace, notebook, checks={"static": "passed"}, watch="complete"
    )


def test_a_fresh_receipt_is_returned_and_verified(workspace: Workspace, notebook: Path) -> None:
    ref = issue(workspace, notebook)
    fresh, receipt = receipts.fresh_receipt(workspace, notebook)
    assert fresh == ref
    assert receipt.checks == {"static": "passed"}
    assert receipts.verify_receipt(workspace, ref) == receipt


def test_a_notebook_without_a_check_has_no_receipt(workspace: Workspace, notebook: Path) -> None:
    with pytest.raises(VerificationError, match="no receipt"):
        receipts.fresh_receipt(workspace, notebook)


def test_markdown_and_execution_counts_do_not_void_it(workspace: Workspace, notebook: Path) -> None:
    ref = issue(workspace, notebook)
    content = json.loads(notebook.read_text())
    content["cells"].insert(0, {"cell_type": "markdown", "id": "m", "metadata": {}, "source": "x"})
    content["cells"][1]["execution_count"] = 7
    notebook.write_text(json.dumps(content))
    assert receipts.fresh_receipt(workspace, notebook)[0] == ref


def test_each_change_voids_it_and_is_listed(workspace: Workspace, notebook: Path) -> None:
    issue(workspace, notebook)
    write_notebook(notebook, "x = 2")
    with pytest.raises(VerificationError, match="void: cell 3 changed"):
        receipts.fresh_receipt(workspace, notebook)
    write_notebook(notebook, "x = 1", parameters="n: int = 2")
    with pytest.raises(VerificationError, match="void: cell 1 changed"):
        receipts.fresh_receipt(workspace, notebook)
    write_notebook(notebook, "x = 1", contract={**CONTRACT, "owner": "ana"})
    with pytest.raises(VerificationError, match="the contract changed"):
        receipts.fresh_receipt(workspace, notebook)
    write_notebook(notebook, "x = 1")
    (notebook.parents[2] / receipts.LOCK_FILE).write_text("numpy==3\n")
    with pytest.raises(VerificationError, match=r"requirements\.lock changed"):
        receipts.fresh_receipt(workspace, notebook)


def test_changed_packages_void_it(
    workspace: Workspace, notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(workspace, notebook)
    now = environment.current_environment()
    other = now.model_copy(update={"distributions": ("another==1#x", *now.distributions)})
    monkeypatch.setattr(environment, "current_environment", lambda: other)
    with pytest.raises(VerificationError, match="packages changed: another"):
        receipts.fresh_receipt(workspace, notebook)


def test_a_forged_or_missing_signature_is_rejected(workspace: Workspace, notebook: Path) -> None:
    ref = issue(workspace, notebook)
    store = Store(workspace)
    signature = store.side(ref, receipts.SIGNATURE)
    store.write_side(ref, receipts.SIGNATURE, {**signature, "signature": "AAAA"})
    with pytest.raises(VerificationError, match="is not valid"):
        receipts.fresh_receipt(workspace, notebook)
    store.write_side(ref, receipts.SIGNATURE, {**signature, "key": "0" * 64})
    with pytest.raises(VerificationError, match="another key"):
        receipts.fresh_receipt(workspace, notebook)
    (store.folder(ref) / "side" / "signature.json").unlink()
    with pytest.raises(VerificationError, match="not signed"):
        receipts.fresh_receipt(workspace, notebook)
