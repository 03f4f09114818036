"""Nothing outlives whoever needed it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

STARTER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from workbench.processes import die_with_starter

def main():
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, context, initializer=die_with_starter) as pool:
        pids = list(pool.map(pid_of, range(2)))
        print(*pids, flush=True)
        time.sleep(60)

def pid_of(_):
    time.sleep(0.3)
    return f"{os.getpid()} {os.getppid()}"

if __name__ == "__main__":
    main()
"""


def test_workers_of_a_fork_server_end_with_a_killed_starter(tmp_path: Path) -> None:
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    starter = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pids = {int(pid) for pid in starter.stdout.readline().split()}
    assert len(pids) == 3, "two workers and their server"
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "something was left behind"
        time.sleep(0.05)
