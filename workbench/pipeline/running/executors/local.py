"""Runs steps as processes of this machine.

A step of its own process pays two seconds for importing papermill. So one process, the nursery,
imports it once and forks a child for each step: the child is as fresh as any, only warm.
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
from collections.abc import Callable
from pathlib import Path

import psutil

from workbench.pipeline.steps.spec import ExitStatus, Failure, StepResult, StepSpec
from workbench.pipeline.steps.unit import LOG, RESULT, write_spec

# Kernels come from it: as theirs, its modules are not looked for in the caller's folder.
_NURSERY = (
    "import sys; sys.path[0] or sys.path.pop(0); "
    "from workbench.pipeline.running.executors import nursery; nursery.main()"
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
        return result_of(spec_file.parent, status)

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
            [sys.executable, "-c", _NURSERY],
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
                    _signal(self._children[spec], signal.SIGTERM)
                elif time.monotonic() - asked > _GRACE_S:
                    _signal(self._children[spec], signal.SIGKILL)
            watch()
            with self._heard:
                self._heard.wait_for(lambda: spec in self._ended, _POLL_S)
        self._children.pop(spec, None)
        return self._ended.pop(spec)


def execute_once(spec: StepSpec, watch: Callable[[], None] = lambda: None) -> StepResult:
    """Run a single step and wait for it."""
    executor = LocalExecutor()
    try:
        return executor.execute(spec, watch, threading.Event())
    finally:
        executor.close()


def result_of(folder: Path, status: int) -> StepResult:
    """What a step left in ``folder``, or that its process ended with ``status`` without a word."""
    path = folder / RESULT
    if path.exists():
        return StepResult.model_validate_json(path.read_bytes())
    message = f"the step's process ended with status {status} and left no result"
    failure = Failure(kind="crashed", message=message, hint=f"Its output: {folder / LOG}")
    return StepResult.unrun(ExitStatus.CRASHED, failure)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
