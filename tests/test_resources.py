"""What a busy loop does to the process it runs in, and that it is undone."""

from __future__ import annotations

import resource
import sys

import cv2
import numpy as np
import psutil
import pytest

from workbench import resources

BLOCK = 64 << 20

glibc_only = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")


def faults_of_a_turn() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(BLOCK, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc_only
def test_a_freed_block_is_had_again_without_the_system() -> None:
    with resources.memory_kept():
        faults_of_a_turn()
        kept = [faults_of_a_turn() for _ in range(3)]
    # Huge pages of 2 MiB are the fewest that the system could hand out anew.
    assert max(kept) < BLOCK / (4 << 20) < faults_of_a_turn()


@glibc_only
def test_memory_goes_back_at_the_end() -> None:
    process = psutil.Process()
    with resources.memory_kept():
        np.ones(8 * BLOCK, np.uint8)
        kept = process.memory_info().rss
    assert process.memory_info().rss < kept - 4 * BLOCK


def test_opencv_gets_its_threads_back() -> None:
    before = cv2.getNumThreads()
    with pytest.raises(KeyError), resources.opencv_unthreaded():
        assert cv2.getNumThreads() == 1
        raise KeyError
    assert cv2.getNumThreads() == before
