"""Runs steps as processes of this machine.

Importing papermill costs two seconds. So one process, the worker pool, imports it once and forks a
child for each step. `run_in_new_process` starts an interpreter of its own instead: for the check,
which watches it, and for Ray workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.pipeline.unit import LOG_FILE, RESULT_FILE, write_spec

# Kernels come from it: as theirs, its modules are not looked for in the caller's folder.
_WORKER_POOL_CODE = (
    "import sys; sys.path[0] or sys.path.pop(0); "
    "from workbench.pipeline.executors import worker_pool; worker_pool.main()"
)
_POLL_S = 0.1
_GRACE_S = 15
_GIB = 2**30


class LocalExecutor:
    """Steps in forks of one warm process. Thread-safe; the nursery starts with the first step."""

    def __init__(self) -> None:
        self.threads = os.cpu_count() or 1
        self.memory_gib = psutil.virtual_memory().total / _GIB
        self._lock = threading.Lock()
        self._heard = threading.Condition()
        self._nursery: subprocess.Popen[str] | None = None
        self._children: dict[str, int] = {}
        self._ended: dict[str, int] = {}

    def execute(
        self, spec: StepSpec, watch: Callable[[], None], stop: threading.Event
    ) -> StepResult:
        spec_file = write_spec(spec)
        try:
            self._start(str(spec_file))
            status = self._wait(str(spec_file), watch, stop)
        finally:
            watch()
        return read_result(spec_file.parent, status)

    def close(self) -> None:
        with self._lock:
            nursery, self._nursery = self._nursery, None
        if nursery is not None:
            with contextlib.suppress(OSError):
                nursery.stdin.close()  # type: ignore[union-attr]
            try:
                nursery.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                nursery.kill()
                nursery.wait()

    def _start(self, spec_file: str) -> None:
        with self._lock:
            if self._nursery is None or self._nursery.poll() is not None:
                self._nursery = self._open()
            stream = self._nursery.stdin
            assert stream is not None  # noqa: S101 - for mypy
            stream.write(f"{spec_file}\n")
            stream.flush()

    def _open(self) -> subprocess.Popen[str]:
        nursery = subprocess.Popen(
            [sys.executable, "-c", _WORKER_POOL_CODE],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, args=(nursery,), daemon=True).start()
        return nursery

    def _listen(self, nursery: subprocess.Popen[str]) -> None:
        """Hear which child runs which spec, and how each ended."""
        assert nursery.stdout is not None  # noqa: S101 - for mypy
        begun: set[str] = set()
        for line in nursery.stdout:
            told = json.loads(line)
            with self._heard:
                if "pid" in told:
                    begun.add(told["spec"])
                    self._children[told["spec"]] = told["pid"]
                else:
                    begun.discard(told["spec"])
                    self._ended[told["spec"]] = told["status"]
                self._heard.notify_all()
        with self._heard:
            for spec in begun:  # the nursery died, and its children with it
                self._ended[spec] = -signal.SIGKILL
            self._heard.notify_all()

    def _wait(self, spec: str, watch: Callable[[], None], stop: threading.Event) -> int:
        asked: float | None = None
        nursery = self._nursery
        while spec not in self._ended:
            if nursery is not None and nursery.poll() is not None and spec not in self._children:
                return nursery.returncode
            if stop.is_set() and spec in self._children:
                if asked is None:
                    asked = time.monotonic()
                    _send_signal(self._children[spec], signal.SIGTERM)
                elif time.monotonic() - asked > _GRACE_S:
                    _send_signal(self._children[spec], signal.SIGKILL)
            watch()
            with self._heard:
                self._heard.wait_for(lambda: spec in self._ended, _POLL_S)
        self._children.pop(spec, None)
        return self._ended.pop(spec)


def run_once(spec: StepSpec, watch: Callable[[], None] = lambda: None) -> StepResult:
    """Run a single step and wait for it."""
    executor = LocalExecutor()
    try:
        return executor.execute(spec, watch, threading.Event())
    finally:
        executor.close()


def read_result(folder: Path, status: int) -> StepResult:
    """What a step left in ``folder``, or that its process ended with ``status`` without a word."""
    path = folder / RESULT_FILE
    if path.exists():
        return StepResult.model_validate_json(path.read_bytes())
    message = f"the step's process ended with status {status} and left no result"
    hint = f"Its output: {folder / LOG_FILE}"
    return StepResult.failed(ExitStatus.CRASHED, "crashed", message, hint)


def _send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# ---- Runs one step in a process of its own: for the check, which watches it, and for Ray's workers.


def run_in_new_process(
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
    with (folder / LOG_FILE).open("wb") as log:
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
            _stop_process(process)
            raise
        finally:
            watch()
    return read_result(folder, process.returncode)


def _stop_process(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
