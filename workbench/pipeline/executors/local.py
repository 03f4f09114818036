"""Run steps as processes of this machine.

Importing papermill takes two seconds. So one process, the worker pool, imports it once and forks a
child for each step. `run_in_new_process` starts a new interpreter instead: for the check, which
watches it, and for Ray workers.
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

from workbench.pipeline.spec import LOG_FILE, RESULT_FILE, ExitStatus, StepResult, StepSpec
from workbench.pipeline.unit import redact_files, write_spec

__all__ = ["LocalExecutor"]

# Kernels are forked from it: like them, it does not import modules from the caller's folder.
_WORKER_POOL_CODE = (
    "import sys; sys.path[0] or sys.path.pop(0); "
    "from workbench.pipeline.executors import worker_pool; worker_pool.main()"
)
_POLL_S = 0.1
_GRACE_S = 15
_GIB = 2**30


class LocalExecutor:
    """Runs steps in forks of a preloaded process, the worker pool. Thread-safe.

    The worker pool starts with the first step and ends with `close`.
    """

    def __init__(self) -> None:
        self.threads = os.cpu_count() or 1
        self.memory_gib = psutil.virtual_memory().total / _GIB
        self._lock = threading.Lock()
        self._message_received = threading.Condition()
        self._pool: subprocess.Popen[str] | None = None
        self._pids: dict[str, int] = {}
        self._statuses: dict[str, int] = {}

    def execute(
        self, spec: StepSpec, watch: Callable[[], None], stop: threading.Event
    ) -> StepResult:
        """See `Executor.execute`."""
        spec_file = write_spec(spec)
        try:
            self._start(str(spec_file))
            status = self._wait(str(spec_file), watch, stop)
        finally:
            watch()
        return _read_result(spec, status)

    def close(self) -> None:
        """End the worker pool."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            with contextlib.suppress(OSError):
                pool.stdin.close()  # type: ignore[union-attr]
            try:
                pool.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                pool.kill()
                pool.wait()

    def _start(self, spec_file: str) -> None:
        with self._lock:
            if self._pool is None or self._pool.poll() is not None:
                self._pool = self._start_pool()
            stream = self._pool.stdin
            assert stream is not None  # noqa: S101 - for mypy
            stream.write(f"{spec_file}\n")
            stream.flush()

    def _start_pool(self) -> subprocess.Popen[str]:
        pool = subprocess.Popen(
            [sys.executable, "-c", _WORKER_POOL_CODE],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._receive, args=(pool,), daemon=True).start()
        return pool

    def _receive(self, pool: subprocess.Popen[str]) -> None:
        """Receive which child runs which spec, and how each ended."""
        assert pool.stdout is not None  # noqa: S101 - for mypy
        running: set[str] = set()
        for line in pool.stdout:
            message = json.loads(line)
            with self._message_received:
                if "pid" in message:
                    running.add(message["spec"])
                    self._pids[message["spec"]] = message["pid"]
                else:
                    running.discard(message["spec"])
                    self._statuses[message["spec"]] = message["status"]
                self._message_received.notify_all()
        with self._message_received:
            for spec in running:  # the pool died, and its children with it
                self._statuses[spec] = -signal.SIGKILL
            self._message_received.notify_all()

    def _wait(self, spec: str, watch: Callable[[], None], stop: threading.Event) -> int:
        stop_sent_at: float | None = None
        pool = self._pool
        while spec not in self._statuses:
            if pool is not None and pool.poll() is not None and spec not in self._pids:
                return pool.returncode
            if stop.is_set() and spec in self._pids:
                if stop_sent_at is None:
                    stop_sent_at = time.monotonic()
                    _send_signal(self._pids[spec], signal.SIGTERM)
                elif time.monotonic() - stop_sent_at > _GRACE_S:
                    _send_signal(self._pids[spec], signal.SIGKILL)
            watch()
            with self._message_received:
                self._message_received.wait_for(lambda: spec in self._statuses, _POLL_S)
        self._pids.pop(spec, None)
        return self._statuses.pop(spec)


def run_once(spec: StepSpec, watch: Callable[[], None] = lambda: None) -> StepResult:
    """Run a single step in a worker pool of its own and wait for it."""
    executor = LocalExecutor()
    try:
        return executor.execute(spec, watch, threading.Event())
    finally:
        executor.close()


def run_in_new_process(
    spec: StepSpec,
    watch: Callable[[], None],
    *,
    launch: Sequence[str] = ("workbench", "run-step"),
    handles: Sequence[int] = (),
) -> StepResult:
    """Run a single step in a new interpreter and wait for it.

    Args:
        spec: The step.
        watch: Called a few times a second while the step runs, and once after.
        launch: The module to run and its arguments before the spec's path.
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
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
        finally:
            watch()
    return _read_result(spec, process.returncode)


def _read_result(spec: StepSpec, status: int) -> StepResult:
    """The result in the step's folder; a crash if its process wrote none."""
    folder = Path(spec.folder)
    if (folder / RESULT_FILE).exists():
        return StepResult.model_validate_json((folder / RESULT_FILE).read_bytes())
    if leak := redact_files(spec):  # the process was killed before it could do so
        return StepResult(status=ExitStatus.CONTRACT, seconds=0, peak_memory_mib=0, failure=leak)
    message = f"the step's process ended with status {status} and wrote no result"
    hint = f"Its output: {folder / LOG_FILE}"
    return StepResult.failed(ExitStatus.CRASHED, "crashed", message, hint)


def _send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
