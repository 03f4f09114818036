"""Vectors as directions about one centre, read a block at a time from wherever they lie.

What is compared is the cosine of centred vectors. Centring matters: features behind a ReLU all
point into one orthant, and without it every pair looks alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError

Vectors = NDArray[np.floating[Any]]

_BLOCK = 16_384
_SHORTEST = 1e-6


def directions(vectors: Vectors, centre: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Unit vectors ``[n, d]`` about ``centre`` (default: their own mean). Constant ones are zero.

    Raises:
        DataError: A number is missing or infinite.
    """
    values = np.asarray(vectors, np.float32)
    _check_finite(values)
    values = values - (values.mean(0) if centre is None else centre)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > _SHORTEST
    )
    return unit


class Directions:
    """``n`` unit vectors about one centre, made when asked for; the vectors may be mapped files.

    Args:
        vectors: ``[n, d]``, any floating type.
        centre: Float32 ``[d]``; by default, the mean of ``vectors``.

    Attributes:
        scale: Float32 ``[n]``: one over each length; 0 for a vector that is the centre itself.
        prints: Uint64 ``[n]``: equal for vectors of equal bytes, and hardly ever else.

    Raises:
        DataError: No vectors, or a number is missing or infinite.
    """

    def __init__(self, vectors: Vectors, centre: NDArray[np.float32] | None = None) -> None:
        if vectors.ndim != 2 or not vectors.size:
            raise DataError(f"vectors of shape {list(vectors.shape)} cannot be compared")
        self._parts: list[Vectors] = []
        self._starts = np.zeros(1, np.int64)
        self.width = vectors.shape[1]
        self.centre = _mean(vectors) if centre is None else centre
        self.scale = np.empty(0, np.float32)
        self.prints = np.empty(0, np.uint64)
        self.append(vectors)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def append(self, vectors: Vectors) -> None:
        """More vectors, about the same centre; their rows follow those that are there."""
        if vectors.shape[1:] != (self.width,):
            raise DataError(
                f"vectors of width {vectors.shape[-1]} cannot be compared with width {self.width}",
                hint="They come from different models; embed both with the same one",
            )
        scale = np.empty(len(vectors), np.float32)
        prints = np.empty(len(vectors), np.uint64)
        for start in range(0, len(vectors), _BLOCK):
            block = np.ascontiguousarray(vectors[start : start + _BLOCK])
            values = block.astype(np.float32)
            _check_finite(values)
            values -= self.centre
            lengths = np.linalg.norm(values, axis=1)
            part = slice(start, start + len(block))
            scale[part] = np.divide(
                1, lengths, out=np.zeros_like(lengths), where=lengths > _SHORTEST
            )
            prints[part] = _prints(block)
        self._parts.append(vectors)
        self._starts = np.append(self._starts, len(self) + len(vectors))
        self.scale = np.concatenate([self.scale, scale])
        self.prints = np.concatenate([self.prints, prints])

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The unit vectors of these rows, float32 ``[..., d]``."""
        flat = np.asarray(rows).ravel()
        values = np.empty((len(flat), self.width), np.float32)
        owner = np.searchsorted(self._starts, flat, side="right") - 1
        for number, part in enumerate(self._parts):
            chosen = slice(None) if len(self._parts) == 1 else owner == number
            values[chosen] = part[flat[chosen] - self._starts[number]]
        values -= self.centre
        values *= self.scale[flat, None]
        return values.reshape(*np.shape(rows), self.width)

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All unit vectors in order, with the row each block starts at."""
        for start in range(0, len(self), size):
            yield start, self.take(np.arange(start, min(start + size, len(self))))

    def units(self, vectors: Vectors) -> NDArray[np.float32]:
        """Other vectors as directions about the same centre, float32 ``[m, d]``."""
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise DataError(
                f"vectors of width {vectors.shape[-1]} cannot be compared with width {self.width}",
                hint="They come from different models; embed both with the same one",
            )
        return directions(vectors, self.centre)


def _mean(vectors: Vectors) -> NDArray[np.float32]:
    total = np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), _BLOCK):
        total += np.asarray(vectors[start : start + _BLOCK], np.float32).sum(0, dtype=np.float64)
    mean: NDArray[np.float32] = (total / len(vectors)).astype(np.float32)
    return mean


def _check_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise DataError(f"{bad} of {len(values)} vectors are not finite", hint="Embed them again")


def _prints(block: Vectors) -> NDArray[np.uint64]:
    """A 64-bit number for each row's bytes: their product with random numbers, modulo 2^64."""
    words = block.view(f"u{block.dtype.itemsize}")
    factors = np.random.default_rng(0).integers(0, 2**64, words.shape[1], np.uint64, endpoint=False)
    prints: NDArray[np.uint64] = words.astype(np.uint64) @ factors
    return prints
