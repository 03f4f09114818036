"""Runs are listed, found, followed and cancelled; killed runs are detected."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from workbench.cli import cli
from workbench.core.errors import ParameterError, RecordError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import runs, step_output
from workbench.pipeline.runs import RunState, StepState
from workbench.pipeline.spec import OUTPUT_FILE

# A runner as the real one behaves: it writes run.json and ends its run on request.
RUNNER = """
import json, os, signal, sys, time
from pathlib import Path
import psutil
home, run_id = Path(sys.argv[1]), sys.argv[2]
file = home / "runs" / run_id / "run.json"
step = file.parent / "a"
step.mkdir(parents=True)
state = {"schema_version": 1, "run_id": run_id, "pipeline": "trial", "pipeline_file": "trial.yaml",
        "parameters": {}, "pid": os.getpid(), "pid_started": psutil.Process().create_time(),
        "host": os.uname().nodename, "started_at": "2026-01-01T00:00:00+00:00", "ended_at": None,
        "status": "running", "new_key": 1,
        "steps": [{"name": "a", "status": "running", "seconds": None, "reason": "",
                   "folder": str(step)}]}
def write():
    file.with_suffix(".new").write_text(json.dumps(state))
    file.with_suffix(".new").rename(file)
def stop(*_):
    with (file.parent / "signals").open("a") as signals:
        signals.write("x")
    if sys.argv[3] == "polite":
        state.update(status="cancelled", ended_at="2026-01-01T00:00:09+00:00")
        state["steps"][0].update(status="failed", reason="cancelled", seconds=9.0)
        write()
        sys.exit(0)
signal.signal(signal.SIGTERM, stop)
write()
time.sleep(120)
"""


@pytest.fixture
def runner(
    workspace: Workspace, request: pytest.FixtureRequest
) -> Iterator[subprocess.Popen[bytes]]:
    stubborn = getattr(request, "param", "polite")
    arguments = [
        sys.executable,
        "-c",
        RUNNER,
        str(workspace.root),
        "20260101-000000-aaaa",
        stubborn,
    ]
    process = subprocess.Popen(arguments)
    deadline = time.monotonic() + 20
    # Its folder is there before its file.
    while not any(run.alive for run in runs.list_runs(workspace)) and time.monotonic() < deadline:
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_a_copied_workspace_does_not_cancel_the_run_of_its_original(
    workspace: Workspace, runner: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    runs.save_run(workspace, runs.find_run(workspace))
    copy = Workspace(tmp_path / "copy")
    shutil.copytree(workspace.root, copy.root)
    run = runs.find_run(copy)
    assert (run.state, run.alive) == ("killed", False)
    with pytest.raises(WorkbenchError, match="is not running"):
        runs.cancel_run(copy, run)
    assert runner.poll() is None
    assert runs.step_folder(copy, run, run.steps[0]) == copy.runs / run.run_id / "a"
    workspace.root.rename(tmp_path / "moved")
    assert runs.find_run(Workspace(tmp_path / "moved")).alive


def save(workspace: Workspace, run_id: str, **given: object) -> RunState:
    run = RunState.model_validate(
        {"run_id": run_id, "pipeline": "trial", "status": "succeeded", **given}
    )
    runs.save_run(workspace, run)
    return run


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_runs_are_listed_newest_first_and_found_by_prefix(workspace: Workspace) -> None:
    for run_id, pipeline in (
        ("20260101-a1", "one"),
        ("20260102-b1", "two"),
        ("20260102-b2", "two"),
    ):
        save(workspace, run_id, pipeline=pipeline)
    (workspace.runs / "20260103-rubbish").mkdir()
    (workspace.runs / "20260103-rubbish" / "run.json").write_text('{"half": ')
    listed = json.loads(invoke("runs", "--json"))["runs"]
    assert [run["run_id"] for run in listed] == ["20260102-b2", "20260102-b1", "20260101-a1"]
    only = json.loads(invoke("runs", "--pipeline", "one", "--json"))["runs"]
    assert [run["run_id"] for run in only] == ["20260101-a1"]
    assert runs.find_run(workspace).run_id == "20260102-b2"
    assert runs.find_run(workspace, "20260101").run_id == "20260101-a1"
    with pytest.raises(ParameterError, match="ambiguous run id: 2 matches"):
        runs.find_run(workspace, "20260102")
    with pytest.raises(RecordError, match="unknown run id"):
        runs.find_run(workspace, "2027")


def test_without_runs_the_error_says_how_to_start_one(workspace: Workspace) -> None:
    assert invoke("runs").startswith("no runs in ")
    with pytest.raises(RecordError, match="workbench run PIPELINE"):
        runs.find_run(workspace)


def test_a_killed_runner_is_distinguished_from_a_running_one(
    workspace: Workspace, runner: subprocess.Popen[bytes]
) -> None:
    assert runs.find_run(workspace).state == "running"
    runner.kill()
    runner.wait()
    assert runs.find_run(workspace).state == "killed"
    assert "continues from here" in invoke("runs", "show", "latest")
    with pytest.raises(WorkbenchError, match="its status is killed"):
        runs.cancel_run(workspace, runs.find_run(workspace))


def test_a_reused_process_id_is_not_the_runner(workspace: Workspace) -> None:
    mine = {"status": "running", "pid": os.getpid(), "started_at": "2026-01-01T00:00:00+00:00"}
    assert save(workspace, "1", **mine, pid_started=runs.process_start_time()).state == "running"
    assert (
        save(workspace, "2", **mine, pid_started=runs.process_start_time() - 60).state == "killed"
    )
    assert save(workspace, "3", **mine, pid_started=1.0, host="another").state == "running"


def test_cancel_ends_the_run_and_reports_its_status(
    workspace: Workspace, runner: subprocess.Popen[bytes]
) -> None:
    state = json.loads(invoke("cancel", "20260101", "--json"))
    assert (state["stopped"], state["status"]) == (True, "cancelled")
    runner.wait(5)


@pytest.mark.parametrize("runner", ["counting"], indirect=True)
@pytest.mark.usefixtures("runner")
def test_two_cancels_send_one_signal(workspace: Workspace) -> None:
    for _ in range(2):
        runs.cancel_run(workspace, runs.find_run(workspace), wait_s=0.5)
    assert (workspace.runs / "20260101-000000-aaaa" / "signals").read_text() == "x"


def test_a_run_on_another_machine_is_cancelled_by_a_file(workspace: Workspace) -> None:
    run = save(workspace, "1", status="running", pid=1, host="another")
    assert runs.cancel_run(workspace, run, wait_s=0.1).state == "running"
    assert (workspace.runs / "1" / runs.CANCEL_FILE).exists()


@pytest.mark.parametrize("runner", ["stubborn"], indirect=True)
@pytest.mark.usefixtures("runner")
def test_cancel_reports_a_run_that_does_not_stop(workspace: Workspace) -> None:
    result = CliRunner().invoke(cli, ["cancel", "--wait", "0.5", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["stopped"]) == (1, False)


def test_logs_contain_output_log_and_traceback(workspace: Workspace) -> None:
    folder = workspace.runs / "1" / "a"
    folder.mkdir(parents=True)
    (folder / OUTPUT_FILE).write_text("--- cell 3\nloss 0.5\n")
    (folder / "log.txt").write_text("kernel started\n")
    failure = {"kind": "user-error", "message": "KeyError: 'gone'", "traceback": "Traceback …\n"}
    (folder / "result.json").write_text(json.dumps({"failure": {**failure, "cell": 3}}))
    steps = (StepState(name="a", status="failed"), StepState(name="b", status="not-reached"))
    save(workspace, "1", status="failed", steps=steps)
    text = invoke("logs")
    for part in ("==> a: failed", "loss 0.5", "kernel started", "Traceback …", "cell: 3"):
        assert part in text
    state = json.loads(invoke("logs", "latest", "a", "--json"))["steps"]
    assert [step["name"] for step in state] == ["a"]
    assert state[0]["failure"].startswith("Traceback …")
    with pytest.raises(ParameterError, match="Known: a, b"):
        CliRunner().invoke(cli, ["logs", "latest", "c"], catch_exceptions=False)


def test_a_tail_handles_missing_partial_and_replaced_files(tmp_path: Path) -> None:
    path = tmp_path / "output.txt"
    tail = step_output.FileTail(path)
    assert tail.lines() == []
    path.write_bytes("eins\nzwei ü".encode()[:-1])
    assert tail.lines() == ["eins"]
    with path.open("ab") as stream:
        stream.write("ü".encode()[-1:] + b"\n 1%\r99%\r\n\nhalf")
    assert tail.lines() == ["zwei ü", "99%", ""]
    assert tail.lines(last=True) == ["half"]
    new = tmp_path / "new"
    new.write_text("again, and longer than the first file was before it went away\n")
    new.rename(path)
    assert tail.lines() == ["again, and longer than the first file was before it went away"]
    path.write_text("cut\n")
    assert tail.lines() == ["cut"]


def test_following_ends_with_the_run(workspace: Workspace, runner: subprocess.Popen[bytes]) -> None:
    folder = workspace.runs / "20260101-000000-aaaa" / "a"
    lines: list[str] = []
    ends: list[RunState] = []

    def watch() -> None:
        ends.append(step_output.follow_logs(workspace, "20260101-000000-aaaa", lines.append))

    thread = threading.Thread(target=watch)
    thread.start()
    with (folder / OUTPUT_FILE).open("a") as stream:
        stream.write("--- cell 1\nlive\n")
    deadline = time.monotonic() + 10
    while "a | live" not in lines and time.monotonic() < deadline:
        time.sleep(0.05)
    assert thread.is_alive()
    runner.terminate()
    runner.wait()
    thread.join(10)
    assert lines == ["a | --- cell 1", "a | live", "a | --- failed in 9.0 s"]
    assert ends[0].state == "cancelled"


def test_followed_progress_has_time_remainder_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(step_output.time, "monotonic", lambda: now[0])
    progress = step_output._Progress(step_output.StepFiles(tmp_path))
    assert progress.line() is None
    for done, loss in ((10, 4.0), (20, 2.0)):
        (tmp_path / "progress.json").write_text(json.dumps({"done": done, "total": 100}))
        with (tmp_path / "metrics.jsonl").open("a") as stream:
            point = {"name": "loss", "value": loss, "step": done, "at": 0.0}
            stream.write(json.dumps(point) + "\n")
        line = progress.line()
        assert line is not None and re.match(r"\d\d:\d\d:\d\d  ", line)
        assert line[10:] == (
            "10 of 100  loss 4" if done == 10 else "20 of 100  about 80 s left  loss 2"
        )
        assert progress.line() is None, "at most every ten seconds"
        now[0] += 10


def test_a_new_run_is_the_latest_even_if_the_clock_was_set_back(workspace: Workspace) -> None:
    first = runs.new_run_id(workspace)
    future = "20991231-235959-ffff"
    for name in (first, future, "20991332-000000-ffff", "notes", "a-b-c"):
        (workspace.runs / name).mkdir(parents=True)
    for _ in range(3):
        later = runs.new_run_id(workspace)
        assert later > future
        (workspace.runs / later).mkdir()
        future = later
    assert future.startswith("21000101-00000")
