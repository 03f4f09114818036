"""Runs one step in a process of its own: for the check, which watches it, and for Ray's workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from workbench.pipeline.running.executors.local import result_of
from workbench.pipeline.steps.spec import StepResult, StepSpec
from workbench.pipeline.steps.unit import LOG, write_spec

_POLL_S = 0.1
_GRACE_S = 15


def execute(
    spec: StepSpec,
    watch: Callable[[], None],
    *,
    launch: Sequence[str] = ("workbench", "run-step"),
    handles: Sequence[int] = (),
) -> StepResult:
    """Run one step in a process of its own and wait, calling ``watch`` a few times a second.

    Args:
        launch: The module that is run, and what it is told before the spec's path.
        handles: File descriptors that the process inherits.
    """
    spec_file = write_spec(spec)
    folder = spec_file.parent
    command = [sys.executable, "-m", *launch, str(spec_file)]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=handles
        )
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
    return result_of(folder, process.returncode)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
