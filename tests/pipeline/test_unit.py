"""The unit of execution with real kernels: every outcome has its status; no process survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.conftest import write_notebook
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline.executors.local import run_once
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec

RAISE = "from workbench.core.errors import {0}\nraise {0}('no good', where='here', hint='do that')"


def spec_of(workspace: Workspace, notebook: Path, **changes: Any) -> StepSpec:
    contract = contracts.read_contract(notebook)
    outputs = contract.declaration.outputs
    given = {
        "step": "a",
        "notebook": str(notebook),
        "home": str(workspace.root),
        "folder": str(workspace.runs / "one" / "a"),
        "cache": str(workspace.scratch / "a"),
        "parameters": contract.validate({}),
        "inputs": {},
        "declared_inputs": {},
        "declared_outputs": {name: output.model_dump() for name, output in outputs.items()},
        "threads": 1,
        "timeout_s": 60,
        "memory_gib": 4,
        "environment": {},
    }
    return StepSpec(**{**given, **changes})


def run(workspace: Workspace, tmp_path: Path, work: str, **changes: Any) -> StepResult:
    notebook = write_notebook(tmp_path / "a.ipynb", work)
    return run_once(spec_of(workspace, notebook, **changes))


def test_a_step_runs_in_the_step_kernel(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    work = f"import pathlib\npathlib.Path({str(file)!r}).write_text(repr(get_ipython().kernel))"
    assert run(workspace, tmp_path, work).status is ExitStatus.OK
    assert "StepKernel" in file.read_text()


def test_a_notebook_that_was_changed_after_the_plan_does_not_run(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Its outputs would be recorded, and found again, as those of the code that was planned."""
    notebook = write_notebook(tmp_path / "a.ipynb", "print(1)")
    contract = contracts.read_contract(notebook)
    planned = spec_of(workspace, notebook, code=contract.code)
    assert contract.content == contracts.notebook_without_outputs(notebook)
    assert run_once(planned).status is ExitStatus.OK
    write_notebook(notebook, "print(2)")
    result = run_once(planned)
    assert result.status is ExitStatus.CONTRACT
    assert result.failure is not None
    assert "changed after the run was planned" in result.failure.message


@pytest.mark.parametrize(
    ("work", "command"),
    [
        ("!false", "false"),
        ("!exit 3", "exit 3"),
        ("lines = !ls no-such-file", "ls no-such-file"),
        ("%%bash\nexit 3", "exit status 3"),
        ("%sx false", "false"),
    ],
)
def test_a_failing_shell_command_fails_its_cell(
    workspace: Workspace, tmp_path: Path, work: str, command: str
) -> None:
    result = run(workspace, tmp_path, work)
    assert result.status is ExitStatus.USER_ERROR
    assert result.failure is not None
    assert result.failure.cell == 4  # in the executed notebook, after the injected parameters
    assert "CalledProcessError" in result.failure.message
    assert command in result.failure.message
    assert "|| true" in str(result.failure.hint)


def test_an_expected_failure_of_a_shell_command_is_none(
    workspace: Workspace, tmp_path: Path
) -> None:
    assert run(workspace, tmp_path, "!false || true\n!true").status is ExitStatus.OK


def test_a_good_step_writes_its_output(workspace: Workspace, tmp_path: Path) -> None:
    result = run(workspace, tmp_path, "step.metric('loss', 0.5, step=2)\nstep.progress(1, 2)")
    assert result.status is ExitStatus.OK, result.failure
    assert result.outputs["selection"].startswith("selection/")
    assert result.peak_memory_mib > 20
    folder = workspace.runs / "one" / "a"
    assert '"loss"' in (folder / "metrics.jsonl").read_text()
    assert (folder / "executed.ipynb").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("ParameterError", ExitStatus.PARAMETER),
        ("ServiceError", ExitStatus.SERVICE),
        ("Waiting", ExitStatus.WAITING),
        ("DataError", ExitStatus.USER_ERROR),
    ],
)
def test_our_own_errors_have_their_own_status(
    workspace: Workspace, tmp_path: Path, error: str, status: ExitStatus
) -> None:
    result = run(workspace, tmp_path, RAISE.format(error))
    assert result.status is status
    assert result.failure is not None
    assert (result.failure.message, result.failure.where) == ("no good", "here")
    assert result.failure.hint == "do that"
    assert result.outputs == {}


def test_an_error_in_a_cell_names_the_cell(workspace: Workspace, tmp_path: Path) -> None:
    result = run(workspace, tmp_path, "1 / 0")
    assert result.status is ExitStatus.USER_ERROR
    assert result.failure is not None
    assert result.failure.message == "ZeroDivisionError: division by zero"
    assert result.failure.cell == 4
    assert "1 / 0" in (result.failure.traceback or "")


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ("import os\nos.kill(os.getpid(), 9)", "the kernel was ended by SIGKILL; peak memory"),
        ("import ctypes\nctypes.string_at(0)", "the kernel was ended by SIGSEGV; peak memory"),
        ("import os\nos._exit(0)", "the kernel exited with status 0; peak memory"),
    ],
)
def test_a_dead_kernel_is_a_failure_that_says_what_ended_it(
    workspace: Workspace, tmp_path: Path, work: str, message: str
) -> None:
    result = run(workspace, tmp_path, work)
    assert result.status is ExitStatus.KERNEL_DIED
    assert result.failure is not None
    assert result.failure.message.startswith(message)


def test_an_error_that_only_prints_is_named(workspace: Workspace, tmp_path: Path) -> None:
    result = run(workspace, tmp_path, "%nosuchmagic")
    assert result.status is ExitStatus.USER_ERROR
    assert result.failure is not None
    assert result.failure.message == "UsageError: Line magic function `%nosuchmagic` not found."


def test_a_step_that_uses_too_much_memory_is_ended(workspace: Workspace, tmp_path: Path) -> None:
    work = "import time\nfilled = b'1' * (600 << 20)\ntime.sleep(30)"
    result = run(workspace, tmp_path, work, memory_gib=0.5)
    assert result.status is ExitStatus.KERNEL_DIED
    assert result.failure is not None
    assert "more than its 0.5 GiB" in result.failure.message


def test_a_step_that_takes_too_long_is_ended_with_its_children(
    workspace: Workspace, tmp_path: Path
) -> None:
    result = run(workspace, tmp_path, _with_child(tmp_path), timeout_s=8)
    assert result.status is ExitStatus.TIMED_OUT
    assert _is_gone(int((tmp_path / "child").read_text()))


def test_a_missing_output_breaks_the_contract(workspace: Workspace, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "")
    more = {"selection": {"kind": "selection"}, "model": {"kind": "checkpoint"}}
    result = run_once(spec_of(workspace, notebook, declared_outputs=more))
    assert result.status is ExitStatus.CONTRACT
    assert "model" in str(result.failure)


def test_killing_the_runner_kills_kernel_too(workspace: Workspace, tmp_path: Path) -> None:
    notebook = write_notebook(
        tmp_path / "a.ipynb",
        "import os, time, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'kernel')!r}).write_text(str(os.getpid()))\ntime.sleep(60)",
    )
    spec = spec_of(workspace, notebook)
    folder = Path(spec.folder)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "workbench", "run-step", str(folder / "spec.json")]
    runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kernel = int(_wait_for(tmp_path / "kernel"))
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    assert _is_gone(kernel)


def _is_gone(pid: int) -> bool:
    """Whether a process ends within seconds; one that only waits to be reaped has ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def _with_child(folder: Path) -> str:
    return (
        "import subprocess, pathlib, time\nchild = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(folder / 'child')!r}).write_text(str(child.pid))\ntime.sleep(60)"
    )


def _wait_for(path: Path) -> str:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} never appeared")
