"""Checks that run notebooks on their fixtures: each violation is reported with its cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.checking.sample_notebooks import CONTRACT, OUT, PARAMETERS, STEP, book, good
from workbench.core.errors import ContractError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline.checking import check, receipts, seccomp, watch
from workbench.pipeline.checking.check import CheckReport
from workbench.pipeline.checking.findings import Finding

TWICE = {**CONTRACT, "fixture": {}}
"""A contract without other parameters: two runs instead of three."""


class RecordingDisplay:
    """A display that keeps the notes of a check."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: int, total: int) -> None:
        pass


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return tmp_path / "project" / "notebooks" / "steps" / "a.ipynb"


def run(workspace: Workspace, path: Path) -> CheckReport:
    return check.check_notebook(workspace, path, RecordingDisplay())


def errors(report: CheckReport) -> list[Finding]:
    return [finding for finding in report.findings if finding.is_error]


def rules(report: CheckReport) -> list[tuple[str, int | None]]:
    return [(finding.rule, finding.cell) for finding in errors(report)]


def test_a_valid_notebook_gets_a_receipt_that_a_change_voids(
    workspace: Workspace, notebook: Path
) -> None:
    good(notebook, "import tempfile\nwith tempfile.NamedTemporaryFile('w') as s: s.write('x')")
    report = run(workspace, notebook)
    assert report.passed, report.findings
    assert set(report.checks.values()) <= {"passed", "partial"}
    assert report.outputs["selection"].startswith("selection/")
    ref, receipt = receipts.fresh_receipt(workspace, notebook)
    assert (ref, receipt.outputs) == (report.receipt, dict(report.outputs))
    good(notebook, "m = 1")
    with pytest.raises(Exception, match="void"):
        receipts.fresh_receipt(workspace, notebook)


def test_undeclared_accesses_are_reported_with_their_cells(
    workspace: Workspace, notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accesses of native libraries and child processes are included."""
    monkeypatch.setattr(watch, "_temporary_folders", lambda: ("/nowhere",))  # tests live in /tmp
    data = tmp_path / "data"
    data.mkdir()
    _fill(data)
    project = notebook.parents[2]
    (project / "declared").mkdir(parents=True)
    (project / "declared" / "fine.txt").write_text("fine")
    where = f"from pathlib import Path\nroot = Path('/'.join({str(data).split('/')!r}))"
    cells = [
        where,
        "import pandas as pd\nframe = pd.read_parquet(root / 'x.parquet')",
        "import cv2\npicture = cv2.imread(str(root / 'x.png'))",
        "import numpy as np\nnumbers = np.load(root / 'x.npy')",
        "import sqlite3\nrows = sqlite3.connect(root / 'x.db').execute('select 1').fetchall()",
        "words = (root / 'x.txt').read_text()",
        "(root / 'made.txt').write_text('x')",
        "import socket\nhere = socket.socket()\nhere.connect_ex(('127.0.0.1', 9))",
        "import subprocess\nsubprocess.run(['cat', str(root / 'child.txt')], check=True)",
        "fine = step.path('declared/fine.txt').read_text()",
    ]
    contract = {**TWICE, "access": {"reads": ["declared"]}}
    report = run(workspace, good(notebook, *cells, contract=contract))
    about = [one for one in errors(report) if str(data) in one.message or "127" in one.message]
    findings = {(one.cell, one.rule, Path(one.message.split()[-1]).name) for one in about}
    if report.watch != "complete":
        pytest.skip("no seccomp on this machine")
    assert {one for one in findings if "-journal" not in one[2]} == {
        (4, "undeclared-read", "x.parquet"),
        (5, "undeclared-read", "x.png"),
        (6, "undeclared-read", "x.npy"),
        (7, "undeclared-write", "x.db"),
        (8, "undeclared-read", "x.txt"),
        (9, "undeclared-write", "made.txt"),
        (10, "undeclared-network", "127.0.0.1:9"),
        (11, "undeclared-read", "child.txt"),
    }
    assert report.receipt is None


def _fill(data: Path) -> None:
    import cv2
    import numpy as np
    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet(data / "x.parquet")
    cv2.imwrite(str(data / "x.png"), np.zeros((8, 8, 3), np.uint8))
    np.save(data / "x.npy", np.zeros(3))
    for name in ("x.txt", "child.txt"):
        (data / name).write_text("x")


@pytest.mark.parametrize(
    ("work", "rule", "words"),
    [
        ("import time\nn_now = time.time_ns()", "not-repeatable", "seed"),
        ("1 / 0", "failed", "ZeroDivisionError"),
        ("import os\nos.kill(os.getpid(), 9)", "failed", "kernel died"),
        ("print('gh' + 'p_' + 'a1B2' * 9)", "secret-in-output", "GitHub"),
    ],
)
def test_each_violation_is_reported(
    workspace: Workspace, notebook: Path, work: str, rule: str, words: str
) -> None:
    out = OUT.replace("seed=0", "seed=n_now % 10**9") if "n_now" in work else OUT
    report = run(workspace, book(notebook, PARAMETERS, STEP, work, out, contract=TWICE))
    (finding,) = errors(report)
    assert finding.rule == rule
    assert words in finding.message
    assert finding.cell == (3 if words not in ("seed", "kernel died") else None)
    assert report.receipt is None


def test_an_empty_output_and_ignored_parameters_are_reported(
    workspace: Workspace, notebook: Path
) -> None:
    out = OUT.replace("budget=n", "budget=1").replace("chosen=chosen", "chosen=()")
    report = run(workspace, book(notebook, PARAMETERS, STEP, out))
    assert rules(report) == [("output-empty", None), ("parameters-ignored", None)]
    assert set(report.checks) == {"static", "bad values", "runs", "reads and writes", "repeats"}


def test_a_run_over_its_budget_is_stopped(workspace: Workspace, notebook: Path) -> None:
    resources = {"threads": 1, "timeout_s": 4, "memory_gib": 2}
    contract = {**CONTRACT, "resources": resources}
    report = run(workspace, good(notebook, "import time\ntime.sleep(60)", contract=contract))
    (finding,) = errors(report)
    assert finding.rule == "over-budget"
    assert "4 s" in finding.message


def test_other_records_of_the_workspace_are_hidden(workspace: Workspace, notebook: Path) -> None:
    """Records that are not inputs are missing from the trial's workspace."""
    work = "newest = list(step.store.refs('selection'))\nassert newest, 'nothing mined'"
    report = run(workspace, good(notebook, work))
    (finding,) = errors(report)
    assert (finding.rule, finding.cell) == ("failed", 3)
    assert "nothing mined" in finding.message


def test_static_errors_prevent_the_runs(workspace: Workspace, notebook: Path) -> None:
    report = run(workspace, good(notebook, "x = undefined_thing"))
    assert (report.ran, report.receipt) == (False, None)
    assert not (workspace.root / "checks").exists()


def test_a_parameter_that_accepts_anything_is_reported(notebook: Path) -> None:
    cell = ("n: int = 1\nextra: Any = 3\nword: Literal['a'] = 'a'", ["parameters"])
    path = book(notebook, "from typing import Any, Literal", cell, STEP, "print(extra)", OUT)
    findings = list(check._check_bad_values(contracts.read_contract(path)))
    assert [(one.rule, one.message) for one in findings] == [
        ("accepts-anything", "parameter `extra` accepts any value")
    ]


def test_without_seccomp_the_audit_hooks_report_partial_coverage(
    workspace: Workspace, notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "can_watch", lambda: False)
    monkeypatch.setattr(watch, "_temporary_folders", lambda: ("/nowhere",))
    secret = tmp_path / "x.txt"
    secret.write_text("x")
    where = f"words = open('/'.join({str(secret).split('/')!r})).read()"
    report = run(workspace, good(notebook, where, contract=TWICE))
    findings = {(one.rule, one.cell) for one in report.findings}
    assert {("undeclared-read", 3), ("watch-incomplete", None)} <= findings
    assert report.watch == "partial"
    assert "reads and writes" not in report.checks, "a check with findings has not passed"


@pytest.mark.slow
def test_fixture_inputs_are_made_by_the_pipeline(workspace: Workspace, notebook: Path) -> None:
    upstream = {"outputs": CONTRACT["outputs"], "resources": CONTRACT["resources"]}
    book(notebook.parent / "up.ipynb", PARAMETERS, STEP, OUT, contract=upstream)
    contract: dict[str, Any] = {
        **CONTRACT,
        "inputs": {"found": {"kind": "selection"}},
        "fixture": {
            "other": {"n": 2},
            "inputs": {"found": "pipelines/p.yaml:up.selection"},
            "pipeline": {"n": 4},
        },
    }
    work = "from workbench.records.types import Selection as S\n"
    work += "assert step.store.get(step.input('found'), S).budget == 4"
    good(notebook, work, contract=contract)
    pipeline = notebook.parents[2] / "pipelines" / "p.yaml"
    pipeline.parent.mkdir()
    pipeline.write_text(
        "schema_version: 1\nname: p\nparameters: {n: {type: int, default: 1}}\n"
        'steps:\n  up: {parameters: {n: "${n}"}}\n  broken: {notebook: nowhere}\n'
    )
    report = run(workspace, notebook)
    assert rules(report) == [("fixture-unready", None)]
    pipeline.write_text(pipeline.read_text().replace("  broken: {notebook: nowhere}\n", ""))
    display = RecordingDisplay()
    assert check.check_notebook(workspace, notebook, display).passed, report.findings
    assert any("preparing found" in note for note in display.notes)
    assert not list((workspace.root / "records").glob("selection/*")), (
        "a check leaves no record in the workspace"
    )


def test_a_notebook_that_changes_during_the_check_gets_no_receipt(
    workspace: Workspace, notebook: Path
) -> None:
    good(notebook, contract=TWICE)

    class ChangingDisplay(RecordingDisplay):
        def note(self, message: str) -> None:
            if message.startswith("run 2"):
                good(notebook, "m = 1", contract=TWICE)

    report = check.check_notebook(workspace, notebook, ChangingDisplay())
    assert rules(report) == [("changed-meanwhile", None)]
    assert report.receipt is None


def test_concurrent_checks_of_one_notebook_are_rejected(
    workspace: Workspace, notebook: Path
) -> None:
    good(notebook)
    with (
        check._exclusive(workspace, notebook),
        pytest.raises(ContractError, match="another process is checking"),
    ):
        run(workspace, notebook)
