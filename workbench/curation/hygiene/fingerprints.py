"""Pixel digests and perceptual hashes of frames, and the search for near hashes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest, workspace
from workbench.core.errors import DataError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.detection.preprocessing import Pixels, load_rgb
from workbench.records.dataset import media_path
from workbench.records.frames import Frame

Progress = Callable[[int, int], None]
_HashWords = tuple[int, ...]

HASH_BITS = 256
_LAYOUT_VERSION = "v1"
_SHARD_FRAMES = 512
_SIDE, _KEPT = 64, 16
_WORDS_PER_HASH = HASH_BITS // 64
_ROW_DTYPE = np.dtype([("frame", "S64"), ("pixels", "S64"), ("hash", "<u8", (_WORDS_PER_HASH,))])


@dataclass(frozen=True)
class Fingerprints:
    """Of ``n`` frames, in the order asked for.

    Attributes:
        frames: Digests of their files.
        pixels: Digests of their decoded pixels and size.
        hashes: Uint64 ``[n, 4]``: perceptual hashes, compared by differing bits.
        left_out: Frames that could not be read, and why.
    """

    frames: tuple[str, ...]
    pixels: tuple[str, ...]
    hashes: NDArray[np.uint64]
    left_out: tuple[tuple[str, str], ...] = ()


def compute_fingerprints(
    place: Workspace, frames: Sequence[Frame], progress: Progress | None = None
) -> Fingerprints:
    """Fingerprints of these frames; what an earlier pass computed is read, not computed again.

    Raises:
        WorkbenchError: The disk is full.
    """
    folder = place.root / "fingerprints" / _LAYOUT_VERSION
    known = _read_fingerprints(folder)
    missing = [frame for frame in frames if frame.id not in known]
    left_out: list[tuple[str, str]] = []
    done = len(frames) - len(missing)
    for start in range(0, len(missing), _SHARD_FRAMES):
        chunk = missing[start : start + _SHARD_FRAMES]
        found = list(_fingerprint_frames(place, chunk, left_out))
        if found:
            _write_fingerprints(folder, found)
            known.update({name: (pixels, value) for name, pixels, value in found})
        done += len(chunk)
        if progress:
            progress(done, len(frames))
    names = tuple(frame.id for frame in frames if frame.id in known)
    return Fingerprints(
        frames=names,
        pixels=tuple(known[name][0] for name in names),
        hashes=np.array([known[name][1] for name in names], np.uint64).reshape(-1, _WORDS_PER_HASH),
        left_out=tuple(left_out),
    )


def pixel_digest(image: Pixels) -> str:
    """SHA-256 of RGB uint8 ``[height, width, 3]`` with its size."""
    size = np.array(image.shape, "<u4").tobytes()
    return digest.of_bytes(size + np.ascontiguousarray(image).tobytes())


def perceptual_hash(image: Pixels) -> NDArray[np.uint64]:
    """256 bits, uint64 ``[4]``, of RGB uint8 ``[height, width, 3]``: its lowest frequencies' signs.

    The 16 x 16 lowest coefficients of the cosine transform of a 64 x 64 luma thumbnail, each held
    against their median: pHash (Zauner 2010, "Implementation and benchmarking of perceptual image
    hash functions") with four times its bits, because roads all share a layout. Blind to
    encoding, scale and brightness, not to a moved picture.
    """
    import cv2

    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(luma, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_KEPT, :_KEPT].ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    words: NDArray[np.uint64] = np.packbits(bits).view("<u8").astype(np.uint64)
    return words


def hamming_distance(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """In how many of the 256 bits hashes ``[..., 4]`` differ; broadcasts, ``[...]``."""
    counted = np.bitwise_count(np.bitwise_xor(first, second))
    differing: NDArray[np.uint16] = counted.sum(axis=-1, dtype=np.uint16)
    return differing


def _fingerprint_frames(
    place: Workspace, frames: Sequence[Frame], left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, str, _HashWords]]:
    def one(frame: Frame) -> tuple[str, _HashWords]:
        image = load_rgb(media_path(place, frame))
        return pixel_digest(image), tuple(perceptual_hash(image).tolist())

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:
        futures = [pool.submit(one, frame) for frame in frames]
        for frame, future in zip(frames, futures, strict=True):
            try:
                pixels, value = future.result()
            except DataError as error:
                left_out.append((frame.id, error.what))
                continue
            yield frame.id, pixels, value


def _read_fingerprints(folder: Path) -> dict[str, tuple[str, _HashWords]]:
    """Every fingerprint on disk; a file that cannot be read is one that is computed again."""
    known: dict[str, tuple[str, _HashWords]] = {}
    for path in sorted(folder.glob("[!.]*.npy")):
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if rows.dtype != _ROW_DTYPE:
            continue
        for name, pixels, words in rows.tolist():
            known[name.decode()] = (pixels.decode(), tuple(words))
    return known


def _write_fingerprints(folder: Path, found: Sequence[tuple[str, str, _HashWords]]) -> None:
    rows = np.array(found, _ROW_DTYPE)
    stream = io.BytesIO()
    np.save(stream, rows, allow_pickle=False)
    name = digest.shorten(digest.of_bytes(stream.getvalue()))
    try:
        workspace.write_atomic(folder / f"{name}.npy", stream.getvalue())
    except OSError as error:
        raise WorkbenchError(
            f"fingerprints cannot be written: {error.strerror or error}",
            where=folder,
            hint="Free some space and run again; finished files are kept",
        ) from error


# ---- Which hashes are near which: exact, in bounded memory, for a million frames.
#
# A hash has 256 bits, and near is up to 40 of them (see `alike`). Tables of parts of a hash, the
# usual way around comparing all with all (multi-index hashing, Norouzi 2012), pay while few bits may
# differ: for 40 they are to be asked with every two of 16 bits flipped, and roads are so alike that
# a part of 16 bits is shared by hundreds of times as many frames as chance would have it.
#
# So all are compared, but not all frames. Frames that follow each other within a few bits of the
# first of them are one *ball*; only first frames are compared, and by the triangle inequality two
# balls hold a near pair only if their first frames are no further apart than the limit and both
# radii. What is left costs an exclusive-or and a count a pair of balls, about a nanosecond in
# faiss's vectorised kernel. It grows with the square of the balls, not of the frames.


PAIRS_PER_SLICE = 1 << 20
"""Pairs of frames that are looked at together."""

_MAX_BALL_SIZE = 64  # frames of a ball, so that two of them are a few thousand pairs
_ROWS, _COLUMNS = 512, 4096
_BALL_PAIRS_AHEAD = 1 << 18  # pairs of balls that are counted to fill a slice

RowNumbers = NDArray[np.int64]
_BitCounts = NDArray[np.uint16]
_SkipBlock = Callable[[slice, slice], bool]


@dataclass(frozen=True)
class Balls:
    """``n`` hashes in ``m`` balls.

    Attributes:
        hashes: Uint64 ``[n, 4]``.
        order: Int64 ``[n]``: rows, ball after ball.
        starts: Int64 ``[m + 1]``: where each ball starts in ``order``; the first row is its centre.
        radius: Int64 ``[m]``: bits from the centre to the furthest row.
    """

    hashes: NDArray[np.uint64]
    order: RowNumbers
    starts: RowNumbers
    radius: RowNumbers

    @cached_property
    def centres(self) -> RowNumbers:
        """Rows ``[m]``."""
        return self.order[self.starts[:-1]]

    @cached_property
    def sizes(self) -> RowNumbers:
        """Rows in each ball ``[m]``."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class BallPairs:
    """Balls ``[k]`` both, that may hold a near pair; those of one and the same ball too."""

    first: RowNumbers
    second: RowNumbers

    def __len__(self) -> int:
        return len(self.first)

    def keep(self, wanted: NDArray[np.bool_] | RowNumbers | slice) -> BallPairs:
        return BallPairs(self.first[wanted], self.second[wanted])


def make_balls(hashes: NDArray[np.uint64], reach: int) -> Balls:
    """Balls of hashes ``[n, 4]`` that follow each other; equal hashes count as following.

    Args:
        reach: Bits that a hash may lie from the centre of its ball.
    """
    order = _group_equal(hashes)
    raw = np.ascontiguousarray(hashes[order]).tobytes()
    width = HASH_BITS // 8
    numbers = (int.from_bytes(raw[at : at + width]) for at in range(0, len(raw), width))
    starts: list[int] = []
    radius: list[int] = []
    centre = 0
    for place, number in enumerate(numbers):
        apart = (number ^ centre).bit_count()
        if not starts or apart > reach or place - starts[-1] == _MAX_BALL_SIZE:
            starts.append(place)
            radius.append(0)
            centre = number
        else:
            radius[-1] = max(radius[-1], apart)
    return Balls(
        hashes, order, np.array([*starts, len(order)], np.int64), np.array(radius, np.int64)
    )


def near_ball_pairs(
    mine: Balls, theirs: Balls | None, limit: int, known_already: _SkipBlock | None = None
) -> Iterator[BallPairs]:
    """Pairs of balls that may hold rows at most ``limit`` bits apart; none that does is missed.

    Args:
        theirs: Compared with these; None compares ``mine`` with each other, each pair once.
        known_already: Asked about a block of balls of each before they are compared: nothing that
            is said of them would be news.
    """
    import faiss

    other = theirs or mine
    queries, known = _centre_codes(mine), _centre_codes(other)
    far = limit + int(mine.radius.max(initial=0)) + int(other.radius.max(initial=0))
    for start in range(0, len(queries), _ROWS):
        block = queries[start : start + _ROWS]
        for reach in range(0 if theirs else start, len(known), _COLUMNS):
            blocks = slice(start, start + _ROWS), slice(reach, reach + _COLUMNS)
            if known_already and known_already(*blocks):
                continue
            index = faiss.IndexBinaryFlat(HASH_BITS)
            index.add(known[reach : reach + _COLUMNS])
            cuts, apart, second = index.range_search(block, far + 1)  # below, not up to
            counts = cuts[1:].astype(np.int64) - cuts[:-1].astype(np.int64)
            first = np.repeat(np.arange(start, start + len(block)), counts)
            second = second + reach
            near = apart <= limit + mine.radius[first] + other.radius[second]
            if theirs is None:
                near &= second >= first
            if near.any():
                yield BallPairs(first[near], second[near])


def near_row_pairs(
    mine: Balls, theirs: Balls | None, pairs: BallPairs, limit: int
) -> tuple[RowNumbers, RowNumbers, _BitCounts, int]:
    """Rows at most ``limit`` bits apart in the first of these pairs of balls.

    Returns:
        Rows of ``mine``, of ``theirs``, the bits, and how many pairs of balls were opened: as many
        as hold `SLICE` pairs of rows. Within one set of balls the first row is the lower.
    """
    other = theirs or mine
    wide = mine.sizes[pairs.first[:_BALL_PAIRS_AHEAD]]
    high = other.sizes[pairs.second[:_BALL_PAIRS_AHEAD]]
    opened = max(1, int(np.searchsorted(np.cumsum(wide * high), PAIRS_PER_SLICE, side="right")))
    wide, high = wide[:opened], high[:opened]
    count = wide * high
    place = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(place, np.repeat(high, count))
    first = mine.order[np.repeat(mine.starts[pairs.first[:opened]], count) + row]
    second = other.order[np.repeat(other.starts[pairs.second[:opened]], count) + column]
    if theirs is None:
        same = np.repeat(pairs.first[:opened] == pairs.second[:opened], count)
        once = ~same | (column > row)
        first, second = first[once], second[once]
        first, second = np.minimum(first, second), np.maximum(first, second)
    bits = hamming_distance(mine.hashes[first], other.hashes[second])
    near = bits <= limit
    return first[near], second[near], bits[near], opened


def _group_equal(hashes: NDArray[np.uint64]) -> RowNumbers:
    """All rows, each hash's where its first one stands."""
    words = np.ascontiguousarray(hashes).view(np.dtype((np.void, HASH_BITS // 8))).ravel()
    _, firsts, which = np.unique(words, return_index=True, return_inverse=True)
    together: RowNumbers = np.argsort(firsts[which], kind="stable")
    return together


def _centre_codes(found: Balls) -> NDArray[np.uint8]:
    centres = np.ascontiguousarray(found.hashes[found.centres])
    return centres.view(np.uint8).reshape(len(centres), HASH_BITS // 8)
