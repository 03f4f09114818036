"""Child processes end with their parents, and process settings are restored."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from workbench.core import processes

STARTER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from workbench.core.processes import die_with_pool_owner

def main():
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, context, initializer=die_with_pool_owner) as pool:
        pids = list(pool.map(pid_of, range(2)))
        print(*pids, flush=True)
        time.sleep(60)

def pid_of(_):
    time.sleep(0.3)
    return f"{os.getpid()} {os.getppid()}"

if __name__ == "__main__":
    main()
"""


def test_workers_of_a_fork_server_end_with_a_killed_owner(tmp_path: Path) -> None:
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
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)


# Memory and threads


BLOCK = 64 << 20

glibc_only = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")


def page_faults_of_an_allocation() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(BLOCK, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc_only
def test_freed_memory_is_reused() -> None:
    with processes.keep_freed_memory():
        page_faults_of_an_allocation()
        kept = [page_faults_of_an_allocation() for _ in range(3)]
    # Huge pages of 2 MiB are the fewest that the system could hand out anew.
    assert max(kept) < BLOCK / (4 << 20) < page_faults_of_an_allocation()


@glibc_only
def test_memory_is_returned_at_the_end() -> None:
    process = psutil.Process()
    with processes.keep_freed_memory():
        np.ones(8 * BLOCK, np.uint8)
        kept = process.memory_info().rss
    assert process.memory_info().rss < kept - 4 * BLOCK


def test_opencv_threads_are_restored() -> None:
    before = cv2.getNumThreads()
    with pytest.raises(KeyError), processes.single_threaded_opencv():
        assert cv2.getNumThreads() == 1
        raise KeyError
    assert cv2.getNumThreads() == before
