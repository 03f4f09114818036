"""Pixel digests and perceptual hashes of frames, and the search for near hashes.

The digest of a frame's decoded pixels is equal for the same image in other bytes (metadata, PNG or
BMP); its perceptual hash is near for the same image encoded, scaled or lit differently.

Near hashes are found exactly, in bounded memory. A hash has 256 bits, and near means up to 40 of
them, where multi-index hashing (Norouzi 2012) does not pay. So all are compared, but not all
frames: frames that follow each other within a few bits of the first of them form one ball, only
centres are compared, and by the triangle inequality two balls hold a near pair only if their
centres are no further apart than the limit plus both radii. The cost grows with the square of the
balls, not of the frames: an exclusive-or and a count per pair, about a nanosecond in faiss.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import DataError, WorkbenchError
from workbench.core.types import Progress
from workbench.core.workspace import Workspace, write_atomic
from workbench.detection.preprocessing import Pixels, load_frame
from workbench.records.frames import Frame

__all__ = ["compute_fingerprints"]

_HashWords = tuple[int, ...]
HASH_BITS = 256
_LAYOUT_VERSION = "v1"
_SHARD_FRAMES = 512
_SIDE, _KEPT = 64, 16
_WORDS_PER_HASH = HASH_BITS // 64
_ROW_DTYPE = np.dtype([("frame", "S64"), ("pixels", "S64"), ("hash", "<u8", (_WORDS_PER_HASH,))])
PAIRS_PER_SLICE = 1 << 20
"""Pairs of frames compared at once."""

_MAX_BALL_SIZE = 64  # frames per ball, so that two balls are a few thousand pairs
_ROWS, _COLUMNS = 512, 4096
_BALL_PAIRS_AHEAD = 1 << 18  # pairs of balls considered for one slice
RowNumbers = NDArray[np.int64]
_BitCounts = NDArray[np.uint16]
_SkipBlock = Callable[[slice, slice], bool]


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of ``n`` frames, in the requested order.

    Attributes:
        frames: Digests of the files.
        pixels: Digests of decoded pixels and image size.
        hashes: Uint64 ``[n, 4]``: perceptual hashes, compared by Hamming distance.
        skipped: Unreadable frames, with the reason.
    """

    frames: tuple[str, ...]
    pixels: tuple[str, ...]
    hashes: NDArray[np.uint64]
    skipped: tuple[tuple[str, str], ...] = ()


def compute_fingerprints(
    workspace: Workspace, frames: Sequence[Frame], progress: Progress | None = None
) -> Fingerprints:
    """Fingerprint frames, computing only what is not on disk.

    Args:
        workspace: Holds images and fingerprints.
        frames: In the order of the result.
        progress: Called with the number of frames done and their total.

    Raises:
        WorkbenchError: The disk is full.
    """
    folder = workspace.root / "fingerprints" / _LAYOUT_VERSION
    known = _read_fingerprints(folder)
    missing = [frame for frame in frames if frame.id not in known]
    skipped: list[tuple[str, str]] = []
    done = len(frames) - len(missing)
    for start in range(0, len(missing), _SHARD_FRAMES):
        chunk = missing[start : start + _SHARD_FRAMES]
        results = list(_fingerprint_frames(workspace, chunk, skipped))
        if results:
            _write_fingerprints(folder, results)
            known.update({name: (pixels, value) for name, pixels, value in results})
        done += len(chunk)
        if progress:
            progress(done, len(frames))
    names = tuple(frame.id for frame in frames if frame.id in known)
    return Fingerprints(
        frames=names,
        pixels=tuple(known[name][0] for name in names),
        hashes=np.array([known[name][1] for name in names], np.uint64).reshape(-1, _WORDS_PER_HASH),
        skipped=tuple(skipped),
    )


def _fingerprint_frames(
    workspace: Workspace, frames: Sequence[Frame], skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, str, _HashWords]]:
    def one(frame: Frame) -> tuple[str, _HashWords]:
        image = load_frame(workspace, frame)
        return _pixel_digest(image), tuple(_perceptual_hash(image).tolist())

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:
        futures = [pool.submit(one, frame) for frame in frames]
        for frame, future in zip(frames, futures, strict=True):
            try:
                pixels, value = future.result()
            except DataError as error:
                skipped.append((frame.id, error.what))
                continue
            yield frame.id, pixels, value


def _read_fingerprints(folder: Path) -> dict[str, tuple[str, _HashWords]]:
    """All fingerprints on disk; an unreadable file is computed again."""
    known: dict[str, tuple[str, _HashWords]] = {}
    for path in sorted(folder.glob("[!.]*.npy")):
        try:
            content = path.read_bytes()
            rows = np.load(io.BytesIO(content), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if rows.dtype != _ROW_DTYPE or path.stem != digest.shorten(digest.of_bytes(content)):
            continue
        for name, pixels, words in rows.tolist():
            known[name.decode()] = (pixels.decode(), tuple(words))
    return known


def _write_fingerprints(folder: Path, fingerprints: Sequence[tuple[str, str, _HashWords]]) -> None:
    rows = np.array(fingerprints, _ROW_DTYPE)
    stream = io.BytesIO()
    np.save(stream, rows, allow_pickle=False)
    name = digest.shorten(digest.of_bytes(stream.getvalue()))
    try:
        write_atomic(folder / f"{name}.npy", stream.getvalue())
    except OSError as error:
        raise WorkbenchError(
            f"cannot write fingerprints: {error.strerror or error}",
            where=folder,
            hint="Free disk space and run again; finished files are kept",
        ) from error


def _pixel_digest(image: Pixels) -> str:
    """SHA-256 of an RGB uint8 image ``[height, width, 3]``, including its size."""
    size = np.array(image.shape, "<u4").tobytes()
    return digest.of_bytes(size + np.ascontiguousarray(image).tobytes())


def _perceptual_hash(image: Pixels) -> NDArray[np.uint64]:
    """Perceptual hash of an image: the signs of its lowest frequencies.

    The 16 x 16 lowest coefficients of the cosine transform of a 64 x 64 luma thumbnail, compared
    with their median: pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash
    functions") with four times its bits, because roads share a layout. Invariant to encoding, scale
    and brightness, not to motion.

    Args:
        image: RGB uint8 ``[height, width, 3]``.

    Returns:
        256 bits, uint64 ``[4]``.
    """
    import cv2

    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(luma, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_KEPT, :_KEPT].ravel()
    bits = low > np.median(low[1:])  # the first coefficient is the mean brightness
    words: NDArray[np.uint64] = np.packbits(bits).view("<u8").astype(np.uint64)
    return words


def hamming_distance(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Number of differing bits of hashes ``[..., 4]``; broadcasts, uint16 ``[...]``."""
    counted = np.bitwise_count(np.bitwise_xor(first, second))
    differing: NDArray[np.uint16] = counted.sum(axis=-1, dtype=np.uint16)
    return differing


@dataclass(frozen=True)
class Balls:
    """``n`` hashes in ``m`` balls.

    Attributes:
        hashes: Uint64 ``[n, 4]``.
        order: Int64 ``[n]``: rows, ball after ball.
        starts: Int64 ``[m + 1]``: start of each ball in ``order``; its first row is the centre.
        radius: Int64 ``[m]``: bits from the centre to the furthest row.
    """

    hashes: NDArray[np.uint64]
    order: RowNumbers
    starts: RowNumbers
    radius: RowNumbers

    @cached_property
    def centres(self) -> RowNumbers:
        """Row of each centre ``[m]``."""
        return self.order[self.starts[:-1]]

    @cached_property
    def sizes(self) -> RowNumbers:
        """Rows per ball ``[m]``."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class BallPairs:
    """Pairs of balls ``[k]`` that may hold a near pair, including a ball with itself."""

    first: RowNumbers
    second: RowNumbers

    def __len__(self) -> int:
        return len(self.first)

    def keep(self, selected: NDArray[np.bool_] | RowNumbers | slice) -> BallPairs:
        return BallPairs(self.first[selected], self.second[selected])


def make_balls(hashes: NDArray[np.uint64], reach: int) -> Balls:
    """Balls of hashes that follow each other; equal hashes count as following.

    Args:
        hashes: Uint64 ``[n, 4]``.
        reach: Largest number of bits from the centre.
    """
    order = _group_equal(hashes)
    raw = np.ascontiguousarray(hashes[order]).tobytes()
    width = HASH_BITS // 8
    numbers = (int.from_bytes(raw[at : at + width]) for at in range(0, len(raw), width))
    starts: list[int] = []
    radius: list[int] = []
    centre = 0
    for workspace, number in enumerate(numbers):
        distance = (number ^ centre).bit_count()
        if not starts or distance > reach or workspace - starts[-1] == _MAX_BALL_SIZE:
            starts.append(workspace)
            radius.append(0)
            centre = number
        else:
            radius[-1] = max(radius[-1], distance)
    return Balls(
        hashes, order, np.array([*starts, len(order)], np.int64), np.array(radius, np.int64)
    )


def near_ball_pairs(
    balls: Balls, others: Balls | None, limit: int, skip_block: _SkipBlock | None = None
) -> Iterator[BallPairs]:
    """Pairs of balls that may hold rows at most ``limit`` bits apart; none is missed.

    Args:
        balls: The balls.
        others: Balls to compare with; None compares ``balls`` with each second_balls, each pair
            once.
        limit: Largest Hamming distance.
        skip_block: Called with two blocks of balls before they are compared; True skips them.
    """
    import faiss

    second_balls = others or balls
    queries, known = _centre_codes(balls), _centre_codes(second_balls)
    radius = limit + int(balls.radius.max(initial=0)) + int(second_balls.radius.max(initial=0))
    for start in range(0, len(queries), _ROWS):
        block = queries[start : start + _ROWS]
        for column in range(0 if others else start, len(known), _COLUMNS):
            blocks = slice(start, start + _ROWS), slice(column, column + _COLUMNS)
            if skip_block and skip_block(*blocks):
                continue
            index = faiss.IndexBinaryFlat(HASH_BITS)
            index.add(known[column : column + _COLUMNS])
            cuts, distance, second = index.range_search(block, radius + 1)  # below, not up to
            counts = cuts[1:].astype(np.int64) - cuts[:-1].astype(np.int64)
            first = np.repeat(np.arange(start, start + len(block)), counts)
            second = second + column
            near = distance <= limit + balls.radius[first] + second_balls.radius[second]
            if others is None:
                near &= second >= first
            if near.any():
                yield BallPairs(first[near], second[near])


def near_row_pairs(
    balls: Balls, others: Balls | None, pairs: BallPairs, limit: int
) -> tuple[RowNumbers, RowNumbers, _BitCounts, int]:
    """Rows at most ``limit`` bits apart in the first of these pairs of balls.

    Args:
        balls: The balls.
        others: The second_balls balls, or None.
        pairs: Pairs of balls.
        limit: Largest Hamming distance.

    Returns:
        Rows of ``balls``, rows of ``others``, distances in bits, and the number of pairs of balls
        opened: as many as hold `PAIRS_PER_SLICE` pairs of rows. Within one set of balls the first
            row
        is the lower one.
    """
    second_balls = others or balls
    first_sizes = balls.sizes[pairs.first[:_BALL_PAIRS_AHEAD]]
    second_sizes = second_balls.sizes[pairs.second[:_BALL_PAIRS_AHEAD]]
    opened = max(
        1,
        int(np.searchsorted(np.cumsum(first_sizes * second_sizes), PAIRS_PER_SLICE, side="right")),
    )
    first_sizes, second_sizes = first_sizes[:opened], second_sizes[:opened]
    count = first_sizes * second_sizes
    workspace = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(workspace, np.repeat(second_sizes, count))
    first = balls.order[np.repeat(balls.starts[pairs.first[:opened]], count) + row]
    second = second_balls.order[
        np.repeat(second_balls.starts[pairs.second[:opened]], count) + column
    ]
    if others is None:
        same = np.repeat(pairs.first[:opened] == pairs.second[:opened], count)
        once = ~same | (column > row)
        first, second = first[once], second[once]
        first, second = np.minimum(first, second), np.maximum(first, second)
    bits = hamming_distance(balls.hashes[first], second_balls.hashes[second])
    near = bits <= limit
    return first[near], second[near], bits[near], opened


def _group_equal(hashes: NDArray[np.uint64]) -> RowNumbers:
    """All rows, those of equal hashes together at their first occurrence."""
    words = np.ascontiguousarray(hashes).view(np.dtype((np.void, HASH_BITS // 8))).ravel()
    _, firsts, inverse = np.unique(words, return_index=True, return_inverse=True)
    order: RowNumbers = np.argsort(firsts[inverse], kind="stable")
    return order


def _centre_codes(balls: Balls) -> NDArray[np.uint8]:
    centres = np.ascontiguousarray(balls.hashes[balls.centres])
    return centres.view(np.uint8).reshape(len(centres), HASH_BITS // 8)
