"""Runs steps as local processes. Another executor only has to start the same command elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from workbench.pipeline.spec import ExitStatus, Failure, StepResult, StepSpec
from workbench.pipeline.unit import RESULT

SPEC = "spec.json"
LOG = "log.txt"

_POLL_S = 0.1
_GRACE_S = 15


def execute(spec: StepSpec, watch: Callable[[], None]) -> StepResult:
    """Run one step in a process of its own and wait, calling ``watch`` a few times a second."""
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec_file = folder / SPEC
    spec_file.write_text(spec.model_dump_json(indent=1))
    command = [sys.executable, "-m", "workbench", "run-step", str(spec_file)]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while True:
                try:
                    process.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    watch()
        except BaseException:
            _stop(process)
            raise
        finally:
            watch()
    return _result(folder, process.returncode)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _result(folder: Path, status: int) -> StepResult:
    path = folder / RESULT
    if path.exists():
        return StepResult.model_validate_json(path.read_bytes())
    message = f"the step's process ended with status {status} and left no result"
    failure = Failure(kind="crashed", message=message, hint=f"Its output: {folder / LOG}")
    return StepResult(status=ExitStatus.CRASHED, seconds=0, peak_memory_mib=0, failure=failure)
