"""Settings of the running process: end with the parent, keep freed memory, OpenCV threads."""

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

__all__ = ()

_PR_SET_PDEATHSIG = 1
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, see malloc.h
_MAX_DYNAMIC_THRESHOLD = 32 << 20  # bytes; the largest value that glibc itself grows to
_MAX_INT = 2**31 - 1  # mallopt takes C ints


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends for any reason.

    Call it first in a child process. Linux only: elsewhere it does nothing, and a killed parent
    may leave the child running.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died between the two calls
        os._exit(1)


def die_with_pool_owner() -> None:
    """End this worker of a fork server when the process that created the pool ends.

    A worker's parent is the fork server, which lives as long as any worker: without this, both
    would outlive a pool owner that is killed.
    """
    owner = multiprocessing.parent_process()
    if owner is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([owner.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="pool-owner", daemon=True).start()


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process inside the block, instead of returning it to the system.

    A training step frees some hundred MiB and allocates as much again. By default glibc returns
    large blocks to the system, which zeroes every page of a new one: 5 % of the training time on
    two cores.

    Applies to all threads of the process, and only with glibc. Afterwards blocks up to 32 MiB stay
    in the process, as in any long-running process.
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
    """Limit OpenCV to one thread inside the block, for callers that use all cores themselves."""
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
