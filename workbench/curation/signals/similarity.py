"""Search a pool by example or by text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.detection.boxes import box_area, intersection_matrix, iou_matrix

MatchKind = Literal["object", "tile", "frame"]
_FloatVectors = NDArray[np.floating]

_BLOCK = 65_536
_SAMPLE = 20_000
_SHRINK = 0.1
"""Share of the mean variance that is added to every direction before whitening."""


class Regions:
    """The places of one pool; place numbers count objects first, then tiles."""

    def __init__(self, pool: Embeddings, *, whole: bool) -> None:
        self.frames = len(pool.frames)
        self.parts: list[tuple[MatchKind, _FloatVectors, NDArray[np.int64]]] = []
        if whole:
            self.parts.append(("frame", pool.vectors, np.arange(self.frames)))
        else:
            if len(pool.object_vectors):
                self.parts.append(("object", pool.object_vectors, pool.owner))
            if _comparable_tiles(pool):
                self.parts.append(("tile", pool.tiles.vectors, pool.tiles.owner))
        self.starts = np.cumsum([0, *(len(vectors) for _, vectors, _ in self.parts)])
        if not self.starts[-1]:
            raise DataError(
                "the pool has neither objects nor tiles to compare a box with",
                hint="Embed it with an encoder that looks at tiles, or search by whole frame",
            )
        self.mean, self.scale = whitening(self.parts[-1][1])

    def unit(self, vectors: _FloatVectors) -> NDArray[np.float32]:
        """Float32 unit vectors ``[k, c]``; what does not differ from the mean is zero."""
        return _normalize((np.asarray(vectors, np.float32) - self.mean) @ self.scale)

    def nearest(
        self, queries: Sequence[_FloatVectors]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Best likeness of each frame, the place it is found at, and the query it is like.

        A frame without any place has likeness -1 and place -1.
        """
        return self._search(self.unit(self._stacked(queries)), self.unit)

    def nearest_words(
        self, words: _FloatVectors
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """As `nearest`, for words: not whitened, since words lie where no image does."""
        return self._search(_normalize(self._stacked([words])), _normalize)

    def _search(
        self, wanted: NDArray[np.float32], unit: Callable[[_FloatVectors], NDArray[np.float32]]
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

    def at(self, place: NDArray[np.int64], queries: Sequence[_FloatVectors]) -> NDArray[np.float64]:
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

    def names(self, place: NDArray[np.int64]) -> tuple[tuple[MatchKind, ...], NDArray[np.int64]]:
        """What kind of thing is at each place, and its row among its kind."""
        part = np.clip(np.searchsorted(self.starts, place, side="right") - 1, 0, None)
        kinds = tuple(self.parts[number][0] for number in part.tolist())
        return kinds, np.where(place < 0, -1, place - self.starts[part])

    def _blocks(self) -> Iterator[tuple[int, _FloatVectors, NDArray[np.int64]]]:
        for start, (_, vectors, owner) in zip(self.starts.tolist(), self.parts, strict=False):
            for first in range(0, len(vectors), _BLOCK):
                part = slice(first, first + _BLOCK)
                yield start + first, vectors[part], owner[part]

    def _stacked(self, queries: Sequence[_FloatVectors]) -> _FloatVectors:
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


def _comparable_tiles(pool: Embeddings) -> bool:
    """Whether there are tiles, in one space with the objects."""
    if not pool.tiles.per_frame:
        return False
    width = pool.tiles.vectors.shape[1]
    return not len(pool.object_vectors) or bool(width == pool.object_vectors.shape[1])


def _normalize(vectors: _FloatVectors) -> NDArray[np.float32]:
    values = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > 1e-6
    )
    return unit


def whitening(
    vectors: _FloatVectors, shrink: float = _SHRINK
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


# ---- More like this: a pool in order of likeness to a frame, to a box on one, or to words.
#
# A box is looked for among the pool's objects and among its tiles, so that a thing is found whether
# the detector has a box for it or not. A whole frame is compared with whole frames, which finds
# scenes, not things: to find a thing, draw a box around it.


_MIN_BOX_IOU = 0.5
"""Overlap (IoU) from which a box of the detector is what a person drew."""


@dataclass(frozen=True)
class Exemplar:
    """What to look for: a frame, or what a box on it holds.

    Attributes:
        frame: Digest; a frame of the pool.
        box: ``x, y, w, h`` in the frame's pixels, or None for the frame as a whole.
        vector: Float ``[c]`` of what is in the box, from the encoder that embedded the pool; None
            takes that of the pool's object or tile that fits the box best.
    """

    frame: str
    box: tuple[float, float, float, float] | None = None
    vector: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class SimilarityScores:
    """How like the exemplars ``n`` frames are, in the order of the embeddings.

    Attributes:
        score: Float64 ``[n]``, a cosine in [-1, 1]; the best of what a frame holds.
        kind: What matched best: an object, a tile, or the frame as a whole.
        row: Int64 ``[n]``: its row among the embeddings' objects or tiles; the frame's own row.
        exemplar: Int64 ``[n]``: which of the exemplars it is like.
        given: Rows of the exemplars' own frames; `order` leaves them out.
    """

    score: NDArray[np.float64]
    kind: tuple[MatchKind, ...]
    row: NDArray[np.int64]
    exemplar: NDArray[np.int64]
    given: tuple[int, ...] = ()

    @property
    def order(self) -> NDArray[np.int64]:
        """Rows of frames, most alike first, without the exemplars' own; ties by row."""
        ranked = np.lexsort((np.arange(len(self.score)), -self.score))
        kept: NDArray[np.int64] = ranked[~np.isin(ranked, np.array(self.given, np.int64))]
        return kept

    def why(self, row: int) -> str:
        """In words, for whoever looks at the frame."""
        thing = {"object": "an object", "tile": "a part of the picture", "frame": "a scene"}
        which = f" {int(self.exemplar[row]) + 1}" if self.exemplar.max(initial=0) > 0 else ""
        return f"{thing[self.kind[row]]} like exemplar{which} ({self.score[row]:.2f})"


class TextEncoder(Protocol):
    """An encoder of images and words into one space, such as CLIP."""

    @property
    def model(self) -> str: ...

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Float32 ``[d]``."""
        ...


def search_by_example(
    pool: Embeddings, exemplars: Sequence[Exemplar], negatives: Sequence[Exemplar] = ()
) -> SimilarityScores:
    """Rank a pool by likeness to the nearest of several exemplars.

    Args:
        negatives: What it should not be like: half of the likeness to the nearest of them is
            taken off (Rocchio 1971, with the nearest instead of the mean).

    Raises:
        ParameterError: No exemplar, one whose frame is not in the pool, one whose box lies outside,
            or frames and boxes at once.
        DataError: An exemplar's vector is not finite, or is of another width.
    """
    if not exemplars:
        raise ParameterError("no exemplar was given", hint="Name a frame, or a frame and a box")
    whole = {one.box is None and one.vector is None for one in (*exemplars, *negatives)}
    if len(whole) > 1:
        raise ParameterError(
            "frames and boxes cannot be looked for at once",
            where=", ".join(one.frame[:12] for one in exemplars),
            hint="Search twice, or give every exemplar a box",
        )
    rows = {frame: row for row, frame in enumerate(pool.frames)}
    for one in (*exemplars, *negatives):
        if one.frame not in rows and one.vector is None:
            raise ParameterError(
                "the exemplar is not in the pool",
                where=one.frame,
                hint="Name a frame of the pool, or embed what the box holds and give its vector",
            )
    places = Regions(pool, whole=whole.pop())
    score, place, which = places.nearest([_exemplar_vector(pool, rows, one) for one in exemplars])
    if negatives:
        unlike = places.at(place, [_exemplar_vector(pool, rows, one) for one in negatives])
        score = score - 0.5 * np.maximum(unlike, 0.0)
    given = tuple(sorted({rows[one.frame] for one in exemplars if one.frame in rows}))
    kinds, found = places.names(place)
    return SimilarityScores(score, kinds, found, which, given)


def search_by_text(pool: Embeddings, encoder: TextEncoder, query: str) -> SimilarityScores:
    """Rank a pool by likeness to words: whole frames, and their objects and tiles if it has any.

    Raises:
        ParameterError: No words; an encoder without words, or another than the pool's.
    """
    if not query.strip():
        raise ParameterError("there are no words to look for", where="text")
    encode = getattr(encoder, "encode_text", None)
    if encode is None:
        raise ParameterError(
            "the encoder has no words",
            where=type(encoder).__name__,
            hint="Embed the pool with a model that has a text tower, such as CLIP or SigLIP",
        )
    if encoder.model != pool.model:
        raise ParameterError(
            "the pool was embedded by another model",
            where=f"{pool.model[:12]} against {encoder.model[:12]}",
            hint="Embed the pool with the encoder of the words",
        )
    words = np.asarray(encode(query), np.float32)
    found = [Regions(pool, whole=True)]
    if len(pool.scores) or pool.tiles.per_frame:
        found.append(Regions(pool, whole=False))
    return _best_per_frame([_text_similarity(places, words) for places in found])


def _text_similarity(places: Regions, words: NDArray[np.float32]) -> SimilarityScores:
    score, place, which = places.nearest_words(words)
    kinds, rows = places.names(place)
    return SimilarityScores(score, kinds, rows, which)


def _best_per_frame(found: Sequence[SimilarityScores]) -> SimilarityScores:
    """The better of two likenesses, frame by frame."""
    first, *others = found
    for other in others:
        better = other.score > first.score
        first = SimilarityScores(
            np.where(better, other.score, first.score),
            tuple(
                b if use else a
                for a, b, use in zip(first.kind, other.kind, better.tolist(), strict=True)
            ),
            np.where(better, other.row, first.row),
            np.where(better, other.exemplar, first.exemplar),
        )
    return first


def _exemplar_vector(pool: Embeddings, rows: dict[str, int], one: Exemplar) -> NDArray[np.float32]:
    """The exemplar's vector: given, the frame's, or that of the object or tile which fits best."""
    if one.vector is not None:
        return np.asarray(one.vector, np.float32)
    row = rows[one.frame]
    if one.box is None:
        return np.asarray(pool.vectors[row], np.float32)
    x, y, w, h = one.box
    if not (np.isfinite(one.box).all() and w > 0 and h > 0):
        raise ParameterError(
            "the exemplar's box is none", where=f"{one.frame[:12]}:{x:g},{y:g},{w:g},{h:g}"
        )
    box = np.array([[x, y, x + w, y + h]], np.float32)
    objects = np.flatnonzero(pool.owner == row)
    overlap = iou_matrix(box, pool.boxes[objects])[0]
    fitting = objects[int(overlap.argmax())] if len(objects) and overlap.max() > 0 else None
    tile = _best_tile(pool, row, box)
    if fitting is not None and (tile is None or overlap.max() >= _MIN_BOX_IOU):
        return np.asarray(pool.object_vectors[fitting], np.float32)
    if tile is not None:
        return np.asarray(pool.tiles.vectors[tile], np.float32)
    raise ParameterError(
        "nothing of the pool lies under the exemplar's box",
        where=f"{one.frame[:12]}:{x:g},{y:g},{w:g},{h:g}",
        hint="Boxes are x, y, width, height in the frame's pixels; is it inside the picture?",
    )


def _best_tile(pool: Embeddings, row: int, box: NDArray[np.float32]) -> int | None:
    """The tile that shares most with a box; None where none does."""
    count = pool.tiles.per_frame
    if not _comparable_tiles(pool):
        return None
    tiles = pool.tiles.boxes[row * count : (row + 1) * count]
    shared = intersection_matrix(box, tiles)[0]
    # Of two tiles that hold as much of the box, the smaller one holds less beside it.
    fit = shared / np.sqrt(box_area(tiles))
    return row * count + int(fit.argmax()) if fit.max() > 0 else None
