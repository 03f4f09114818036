"""How a busy loop has the process: memory kept for its next turn, and no threads beside its own."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_MIB = 1 << 20
_GROWN = 32 * _MIB  # what glibc's own threshold grows to as large blocks are freed
_ALL = 2**31 - 1  # the parameters are C ints


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
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
    if not libc.mallopt(_MMAP_THRESHOLD, _ALL):
        libc.mallopt(_MMAP_THRESHOLD, _GROWN)
    libc.mallopt(_TRIM_THRESHOLD, _ALL)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _GROWN)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _GROWN)
        libc.malloc_trim(0)


@contextlib.contextmanager
def opencv_unthreaded() -> Iterator[None]:
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
