"""Child processes that end with their parent, and what a busy loop asks of its process."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

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


def die_with_pool_owner() -> None:
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


# ---- How a busy loop has the process: memory kept for its next turn, and no threads beside its own.


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_MIB = 1 << 20
_MAX_DYNAMIC_THRESHOLD = 32 * _MIB  # what glibc's own threshold grows to as large blocks are freed
_MAX_INT = 2**31 - 1  # the parameters are C ints


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory within the process meanwhile; it goes back to the system at the end.

    A step of a network frees some hundred MiB and asks for as much again. glibc gives large blocks
    back to the system, which hands out each new one page by page, filled with zeros: a twentieth of
    a training's time on two cores. Kept, they cost nothing.

    For the whole process, whichever thread frees. Does nothing where the C library is not glibc.
    Afterwards blocks up to 32 MiB are kept as far as glibc keeps them in any long-lived process.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    # Some versions refuse a threshold above 32 MiB.
    if not libc.mallopt(_MMAP_THRESHOLD, _MAX_INT):
        libc.mallopt(_MMAP_THRESHOLD, _MAX_DYNAMIC_THRESHOLD)
    libc.mallopt(_TRIM_THRESHOLD, _MAX_INT)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _MAX_DYNAMIC_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MAX_DYNAMIC_THRESHOLD)
        libc.malloc_trim(0)


@contextlib.contextmanager
def single_threaded_opencv() -> Iterator[None]:
    """OpenCV without threads of its own, for whoever has as many as there are cores already."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
