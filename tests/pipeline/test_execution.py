"""Execution with real kernels: concurrency, gates, retries, cancellation, two runs at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import write_notebook
from tests.pipeline.test_graph import GATED, MANY, write_steps
from tests.pipeline.test_run import mlflow_uri, run, statuses
from workbench.core.errors import ContractError, ParameterError
from workbench.core.workspace import Workspace
from workbench.pipeline import plan, runs
from workbench.pipeline import run as running
from workbench.pipeline.graph import load_pipeline
from workbench.pipeline.run import RunReport

__all__ = ["mlflow_uri"]

pytestmark = pytest.mark.usefixtures("mlflow_uri")

JUDGE = """
from workbench.records.types import GateReport, Verdict
ref = step.store.put(GateReport(
    candidate='bundle/' + '0' * 64, dataset='dataset/' + '0' * 64, reference='bundle/' + '1' * 64,
    rules='0' * 64, verdict=Verdict.FAIL, gates=(), simulated=True))
step.output('gates', ref)
"""


def started(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()


def command(project: Path, workspace: Workspace) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", "run", str(project / "pipelines/trial.yaml"), "--json"],
        env={**os.environ, "WORKBENCH_HOME": str(workspace.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def step_of(report: RunReport, name: str) -> tuple[str, str]:
    found = next(step for step in report.steps if step.name == name)
    return found.status, found.reason


def test_steps_run_concurrently(project: Path, workspace: Workspace) -> None:
    steps = project / "notebooks/steps"
    meet = (
        "import pathlib, time\n"
        f"folder = pathlib.Path({str(project)!r})\n"
        "(folder / f'here-{n}').touch()\n"
        "until = time.monotonic() + 30\n"
        "while not (folder / f'here-{3 - n}').exists():\n"
        "    assert time.monotonic() < until, 'nobody runs beside me'\n"
        "    time.sleep(0.02)"
    )
    write_notebook(steps / "a.ipynb", meet)
    write_notebook(steps / "c.ipynb", "n = 100 + len(step.input_list('upstream'))", contract=MANY)
    write_steps(
        project,
        'a: {for_each: {n: [1, 2]}, parameters: {n: "${each.n}"}, resources: {threads: 1}}\n'
        "  c: {inputs: {upstream: a.selection}}",
    )
    first, watcher = run(project, workspace)
    assert statuses(first) == ["ran", "ran", "ran"], watcher.notes
    assert {"a[1].selection", "a[2].selection", "c.selection"} == set(first.outputs)
    again, _ = run(project, workspace)
    assert statuses(again) == ["skipped"] * 3
    assert again.outputs == first.outputs


def test_a_gate_decides_what_runs_below_it(project: Path, workspace: Workspace) -> None:
    steps = project / "notebooks/steps"
    path = write_notebook(steps / "gate.ipynb", JUDGE, contract=GATED)
    page = json.loads(path.read_text())
    page["cells"].pop()  # its selection
    path.write_text(json.dumps(page))
    write_steps(
        project,
        "gate: {}\n  a: {when: {gates: gate.gates}}\n"
        "  b: {when: {gates: gate.gates, verdict: [FAIL]}, after: [gate]}",
    )
    report, _ = run(project, workspace)
    assert step_of(report, "a") == ("not-reached", "gate.gates is FAIL; the step runs only on PASS")
    assert step_of(report, "b")[0] == "ran"
    assert report.status == "refused"


def test_a_dead_kernel_is_retried_and_both_attempts_are_kept(
    project: Path, workspace: Workspace
) -> None:
    mark = project / "died-once"
    write_notebook(
        project / "notebooks/steps/a.ipynb",
        f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), 9)",
    )
    write_steps(project, "a: {retries: {kernel-died: 1}, backoff_s: 0}")
    report, watcher = run(project, workspace)
    assert statuses(report) == ["ran"]
    assert any("retry 1 of 1 after kernel-died" in note and "MiB" in note for note in watcher.notes)
    folder = workspace.runs / report.run_id
    assert (folder / "a.attempt1" / "result.json").exists()
    assert (folder / "a" / "result.json").exists()
    assert "--- cell 1" in (folder / "a" / "output.txt").read_text()


def test_a_printed_secret_fails_the_step_and_is_redacted(
    project: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_KEY", "k3-9f2c1d7e55aa")
    contract = {"outputs": {"selection": {"kind": "selection"}}, "secrets": ["FLEET_KEY"]}
    write_notebook(
        project / "notebooks/steps/a.ipynb", "print(step.secret('FLEET_KEY'))", contract=contract
    )
    write_steps(project, "a: {}")
    report, _ = run(project, workspace)
    assert statuses(report) == ["failed"]
    assert "the value of secret FLEET_KEY was in" in report.reason
    for path in (workspace.runs / report.run_id).rglob("*"):
        if path.is_file():
            assert b"k3-9f2c1d7e55aa" not in path.read_bytes(), path


def require_absent(workspace: Workspace, secret: str) -> None:
    for path in workspace.root.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_a_killed_step_leaves_no_secret(
    project: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_KEY", "k3-9f2c1d7e55aa")
    work = (
        "import os, pathlib, psutil, time\nprint(step.secret('FLEET_KEY'))\n"
        "(step.folder / 'sub').mkdir()\n"
        "(step.folder / 'sub/x.csv').write_text(step.secret('FLEET_KEY'))\n"
        "for process in psutil.Process().parents()[:2]:\n    process.kill()\ntime.sleep(30)"
    )
    contract = {"outputs": {"selection": {"kind": "selection"}}, "secrets": ["FLEET_KEY"]}
    write_notebook(project / "notebooks/steps/a.ipynb", work, contract=contract)
    write_steps(project, "a: {retries: {}}")
    report, _ = run(project, workspace)
    assert statuses(report) == ["failed"]
    require_absent(workspace, "k3-9f2c1d7e55aa")


def test_a_secret_by_reference_reaches_the_step_and_no_record(
    project: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_KEY", "k3-9f2c1d7e55aa")
    contract = {"outputs": {"selection": {"kind": "selection"}}, "secrets": ["FLEET_KEY"]}
    write_notebook(
        project / "notebooks/steps/a.ipynb",
        "assert len(step.secret(db_password)) == 15\nstep.metric('length', 15)",
        parameters="n: int = 1\ndb_password: str = ''",
        contract=contract,
    )
    write_steps(project, 'a: {parameters: {db_password: "${env:FLEET_KEY}"}}')
    report, _ = run(project, workspace)
    assert statuses(report) == ["ran"], report.reason
    require_absent(workspace, "k3-9f2c1d7e55aa")
    write_steps(project, 'a: {parameters: {db_password: "${env:OTHER_KEY_PASSWORD}"}}')
    with pytest.raises(ParameterError, match="which the step may not read"):
        run(project, workspace)


def test_a_secret_in_the_notebook_or_in_a_record_fails_the_step(
    project: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_KEY", "k3-9f2c1d7e55aa")
    contract = {"outputs": {"selection": {"kind": "selection"}}, "secrets": ["FLEET_KEY"]}
    mark = project / "it-ran"
    write_notebook(
        project / "notebooks/steps/a.ipynb",
        f"key = 'k3-9f2c1d7e55aa'\nopen({str(mark)!r}, 'w').close()",
        contract=contract,
    )
    write_steps(project, "a: {}")
    report, _ = run(project, workspace)
    assert "the notebook contains the value of secret FLEET_KEY" in report.reason
    assert not mark.exists()
    write_notebook(
        project / "notebooks/steps/a.ipynb",
        "from workbench.records.types import Selection\n"
        "step.save('selection', Selection(dataset='dataset/' + '0' * 64, budget=1, seed=0,\n"
        "    method=step.secret('FLEET_KEY'), chosen=()))",
        contract=contract,
    )
    report, _ = run(project, workspace)
    assert statuses(report) == ["failed"]
    assert "the value of secret FLEET_KEY is in" in report.reason
    assert not report.outputs


def test_concurrent_runs_do_the_same_work_once(project: Path, workspace: Workspace) -> None:
    count, mark = project / "count", project / "started"
    write_notebook(
        project / "notebooks/steps/a.ipynb",
        f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\n"
        f"pathlib.Path({str(count)!r}).open('a').write('x')\ntime.sleep(3)",
    )
    write_steps(project, "a: {}")
    first = command(project, workspace)
    started(mark)
    report, watcher = run(project, workspace)
    assert step_of(report, "a") == ("skipped", "another run did it meanwhile")
    assert any("waiting for another run" in note for note in watcher.notes)
    first_report = json.loads(first.communicate(timeout=60)[0])
    assert (first_report["status"], first_report["outputs"]) == ("succeeded", report.outputs)
    assert count.read_text() == "x"


def test_a_run_is_cancelled_by_a_signal_and_leaves_no_process(
    project: Path, workspace: Workspace
) -> None:
    mark = project / "kernel"
    write_notebook(
        project / "notebooks/steps/a.ipynb",
        f"import os, pathlib, time\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(120)",
    )
    write_steps(project, "a: {}\n  b: {inputs: {upstream: a.selection}}")
    runner = command(project, workspace)
    started(mark)
    assert runs.find_run(workspace).state == "running"
    runner.send_signal(signal.SIGTERM)
    out, err = runner.communicate(timeout=60)
    assert runner.returncode == 130, err
    assert json.loads(out)["status"] == "cancelled"
    assert runs.find_run(workspace).state == "cancelled"
    kernel = Path("/proc") / mark.read_text()
    deadline = time.monotonic() + 10
    while kernel.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not kernel.exists()


def test_a_run_is_cancelled_by_a_file(project: Path, workspace: Workspace) -> None:
    mark = project / "started"
    write_notebook(
        project / "notebooks/steps/a.ipynb",
        f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(120)",
    )
    write_steps(project, "a: {}\n  b: {inputs: {upstream: a.selection}}")
    runner = command(project, workspace)
    started(mark)
    (workspace.runs / runs.find_run(workspace).run_id / runs.CANCEL_FILE).touch()
    _, err = runner.communicate(timeout=60)
    assert runner.returncode == 130, err
    assert runs.find_run(workspace).state == "cancelled"


def test_a_selected_step_needs_its_inputs(project: Path, workspace: Workspace) -> None:
    pipeline = load_pipeline(project / "pipelines/trial.yaml", {}, base=project)
    with pytest.raises(ContractError, match="needs the outputs of 'a'"):
        running.run_pipeline(
            workspace, pipeline, _Silent(), choice=plan.select_steps(pipeline, only=("b",))
        )
    running.run_pipeline(
        workspace, pipeline, _Silent(), choice=plan.select_steps(pipeline, only=("a",))
    )
    report = running.run_pipeline(
        workspace, pipeline, _Silent(), choice=plan.select_steps(pipeline, only=("b",))
    )
    assert statuses(report) == ["skipped", "ran"]
    assert step_of(report, "a")[1] == "not selected; its last outputs are used"


class _Silent:
    def note(self, message: str) -> None: ...
    def step_started(self, name: str, reasons: tuple[str, ...]) -> None: ...
    def step_progress(self, name: str, done: int, total: int) -> None: ...
    def step_ended(self, step: object) -> None: ...
