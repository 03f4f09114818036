"""What is near is found as a comparison of all with all finds it, in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workbench.curation.hygiene import fingerprints
from workbench.curation.hygiene.duplicates import (
    MAX_COPY_BITS,
    FrameFeatures,
    SimilarityThreshold,
    connected_groups,
    similar_pairs,
)
from workbench.curation.hygiene.fingerprints import hamming_distance

Pairs = set[tuple[int, int]]


def drives(seed: int, count: int, flips: int, share_equal: float = 0.2) -> NDArray[np.uint64]:
    """Hashes as drives have them: scenes that change by up to ``flips`` bits a frame, or stand."""
    rng = np.random.default_rng(seed)
    bits = np.empty((count, 256), bool)
    for row in range(count):
        if row == 0 or rng.random() < 0.05:
            bits[row] = rng.random(256) < 0.5
            continue
        bits[row] = bits[row - 1] if rng.random() < 0.8 else bits[rng.integers(row)]
        if rng.random() > share_equal and flips:
            turned = rng.choice(256, rng.integers(1, flips + 1), replace=False)
            bits[row, turned] ^= True
    return np.packbits(bits, axis=1).view("<u8").astype(np.uint64)


def unit_vectors(seed: int, count: int) -> NDArray[np.float32]:
    raw = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    units: NDArray[np.float32] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return units


def brute_force(
    like: FrameFeatures, threshold: SimilarityThreshold, other: FrameFeatures | None = None
) -> Pairs:
    theirs = other or like
    bits = hamming_distance(like.hashes[:, None], theirs.hashes[None])
    near = bits <= threshold.bits
    if like.directions is not None and theirs.directions is not None:
        apart = 1 - like.directions @ theirs.directions.T
        limit = np.inf if threshold.distance is None else threshold.distance
        near &= (apart <= limit) | (bits <= MAX_COPY_BITS)
    if other is None:
        near = np.triu(near, 1)
    return {(int(row), int(column)) for row, column in zip(*np.nonzero(near), strict=True)}


def found_in(
    like: FrameFeatures, threshold: SimilarityThreshold, other: FrameFeatures | None = None
) -> Pairs:
    got = [
        pair
        for one in similar_pairs(like, threshold, other)
        for pair in zip(one.first.tolist(), one.second.tolist(), strict=True)
    ]
    assert len(got) == len(set(got)), "a pair came twice"
    return set(got)


def groups_brute_force(count: int, pairs: Pairs) -> list[list[int]]:
    near: list[set[int]] = [{row} for row in range(count)]
    for one, other in pairs:
        if near[one] is not near[other]:
            near[one] |= near[other]
            for row in near[other]:
                near[row] = near[one]
    return sorted(map(list, {tuple(sorted(group)) for group in near}))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 160),
    flips=st.integers(0, 40),
    bits=st.integers(0, 60),
    distance=st.one_of(st.none(), st.floats(0, 2)),
    vectors=st.booleans(),
)
def test_pairs_and_groups_equal_brute_force(
    seed: int, count: int, flips: int, bits: int, distance: float | None, vectors: bool
) -> None:
    hashes = drives(seed, count, flips)
    units = unit_vectors(seed, count) if vectors else None
    like = FrameFeatures((), hashes, units)
    threshold = SimilarityThreshold(distance, bits, 99, 0.5)
    wanted = brute_force(like, threshold)
    assert found_in(like, threshold) == wanted
    assert connected_groups(like, threshold) == groups_brute_force(count, wanted)
    half = count // 2
    mine = FrameFeatures((), hashes[:half], units[:half] if units is not None else None)
    theirs = FrameFeatures((), hashes[half:], units[half:] if units is not None else None)
    assert found_in(mine, threshold, theirs) == brute_force(mine, threshold, theirs)


def test_block_and_slice_sizes_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "_ROWS": 7,
        "_COLUMNS": 11,
        "_MAX_BALL_SIZE": 3,
        "_BALL_PAIRS_AHEAD": 2,
        "PAIRS_PER_SLICE": 5,
    }.items():
        monkeypatch.setattr(fingerprints, name, value)
    like = FrameFeatures((), drives(5, 150, 9))
    threshold = SimilarityThreshold(None, 30, 99, 0.5)
    wanted = brute_force(like, threshold)
    assert len(wanted) > 500
    assert found_in(like, threshold) == wanted
    assert connected_groups(like, threshold) == groups_brute_force(150, wanted)


def test_settled_rows_are_skipped() -> None:
    hashes = drives(1, 1, 0).repeat(5000, axis=0)
    like = FrameFeatures((), hashes)
    settled = np.zeros(5000, bool)
    pairs = 0
    for found in similar_pairs(like, SimilarityThreshold(None, 40, 99, 0.5), like, settled):
        settled[found.first[found.bits == 0]] = True
        pairs += len(found.first)
    assert settled.all()
    assert pairs < 10 * fingerprints.PAIRS_PER_SLICE  # of 25 million


@pytest.mark.parametrize("flips", [0, 1, 14])
def test_a_pool_of_near_copies_is_one_group_in_bounded_memory(flips: int) -> None:
    """20,000 frames of a car that stands: two hundred million pairs, of which few are opened."""
    rng = np.random.default_rng(0)
    bits = np.tile(rng.random(256) < 0.5, (20_000, 1))
    for _ in range(flips):
        bits[np.arange(len(bits)), rng.integers(0, 256, len(bits))] ^= True
    like = FrameFeatures((), np.packbits(bits, axis=1).view("<u8").astype(np.uint64))
    del bits
    tracemalloc.start()
    assert len(connected_groups(like, SimilarityThreshold(None, 40, 99, 0.1))) == 1
    assert tracemalloc.get_traced_memory()[1] < 400e6
    tracemalloc.stop()
