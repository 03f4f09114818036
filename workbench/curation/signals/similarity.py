"""Search a pool by example or by text.

A box is searched for among the pool's objects and tiles, so an object is found whether the detector
has a box for it or not. A whole frame is compared with whole frames, which finds scenes, not
objects. Vectors are centred and whitened by the spread of the pool's own, so that directions in
which everything varies (brightness, distance to the horizon) do not hide what tells objects apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.core.text import short_repr
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.embedding.encoders import tile_boxes
from workbench.detection.boxes import box_area, intersection_matrix, iou_matrix

__all__ = ["Exemplar", "SimilarityScores", "search_by_example"]

_MatchKind = Literal["object", "tile", "frame"]
_FloatVectors = NDArray[np.floating]
_BLOCK = 65_536
_SAMPLE = 20_000
_SHRINK = 0.1
"""Share of the mean variance added to every direction before whitening."""

_MIN_BOX_IOU = 0.5
"""IoU from which a detected box counts as the box that a person drew."""


@short_repr
@dataclass(frozen=True)
class Exemplar:
    """What to search for: a frame, or the content of a box on it.

    Attributes:
        frame: Digest of a frame of the pool.
        box: ``x, y, w, h``, pixels of the frame; None for the whole frame.
        vector: Float ``[c]`` of the box's content, from the pool's encoder; None takes the vector
            of the pool's object or tile that fits the box best.
    """

    frame: str
    box: tuple[float, float, float, float] | None = None
    vector: NDArray[np.floating] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the whole frame is the exemplar."""
        return self.box is None and self.vector is None

    @property
    def xyxy(self) -> NDArray[np.float32]:
        """The box, float32 ``[1, 4]``.

        Raises:
            ParameterError: It has no positive area.
        """
        x, y, w, h = self.box or (0.0, 0.0, 0.0, 0.0)
        if not (np.isfinite((x, y, w, h)).all() and w > 0 and h > 0):
            raise ParameterError(
                "invalid exemplar box", where=f"{self.frame[:12]}:{x:g},{y:g},{w:g},{h:g}"
            )
        return np.array([[x, y, x + w, y + h]], np.float32)


@short_repr
@dataclass(frozen=True)
class SimilarityScores:
    """Similarity of ``n`` frames to the exemplars, in the order of the embeddings.

    Attributes:
        score: Float64 ``[n]``, cosine in [-1, 1]; the best of a frame's regions.
        kind: What matched best: an object, a tile, or the whole frame.
        row: Int64 ``[n]``: its row among the embeddings' objects or tiles, or the frame's row.
        exemplar: Int64 ``[n]``: index of the exemplar it is similar to.
        exemplar_rows: Rows of the exemplars' own frames; `order` leaves them out.
        query: What the frames are similar to, in words.
    """

    score: NDArray[np.float64]
    kind: tuple[_MatchKind, ...]
    row: NDArray[np.int64]
    exemplar: NDArray[np.int64]
    exemplar_rows: tuple[int, ...] = ()
    query: str = "exemplar"

    @property
    def order(self) -> NDArray[np.int64]:
        """Rows of frames, most similar first, without the exemplars' own; ties by row."""
        ranked = np.lexsort((np.arange(len(self.score)), -self.score))
        kept: NDArray[np.int64] = ranked[~np.isin(ranked, np.array(self.exemplar_rows, np.int64))]
        return kept

    def reason(self, row: int) -> str:
        """What matched, as shown to labelers."""
        kinds = {"object": "an object", "tile": "a part of the image", "frame": "a scene"}
        number = f" {int(self.exemplar[row]) + 1}" if self.exemplar.max(initial=0) > 0 else ""
        return f"{kinds[self.kind[row]]} similar to {self.query}{number} ({self.score[row]:.2f})"


def search_by_example(
    pool: Embeddings, exemplars: Sequence[Exemplar], negatives: Sequence[Exemplar] = ()
) -> SimilarityScores:
    """Rank a pool by similarity to the nearest of several exemplars.

    Args:
        pool: The frames to search.
        exemplars: Frames, or boxes on frames, to find more of; not both kinds at once.
        negatives: What results should not be like: half of the similarity to the nearest of them is
            subtracted (Rocchio 1971, with the nearest instead of the mean).

    Raises:
        ParameterError: No exemplar, a frame outside the pool, a box outside its frame, or frames
            and boxes at once.
        DataError: An exemplar's vector is not finite, or has another width.
    """
    rows = check_exemplars(pool, exemplars, negatives)
    regions = Regions(pool, whole=exemplars[0].is_whole)
    score, region, exemplar_index = regions.nearest(
        [_exemplar_vector(pool, rows, exemplar) for exemplar in exemplars]
    )
    if negatives:
        unlike = regions.at(
            region, [_exemplar_vector(pool, rows, exemplar) for exemplar in negatives]
        )
        score = score - 0.5 * np.maximum(unlike, 0.0)
    exemplar_rows = tuple(
        sorted({rows[exemplar.frame] for exemplar in exemplars if exemplar.frame in rows})
    )
    kinds, region_rows = regions.kinds_and_rows(region)
    return SimilarityScores(score, kinds, region_rows, exemplar_index, exemplar_rows)


def check_exemplars(
    pool: Embeddings, exemplars: Sequence[Exemplar], others: Sequence[Exemplar] = ()
) -> dict[str, int]:
    """Raise what `search_by_example` says of its exemplars; returns the row of each frame."""
    if not exemplars:
        raise ParameterError("no exemplar given", hint="Give a frame, or a frame and a box")
    if len({one.is_whole for one in (*exemplars, *others)}) > 1:
        raise ParameterError(
            "cannot search for frames and boxes at once",
            where=", ".join(one.frame[:12] for one in exemplars),
            hint="Search twice, or give every exemplar a box",
        )
    rows = {frame: row for row, frame in enumerate(pool.frames)}
    for one in (*exemplars, *others):
        if one.frame not in rows and one.vector is None:
            raise ParameterError(
                "exemplar is not in the pool",
                where=one.frame,
                hint="Give a frame of the pool, or the vector of the box's content",
            )
    return rows


def search_by_text(pool: Embeddings, encoder: object, text: str) -> SimilarityScores:
    """Rank a pool by similarity to a text: whole frames, and their objects and tiles if any.

    Args:
        pool: The frames to search.
        encoder: The pool's encoder; it must have ``encode_text``, as `HuggingFaceEncoder` has.
        text: What the frames should show.

    Raises:
        ParameterError: The text is empty, or the encoder has no text tower or is not the pool's.
    """
    if not text.strip():
        raise ParameterError("empty search text", where="text")
    encode = getattr(encoder, "encode_text", None)
    if encode is None:
        raise ParameterError(
            "the encoder has no text tower",
            where=type(encoder).__name__,
            hint="Use an encoder with a text tower, such as a folder with CLIP or SigLIP, or words "
            "of ImageNet without an encoder",
        )
    model = str(getattr(encoder, "model", ""))
    if model != pool.model:
        raise ParameterError(
            "the pool was embedded by another model",
            where=f"{pool.model[:12]} and {model[:12]}",
            hint="Embed the pool with the encoder of the text",
        )
    vector = np.asarray(encode([text])[0], np.float32)
    sets = [Regions(pool, whole=True)]
    if len(pool.scores) or pool.tiles.per_frame:
        sets.append(Regions(pool, whole=False))
    return _best_per_frame([_text_similarity(regions, vector) for regions in sets])


def _text_similarity(regions: Regions, text_vector: NDArray[np.float32]) -> SimilarityScores:
    score, region, query_index = regions.nearest_to_text(text_vector)
    kinds, rows = regions.kinds_and_rows(region)
    return SimilarityScores(score, kinds, rows, query_index)


def _best_per_frame(results: Sequence[SimilarityScores]) -> SimilarityScores:
    """The best of several results, frame by frame."""
    first, *others = results
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


def region_vector(pool: Embeddings, exemplar: Exemplar) -> NDArray[np.float32]:
    """The vector by which an exemplar of a pool is compared, to search other embeddings for it.

    Args:
        pool: Has the exemplar's frame.
        exemplar: A frame of the pool, or a box on it.

    Raises:
        ParameterError: The frame is not in the pool, or nothing lies under the box.
    """
    return _exemplar_vector(pool, check_exemplars(pool, [exemplar]), exemplar)


def _exemplar_vector(
    pool: Embeddings, rows: dict[str, int], exemplar: Exemplar
) -> NDArray[np.float32]:
    """The given vector, the frame's, or that of the object or tile that fits the box best."""
    if exemplar.vector is not None:
        return np.asarray(exemplar.vector, np.float32)
    row = rows[exemplar.frame]
    if exemplar.box is None:
        return np.asarray(pool.vectors[row], np.float32)
    box = exemplar.xyxy
    objects = np.flatnonzero(pool.owner == row)
    overlap = iou_matrix(box, pool.boxes[objects])[0]
    fitting = objects[int(overlap.argmax())] if len(objects) and overlap.max() > 0 else None
    tile = _best_tile(pool, row, box)
    if fitting is not None and (tile is None or overlap.max() >= _MIN_BOX_IOU):
        return np.asarray(pool.object_vectors[fitting], np.float32)
    if tile is not None:
        return np.asarray(pool.tiles.vectors[tile], np.float32)
    raise nothing_under(exemplar)


def nothing_under(exemplar: Exemplar) -> ParameterError:
    """The error of a box outside of all regions."""
    box = ",".join(f"{value:g}" for value in exemplar.box or ())
    return ParameterError(
        "no object or tile lies under the exemplar's box",
        where=f"{exemplar.frame[:12]}:{box}",
        hint="Boxes are x, y, width, height in pixels of the frame, inside the image",
    )


def _best_tile(pool: Embeddings, row: int, box: NDArray[np.float32]) -> int | None:
    """The tile that shares most with a box; None where none does."""
    count = pool.tiles.per_frame
    if not _comparable_tiles(pool):
        return None
    tiles = pool.tiles.boxes[row * count : (row + 1) * count]
    shared = intersection_matrix(box, tiles)[0]
    # Of two tiles with the same overlap, prefer the smaller one.
    fit = shared / np.sqrt(box_area(tiles))
    return row * count + int(fit.argmax()) if fit.max() > 0 else None


class Regions:
    """All regions of a pool that can be compared with an exemplar: objects and tiles, or whole
    frames.

    Regions are numbered, objects first, then tiles. Vectors are read in blocks, so memory does not
    grow with the pool.

    Args:
        pool: The embeddings.
        whole: Compare whole frames instead of objects and tiles.

    Raises:
        DataError: The pool has neither objects nor tiles.
    """

    def __init__(self, pool: Embeddings, *, whole: bool) -> None:
        self.frames = len(pool.frames)
        self._pool = pool
        self.parts: list[tuple[_MatchKind, _FloatVectors, NDArray[np.int64]]] = []
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
                hint="Embed it with an encoder that has tiles, or search by whole frame",
            )
        self.mean, self.scale = whitening(self.parts[-1][1])

    def unit(self, vectors: _FloatVectors) -> NDArray[np.float32]:
        """Whitened unit vectors, float32 ``[k, c]``; zero for the mean itself."""
        return _normalize((np.asarray(vectors, np.float32) - self.mean) @ self.scale)

    def nearest(
        self, queries: Sequence[_FloatVectors]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Best similarity of each frame, the region that has it, and the query it is similar to.

        Similarity and region are -1 for a frame without regions.
        """
        return self._search(self.unit(self._stacked(queries)), self.unit)

    def nearest_to(
        self, direction: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """As `nearest`, for a direction of the whitened space, float32 ``[c]``.

        A region's length there does not depend on the direction, so it is kept: every search but
        the first is one product of a vector and the regions.
        """
        lengths, offset = self._whitened_lengths, float(self.mean @ self.scale @ direction)
        projected = (self.scale @ direction)[:, None]
        best = np.full(self.frames, -1.0)
        region = np.full(self.frames, -1, np.int64)
        for first, vectors, owner in self._blocks():
            length = lengths[first : first + len(vectors)]
            value = (np.asarray(vectors, np.float32) @ projected)[:, 0] - offset
            value = np.divide(value, length, out=np.zeros_like(value), where=length > 1e-6)
            _keep_best(value.astype(np.float64), first, owner, best, region)
        return best, region, np.zeros(self.frames, np.int64)

    @cached_property
    def _whitened_lengths(self) -> NDArray[np.float32]:
        """Float32 ``[regions]``: Euclidean length of each whitened vector."""
        lengths = np.empty(int(self.starts[-1]), np.float32)
        for first, vectors, _ in self._blocks():
            whitened = (np.asarray(vectors, np.float32) - self.mean) @ self.scale
            lengths[first : first + len(vectors)] = np.linalg.norm(whitened, axis=1)
        return lengths

    def of_frame(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Numbers of a frame's regions, and their boxes xyxy in pixels, none for a whole frame."""
        numbers, boxes = [], []
        for start, (kind, _, owner) in zip(self.starts.tolist(), self.parts, strict=False):
            first, last = np.searchsorted(owner, [row, row + 1])  # owners ascend
            numbers.append(np.arange(start + first, start + last))
            if kind == "object":
                boxes.append(self._pool.boxes[first:last])
            elif kind == "tile":
                tiles = self._pool.tiles
                boxes.append(tile_boxes(tiles.grid, tiles.sizes[row : row + 1])[0])
        joined = np.concatenate(boxes) if boxes else np.empty((0, 4), np.float32)
        return np.concatenate(numbers), joined

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Whitened unit vectors of some regions, float32 ``[k, c]``."""
        part = np.searchsorted(self.starts, numbers, side="right") - 1
        rows = numbers - self.starts[part]
        out = np.empty((len(numbers), self.parts[0][1].shape[1]), np.float32)
        for number, (_, vectors, _) in enumerate(self.parts):
            own = part == number
            out[own] = self.unit(vectors[rows[own]])
        return out

    def sample(self, count: int, without: Collection[int] = ()) -> NDArray[np.float32]:
        """Whitened unit vectors of regions drawn evenly, at most ``count``, float32 ``[k, c]``.

        Args:
            count: Number of regions to draw.
            without: Rows of frames whose regions are left out.
        """
        total = int(self.starts[-1])
        drawn = np.random.default_rng(0).choice(total, min(count, total), replace=False)
        numbers = np.sort(drawn)
        part = np.searchsorted(self.starts, numbers, side="right") - 1
        owner = np.empty(len(numbers), np.int64)
        for number, (_, _, owners) in enumerate(self.parts):
            own = part == number
            owner[own] = owners[numbers[own] - self.starts[number]]
        return self.take(numbers[~np.isin(owner, list(without))])

    def nearest_to_text(
        self, text_vector: _FloatVectors
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """As `nearest`, without whitening: text vectors lie apart from image vectors."""
        return self._search(_normalize(self._stacked([text_vector])), _normalize)

    def _search(
        self, queries: NDArray[np.float32], unit: Callable[[_FloatVectors], NDArray[np.float32]]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        best = np.full(self.frames, -1.0)
        region, query_index = np.full(self.frames, -1, np.int64), np.zeros(self.frames, np.int64)
        for first, vectors, owner in self._blocks():
            cosine = unit(vectors) @ queries.T
            query = cosine.argmax(axis=1)
            value = cosine[np.arange(len(query)), query].astype(np.float64)
            rows = _keep_best(value, first, owner, best, region)
            query_index[rows] = query[region[rows] - first]
        return best, region, query_index

    def at(
        self, region: NDArray[np.int64], queries: Sequence[_FloatVectors]
    ) -> NDArray[np.float64]:
        """Highest similarity of each region to any of the queries; -1 for region -1."""
        unit_queries = self.unit(self._stacked(queries))
        best = np.full(len(region), -1.0)
        for number, (_, vectors, _) in enumerate(self.parts):
            rows = np.flatnonzero(
                (region >= self.starts[number]) & (region < self.starts[number + 1])
            )
            if len(rows):
                units = self.unit(vectors[region[rows] - self.starts[number]])
                best[rows] = (units @ unit_queries.T).max(axis=1)
        return best

    def kinds_and_rows(
        self, region: NDArray[np.int64]
    ) -> tuple[tuple[_MatchKind, ...], NDArray[np.int64]]:
        """Kind of each region, and its row among its kind."""
        part = np.clip(np.searchsorted(self.starts, region, side="right") - 1, 0, None)
        kinds = tuple(self.parts[number][0] for number in part.tolist())
        return kinds, np.where(region < 0, -1, region - self.starts[part])

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
                    f"exemplar has shape {np.shape(query)}, the pool's vectors have width {width}",
                    hint="Embed the exemplar with the pool's encoder",
                )
        values = np.stack([np.asarray(query, np.float32) for query in queries])
        if not np.isfinite(values).all():
            raise DataError(
                "an exemplar's vector contains NaN or infinity", hint="Choose another exemplar"
            )
        return values


def _keep_best(
    value: NDArray[np.float64],
    first: int,
    owner: NDArray[np.int64],
    best: NDArray[np.float64],
    region: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Enter a block's values where they are a frame's best so far; returns those frames' rows.

    Args:
        value: ``[k]``, of the regions from number ``first`` on.
        first: Number of the block's first region.
        owner: Row of the frame that each region belongs to.
        best: ``[n]``, changed in place, as ``region`` is.
        region: ``[n]``: number of the region that has it.
    """
    order = np.lexsort((-np.arange(len(value)), value))
    top = np.full(len(best), -1, np.int64)
    top[owner[order]] = order  # the last write per frame is its largest value
    rows = np.flatnonzero(top >= 0)
    rows = rows[value[top[rows]] > best[rows]]
    best[rows], region[rows] = value[top[rows]], first + top[rows]
    return rows


def _comparable_tiles(pool: Embeddings) -> bool:
    """Whether there are tiles, in the same space as the objects."""
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
    """Mean ``[c]`` and symmetric whitening matrix ``[c, c]`` of an even sample of rows.

    Args:
        vectors: ``[n, c]``.
        shrink: Share of the mean variance added to every direction before inversion.

    Raises:
        DataError: A sampled number is NaN or infinite.
    """
    sample = np.asarray(vectors[:: max(1, len(vectors) // _SAMPLE)], np.float64)
    if not np.isfinite(sample).all():
        raise DataError("vectors of the pool contain NaN or infinity", hint="Embed them again")
    mean = sample.mean(0)
    spread = np.cov(sample - mean, rowvar=False).reshape(len(mean), len(mean))
    level = max(float(np.trace(spread)) / len(mean), 1e-12)
    values, directions = np.linalg.eigh(spread)
    scale = (directions / np.sqrt(np.clip(values, 0, None) + shrink * level)) @ directions.T
    return mean.astype(np.float32), scale.astype(np.float32)
