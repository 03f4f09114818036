"""Fingerprints: what an image shows in a few bytes, so that twins are found without a model.

Two numbers a frame: the digest of its decoded pixels, equal for the same picture behind other
bytes (metadata, PNG against BMP), and a perceptual hash, near for the same picture encoded,
scaled or lit otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench import digest, workspace
from workbench.errors import DataError, WorkbenchError
from workbench.perception.preprocessing import Pixels, load_rgb
from workbench.records.dataset import media_path
from workbench.records.frames import Frame
from workbench.workspace import Workspace

Progress = Callable[[int, int], None]
Words = tuple[int, ...]

BITS = 256
_LAYOUT = "v1"
_SHARD = 512
_SIDE, _KEPT = 64, 16
_WORDS = BITS // 64
_ROW = np.dtype([("frame", "S64"), ("pixels", "S64"), ("hash", "<u8", (_WORDS,))])


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


def fingerprints(
    place: Workspace, frames: Sequence[Frame], progress: Progress | None = None
) -> Fingerprints:
    """Fingerprints of these frames; what an earlier pass computed is read, not computed again.

    Raises:
        WorkbenchError: The disk is full.
    """
    folder = place.root / "fingerprints" / _LAYOUT
    known = _read(folder)
    missing = [frame for frame in frames if frame.id not in known]
    left_out: list[tuple[str, str]] = []
    done = len(frames) - len(missing)
    for start in range(0, len(missing), _SHARD):
        chunk = missing[start : start + _SHARD]
        found = list(_look(place, chunk, left_out))
        if found:
            _write(folder, found)
            known.update({name: (pixels, value) for name, pixels, value in found})
        done += len(chunk)
        if progress:
            progress(done, len(frames))
    names = tuple(frame.id for frame in frames if frame.id in known)
    return Fingerprints(
        frames=names,
        pixels=tuple(known[name][0] for name in names),
        hashes=np.array([known[name][1] for name in names], np.uint64).reshape(-1, _WORDS),
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


def differing_bits(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """In how many of the 256 bits hashes ``[..., 4]`` differ; broadcasts, ``[...]``."""
    counted = np.bitwise_count(np.bitwise_xor(first, second))
    differing: NDArray[np.uint16] = counted.sum(axis=-1, dtype=np.uint16)
    return differing


def _look(
    place: Workspace, frames: Sequence[Frame], left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, str, Words]]:
    def one(frame: Frame) -> tuple[str, Words]:
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


def _read(folder: Path) -> dict[str, tuple[str, Words]]:
    """Every fingerprint on disk; a file that cannot be read is one that is computed again."""
    known: dict[str, tuple[str, Words]] = {}
    for path in sorted(folder.glob("[!.]*.npy")):
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if rows.dtype != _ROW:
            continue
        for name, pixels, words in rows.tolist():
            known[name.decode()] = (pixels.decode(), tuple(words))
    return known


def _write(folder: Path, found: Sequence[tuple[str, str, Words]]) -> None:
    rows = np.array(found, _ROW)
    stream = io.BytesIO()
    np.save(stream, rows, allow_pickle=False)
    name = digest.short(digest.of_bytes(stream.getvalue()))
    try:
        workspace.write_atomic(folder / f"{name}.npy", stream.getvalue())
    except OSError as error:
        raise WorkbenchError(
            f"fingerprints cannot be written: {error.strerror or error}",
            where=folder,
            hint="Free some space and run again; finished files are kept",
        ) from error
