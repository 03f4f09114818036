"""papermill's own test notebooks have the same results as with papermill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from nbclient.exceptions import CellExecutionError
from papermill.exceptions import PapermillExecutionError

from workbench.core.errors import ContractError, ParameterError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline.executors.local import run_once
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec

SHIPPED = Path(papermill.__file__).parent / "tests" / "notebooks"
QUICK = {
    "simple_execute": {"msg": "hello"},
    "broken1": {},
    "sysexit0": {},
    "no_parameters": {},
}
SLOW = {
    "broken": {},
    "broken2": {},
    "complex_parameters": {},
    "line_magic_error": {},
    "nb_version_4.4": {"var": 3},
    "read_check": {},
    "report_mode_test": {"a": 2},
    "result_no_exec": {},
    "sysexit": {},
    "sysexit1": {},
    "systemexit": {},
    "test_autosave": {},
    "test_notebooknode_io": {},
    "blank-vscode": {},
}
# Not here: binder (calls papermill on a path of its own checkout), keyboard_interrupt (waits for a
# person), test_logging (wants ggplot), notimplemented_translator (R, refused below).
CASES = [*QUICK.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items())]


def ours(workspace: Workspace, notebook: Path, given: dict[str, Any], folder: Path) -> StepResult:
    contract = contracts.read_contract(notebook)
    spec = StepSpec(
        step=notebook.stem,
        notebook=str(notebook),
        home=str(workspace.root),
        folder=str(folder),
        cache=str(workspace.scratch / "cache"),
        parameters=contract.validate(given),
        inputs={},
        declared_inputs={},
        declared_outputs={},
        threads=1,
        timeout_s=120,
        memory_gib=4,
        environment={},
    )
    return run_once(spec)


def shown(executed: Path) -> list[Any]:
    """What each code cell printed, returned or raised; how a text was cut in pieces is chance."""
    cells = [
        cell
        for cell in json.loads(executed.read_text())["cells"]
        if cell["cell_type"] == "code"
        and "papermill-error-cell-tag" not in cell["metadata"].get("tags", [])
    ]
    return [
        [
            "".join(text for out in cell["outputs"] for text in out.get("text", ())),
            [(out.get("ename"), out.get("data")) for out in cell["outputs"] if "text" not in out],
        ]
        for cell in cells
    ]


@pytest.mark.parametrize(("name", "given"), CASES)
def test_the_result_is_that_of_papermill(
    name: str, given: dict[str, Any], workspace: Workspace, tmp_path: Path
) -> None:
    notebook = tmp_path / f"{name}.ipynb"
    shutil.copy(SHIPPED / f"{name}.ipynb", notebook)
    theirs, folder = tmp_path / "theirs", workspace.runs / "one" / "step"
    for where in (theirs, folder):
        where.mkdir(parents=True)
        (where / "check.txt").touch()  # that one of them looks for beside itself
    failed = False
    try:
        papermill.execute_notebook(
            str(notebook),
            str(theirs / "executed.ipynb"),
            given,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(theirs),
        )
    except (PapermillExecutionError, CellExecutionError):
        failed = True
    result = ours(workspace, notebook, given, folder)
    assert (result.status is ExitStatus.USER_ERROR) == failed, result.failure
    if not failed:
        assert result.status is ExitStatus.OK
    texts = [json.dumps(shown(path / "executed.ipynb")) for path in (theirs, folder)]
    assert texts[0].replace(str(theirs), "") == texts[1].replace(str(folder), "")


def test_unknown_parameters_and_other_languages_are_rejected() -> None:
    with pytest.raises(ParameterError, match=r"unknown parameter 'mgs'.*Did you mean 'msg'"):
        contracts.read_contract(SHIPPED / "simple_execute.ipynb").validate({"mgs": "hello"})
    with pytest.raises(ContractError, match="written in R, not in Python"):
        contracts.read_contract(SHIPPED / "notimplemented_translator.ipynb")


def test_annotated_parameters_leave_no_warnings_in_the_log(
    workspace: Workspace, tmp_path: Path
) -> None:
    cell = nbformat.v4.new_code_cell(
        "from typing import Annotated\nrate: Annotated[float, 1] = 3.0"
    )
    cell.metadata["tags"] = ["parameters"]
    cells = [cell, nbformat.v4.new_code_cell("print(rate)")]
    notebook, folder = tmp_path / "annotated.ipynb", tmp_path / "run"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), notebook)
    folder.mkdir()
    assert ours(workspace, notebook, {"rate": 7.0}, folder).status is ExitStatus.OK
    assert "7.0" in (folder / "output.txt").read_text()
    assert "arameter" not in (folder / "log.txt").read_text()
    assert "Unable to parse" not in (folder / "log.txt").read_text()
