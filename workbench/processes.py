"""Processes that do not outlive whoever needs them."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however it dies.

    Call it first thing in a child. Linux only; elsewhere it does nothing and a killed parent
    may leave the child running.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died between the two calls
        os._exit(1)


def die_with_starter() -> None:
    """End this worker of a fork server when the process that asked for it is gone.

    The worker's parent is the server, which in turn lives as long as any worker: without this,
    both would outlive a starter that is killed.
    """
    starter = multiprocessing.parent_process()
    if starter is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([starter.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="starter", daemon=True).start()
