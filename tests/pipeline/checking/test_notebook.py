"""marimo apps: parameters are applied, contracts are read, and checks pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.checking.test_dynamic_checks import RecordingDisplay
from workbench.core.errors import ContractError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract
from workbench.pipeline.checking import check, notebook, receipts, static_checks
from workbench.records.store import Store
from workbench.records.types import Selection

APP = """# /// script
# requires-python = ">=3.11"
# [tool.workbench]
# owner = "ana"
# [tool.workbench.outputs.selection]
# kind = "selection"
# [tool.workbench.resources]
# timeout_s = 60
# [tool.workbench.fixture.other]
# n = 2
# ///
import marimo

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    import workbench
    from workbench.records.types import SelectedFrame, Selection


@app.cell
def hand_over(n, step):
    chosen = (SelectedFrame(frame="0" * 64, rank=1, score=float(n)),)
    made = Selection(dataset="dataset/" + "0" * 64, budget=n, seed=0, method="m", chosen=chosen)
    step.output("selection", step.store.put(made))
    return


@app.cell
def parameters():
    n: int = 1
    return (n,)


@app.cell
def connect():
    step = workbench.step()
    return (step,)


if __name__ == "__main__":
    app.run()
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(APP)
    return path


def test_the_parameters_cell_is_tagged_and_comes_first(workspace: Workspace, app: Path) -> None:
    path = notebook.as_ipynb(workspace, app)
    cells = json.loads(path.read_text())["cells"]
    assert [c["metadata"]["marimo"]["name"] for c in cells[:2]] == ["setup", "parameters"]
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    assert static_checks.run_static_checks(path) == []
    declaration = contract.read_contract(path).declaration
    assert (declaration.owner, declaration.outputs["selection"].kind) == ("ana", "selection")
    assert notebook.as_ipynb(workspace, app) == path


@pytest.mark.slow
def test_an_app_passes_the_check_and_uses_its_parameters(workspace: Workspace, app: Path) -> None:
    report = check.check_notebook(workspace, app, RecordingDisplay())
    assert report.passed, report.findings
    assert report.checks["parameters"] == "passed"
    assert receipts.fresh_receipt(workspace, app)[0] == report.receipt
    trial = Workspace(workspace.root / "checks" / "trials" / "mine" / "third")
    outputs = json.loads((trial.runs / "check" / "mine" / "outputs.json").read_text())
    assert Store(trial).get(outputs["selection"], Selection).budget == 2
    app.write_text(APP.replace("float(n)", "float(n) + 1"))
    with pytest.raises(Exception, match="void"):
        receipts.fresh_receipt(workspace, app)


def test_a_contract_can_be_a_literal(workspace: Workspace, app: Path) -> None:
    literal = "__workbench__ = {'outputs': {'selection': {'kind': 'selection'}}}\n    step ="
    app.write_text("import marimo" + APP.partition("import marimo")[2].replace("step =", literal))
    path = notebook.as_ipynb(workspace, app)
    assert set(contract.read_contract(path).declaration.outputs) == {"selection"}


def test_a_file_that_is_not_a_marimo_app_is_rejected(workspace: Workspace, app: Path) -> None:
    app.write_text("print(1\n")
    with pytest.raises(ContractError, match="cannot export"):
        notebook.as_ipynb(workspace, app)
    app.write_text(APP.replace('kind = "selection"', "kind = "))
    with pytest.raises(ContractError, match="invalid TOML"):
        notebook.as_ipynb(workspace, app)
    with pytest.raises(ContractError, match="no such notebook"):
        notebook.as_ipynb(workspace, app.with_name("none.py"))
