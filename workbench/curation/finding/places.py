"""Everything in a pool that can be compared with an exemplar: its objects and tiles, or its frames.

Vectors are centred and whitened by the spread of the pool's own, so that the directions in which
everything varies (how bright, how close to the horizon) do not drown what tells things apart. Rows
are read in blocks: memory does not grow with the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.one_pass import Embeddings
from workbench.errors import DataError

Kind = Literal["object", "tile", "frame"]
Vectors = NDArray[np.floating]

_BLOCK = 65_536
_SAMPLE = 20_000
_SHRINK = 0.1
"""Share of the mean variance that is added to every direction before whitening."""


class Places:
    """The places of one pool; place numbers count objects first, then tiles."""

    def __init__(self, pool: Embeddings, *, whole: bool) -> None:
        self.frames = len(pool.frames)
        self.parts: list[tuple[Kind, Vectors, NDArray[np.int64]]] = []
        if whole:
            self.parts.append(("frame", pool.vectors, np.arange(self.frames)))
        else:
            if len(pool.object_vectors):
                self.parts.append(("object", pool.object_vectors, pool.owner))
            if comparable_tiles(pool):
                self.parts.append(("tile", pool.tiles.vectors, pool.tiles.owner))
        self.starts = np.cumsum([0, *(len(vectors) for _, vectors, _ in self.parts)])
        if not self.starts[-1]:
            raise DataError(
                "the pool has neither objects nor tiles to compare a box with",
                hint="Embed it with an encoder that looks at tiles, or search by whole frame",
            )
        self.mean, self.scale = whitening(self.parts[-1][1])

    def unit(self, vectors: Vectors) -> NDArray[np.float32]:
        """Float32 unit vectors ``[k, c]``; what does not differ from the mean is zero."""
        return _plain((np.asarray(vectors, np.float32) - self.mean) @ self.scale)

    def nearest(
        self, queries: Sequence[Vectors]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Best likeness of each frame, the place it is found at, and the query it is like.

        A frame without any place has likeness -1 and place -1.
        """
        return self._search(self.unit(self._stacked(queries)), self.unit)

    def nearest_words(
        self, words: Vectors
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """As `nearest`, for words: not whitened, since words lie where no image does."""
        return self._search(_plain(self._stacked([words])), _plain)

    def _search(
        self, wanted: NDArray[np.float32], unit: Callable[[Vectors], NDArray[np.float32]]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        best = np.full(self.frames, -1.0)
        place, which = np.full(self.frames, -1, np.int64), np.zeros(self.frames, np.int64)
        for first, vectors, owner in self._blocks():
            alike = unit(vectors) @ wanted.T
            query = alike.argmax(axis=1)
            value = alike[np.arange(len(query)), query].astype(np.float64)
            order = np.lexsort((-np.arange(len(value)), value))
            top = np.full(self.frames, -1, np.int64)
            top[owner[order]] = order  # the last one written is the largest of its frame
            rows = np.flatnonzero(top >= 0)
            rows = rows[value[top[rows]] > best[rows]]
            best[rows], place[rows] = value[top[rows]], first + top[rows]
            which[rows] = query[top[rows]]
        return best, place, which

    def at(self, place: NDArray[np.int64], queries: Sequence[Vectors]) -> NDArray[np.float64]:
        """Largest likeness of what is at each place to any of the queries; -1 for no place."""
        wanted = self.unit(self._stacked(queries))
        best = np.full(len(place), -1.0)
        for number, (_, vectors, _) in enumerate(self.parts):
            rows = np.flatnonzero(
                (place >= self.starts[number]) & (place < self.starts[number + 1])
            )
            if len(rows):
                found = self.unit(vectors[place[rows] - self.starts[number]])
                best[rows] = (found @ wanted.T).max(axis=1)
        return best

    def names(self, place: NDArray[np.int64]) -> tuple[tuple[Kind, ...], NDArray[np.int64]]:
        """What kind of thing is at each place, and its row among its kind."""
        part = np.clip(np.searchsorted(self.starts, place, side="right") - 1, 0, None)
        kinds = tuple(self.parts[number][0] for number in part.tolist())
        return kinds, np.where(place < 0, -1, place - self.starts[part])

    def _blocks(self) -> Iterator[tuple[int, Vectors, NDArray[np.int64]]]:
        for start, (_, vectors, owner) in zip(self.starts.tolist(), self.parts, strict=False):
            for first in range(0, len(vectors), _BLOCK):
                part = slice(first, first + _BLOCK)
                yield start + first, vectors[part], owner[part]

    def _stacked(self, queries: Sequence[Vectors]) -> Vectors:
        width = self.parts[0][1].shape[1]
        for query in queries:
            if np.shape(query) != (width,):
                raise DataError(
                    f"a vector of shape {np.shape(query)} cannot be looked for among vectors of "
                    f"width {width}",
                    hint="Embed the exemplar with the encoder of the pool",
                )
        values = np.stack([np.asarray(query, np.float32) for query in queries])
        if not np.isfinite(values).all():
            raise DataError("an exemplar's vector is not finite", hint="Choose another exemplar")
        return values


def comparable_tiles(pool: Embeddings) -> bool:
    """Whether there are tiles, in one space with the objects."""
    if not pool.tiles.per_frame:
        return False
    width = pool.tiles.vectors.shape[1]
    return not len(pool.object_vectors) or bool(width == pool.object_vectors.shape[1])


def _plain(vectors: Vectors) -> NDArray[np.float32]:
    values = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > 1e-6
    )
    return unit


def whitening(
    vectors: Vectors, shrink: float = _SHRINK
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean ``[c]`` and symmetric whitening ``[c, c]`` of an even sample of rows.

    ``shrink`` is the share of the mean variance that is added to every direction before.
    """
    sample = np.asarray(vectors[:: max(1, len(vectors) // _SAMPLE)], np.float64)
    if not np.isfinite(sample).all():
        raise DataError("some vectors of the pool are not finite", hint="Embed them again")
    mean = sample.mean(0)
    spread = np.cov(sample - mean, rowvar=False).reshape(len(mean), len(mean))
    level = max(float(np.trace(spread)) / len(mean), 1e-12)
    values, directions = np.linalg.eigh(spread)
    scale = (directions / np.sqrt(np.clip(values, 0, None) + shrink * level)) @ directions.T
    return mean.astype(np.float32), scale.astype(np.float32)
