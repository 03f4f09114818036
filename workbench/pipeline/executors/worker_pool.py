"""The preloaded process that local steps are forked from.

Reads paths of spec files from standard input, one per line; writes ``{"spec", "pid"}`` when a
step's child has started and ``{"spec", "status"}`` when it has ended. Stays single-threaded,
because a fork keeps only the calling thread. Ends when its input is closed; its children die with
it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path

from workbench.core.processes import die_with_parent
from workbench.pipeline import runner
from workbench.pipeline.spec import LOG_FILE
from workbench.pipeline.unit import run_step

__all__ = ()


def main() -> None:
    """Fork a child for each spec until the input is closed."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the run, which stops each step
    runner.preload()

    children: dict[int, str] = {}
    wakeup, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffered = b""
    while True:
        ready, _, _ = select.select([0, wakeup], [], [])
        if wakeup in ready:
            os.read(wakeup, 4096)
        _collect_ended(children)
        if 0 not in ready:
            continue
        read = os.read(0, 65536)
        if not read:
            return
        *lines, buffered = (buffered + read).split(b"\n")
        for line in lines:
            spec = line.decode()
            pid = _fork_step(spec)
            children[pid] = spec
            _send_message({"spec": spec, "pid": pid})


def _fork_step(spec: str) -> int:
    """Fork a child that runs a step, with its output in the step's log."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        log = os.open(Path(spec).parent / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        status = int(run_step(Path(spec)).status)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _collect_ended(children: dict[int, str]) -> None:
    for pid in list(children):
        ended_pid, status = os.waitpid(pid, os.WNOHANG)
        if ended_pid:
            _send_message({"spec": children.pop(pid), "status": os.waitstatus_to_exitcode(status)})


def _send_message(message: dict[str, object]) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())
