"""Notebooks really run on their fixtures: each promise broken once, and found at its cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.checking.books import CONTRACT, OUT, PARAMETERS, STEP, book, good
from workbench.core.errors import ContractError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline.checking import check, dynamic_checks, receipts, seccomp, watch
from workbench.pipeline.checking.check import CheckReport
from workbench.pipeline.checking.findings import Finding

TWICE = {**CONTRACT, "fixture": {}}
"""A contract without other parameters: two runs instead of three."""


class Quiet:
    """Somebody who watches a check and keeps what was said."""

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
    return check.check_notebook(workspace, path, Quiet())


def errors(report: CheckReport) -> list[Finding]:
    return [finding for finding in report.findings if finding.is_error]


def rules(report: CheckReport) -> list[tuple[str, int | None]]:
    return [(finding.rule, finding.cell) for finding in errors(report)]


def test_a_good_notebook_gets_a_receipt_that_its_next_change_voids(
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


def test_reads_writes_and_connections_are_found_at_their_cells(
    workspace: Workspace, notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C++ readers included: that is what the kernel's own watch is for."""
    monkeypatch.setattr(watch, "temporary_folders", lambda: ("/nowhere",))  # tests live in /tmp
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
    found = {(one.cell, one.rule, Path(one.message.split()[-1]).name) for one in about}
    if report.watch != "complete":
        pytest.skip("no seccomp on this machine; the fallback has a test of its own")
    assert {one for one in found if "-journal" not in one[2]} == {
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
def test_a_broken_promise_is_found(
    workspace: Workspace, notebook: Path, work: str, rule: str, words: str
) -> None:
    out = OUT.replace("seed=0", "seed=n_now % 10**9") if "n_now" in work else OUT
    report = run(workspace, book(notebook, PARAMETERS, STEP, work, out, contract=TWICE))
    (found,) = errors(report)
    assert found.rule == rule
    assert words in found.message
    assert found.cell == (3 if words not in ("seed", "kernel died") else None)
    assert report.receipt is None


def test_an_empty_output_and_ignored_parameters_are_found(
    workspace: Workspace, notebook: Path
) -> None:
    out = OUT.replace("budget=n", "budget=1").replace("chosen=chosen", "chosen=()")
    report = run(workspace, book(notebook, PARAMETERS, STEP, out))
    assert rules(report) == [("output-empty", None), ("parameters-ignored", None)]
    assert set(report.checks) == {"static", "bad values", "runs", "reads and writes", "repeats"}


def test_over_its_budget_it_is_ended(workspace: Workspace, notebook: Path) -> None:
    resources = {"threads": 1, "timeout_s": 4, "memory_gib": 2}
    contract = {**CONTRACT, "resources": resources}
    report = run(workspace, good(notebook, "import time\ntime.sleep(60)", contract=contract))
    (found,) = errors(report)
    assert found.rule == "over-budget"
    assert "4 s" in found.message


def test_records_it_was_not_given_are_not_there(workspace: Workspace, notebook: Path) -> None:
    """The newest selection of the workspace is no input, so the check does not show it."""
    work = "newest = list(step.store.refs('selection'))\nassert newest, 'nothing mined'"
    report = run(workspace, good(notebook, work))
    (found,) = errors(report)
    assert (found.rule, found.cell) == ("failed", 3)
    assert "nothing mined" in found.message


def test_static_errors_stop_it_before_a_kernel_starts(workspace: Workspace, notebook: Path) -> None:
    report = run(workspace, good(notebook, "x = undefined_thing"))
    assert (report.ran, report.receipt) == (False, None)
    assert not (workspace.root / "checks").exists()


def test_a_parameter_of_any_type_is_said_to_take_anything(notebook: Path) -> None:
    cell = ("n: int = 1\nextra: Any = 3\nword: Literal['a'] = 'a'", ["parameters"])
    path = book(notebook, "from typing import Any, Literal", cell, STEP, "print(extra)", OUT)
    found = list(dynamic_checks._check_bad_values(contracts.read_contract(path)))
    assert [(one.rule, one.message) for one in found] == [
        ("accepts-anything", "parameter `extra` accepts any value")
    ]


def test_where_the_kernel_cannot_watch_python_does_and_says_so(
    workspace: Workspace, notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "can_watch", lambda: False)
    monkeypatch.setattr(watch, "temporary_folders", lambda: ("/nowhere",))
    secret = tmp_path / "x.txt"
    secret.write_text("x")
    where = f"words = open('/'.join({str(secret).split('/')!r})).read()"
    report = run(workspace, good(notebook, where, contract=TWICE))
    found = {(one.rule, one.cell) for one in report.findings}
    assert {("undeclared-read", 3), ("watch-incomplete", None)} <= found
    assert report.watch == "partial"
    assert "reads and writes" not in report.checks, "what found something has not passed"


@pytest.mark.slow
def test_inputs_are_made_by_the_pipeline_and_kept(workspace: Workspace, notebook: Path) -> None:
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
    teller = Quiet()
    assert check.check_notebook(workspace, notebook, teller).passed, report.findings
    assert any("preparing found" in note for note in teller.notes)
    assert not list((workspace.root / "records").glob("selection/*")), (
        "a check leaves no such record"
    )


def test_what_changes_while_it_is_checked_gets_no_receipt(
    workspace: Workspace, notebook: Path
) -> None:
    good(notebook, contract=TWICE)

    class Meddling(Quiet):
        def note(self, message: str) -> None:
            if message.startswith("run 2"):
                good(notebook, "m = 1", contract=TWICE)

    report = check.check_notebook(workspace, notebook, Meddling())
    assert rules(report) == [("changed-meanwhile", None)]
    assert report.receipt is None


def test_two_checks_of_one_notebook_do_not_meet(workspace: Workspace, notebook: Path) -> None:
    good(notebook)
    with (
        check._exclusive(workspace, notebook),
        pytest.raises(ContractError, match="another process is checking"),
    ):
        run(workspace, notebook)
