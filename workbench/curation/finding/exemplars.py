"""More like this: a pool in order of likeness to a frame, to a box on one, or to words.

A box is looked for among the pool's objects and among its tiles, so that a thing is found whether
the detector has a box for it or not. A whole frame is compared with whole frames, which finds
scenes, not things: to find a thing, draw a box around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.one_pass import Embeddings
from workbench.curation.finding.places import Kind, Places, comparable_tiles
from workbench.errors import ParameterError
from workbench.perception.boxes import area, intersection_matrix, iou_matrix

_FITS = 0.5
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
class Likeness:
    """How like the exemplars ``n`` frames are, in the order of the embeddings.

    Attributes:
        score: Float64 ``[n]``, a cosine in [-1, 1]; the best of what a frame holds.
        kind: What matched best: an object, a tile, or the frame as a whole.
        row: Int64 ``[n]``: its row among the embeddings' objects or tiles; the frame's own row.
        exemplar: Int64 ``[n]``: which of the exemplars it is like.
        given: Rows of the exemplars' own frames; `order` leaves them out.
    """

    score: NDArray[np.float64]
    kind: tuple[Kind, ...]
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


def like(
    pool: Embeddings, exemplars: Sequence[Exemplar], negatives: Sequence[Exemplar] = ()
) -> Likeness:
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
    places = Places(pool, whole=whole.pop())
    score, place, which = places.nearest([_vector(pool, rows, one) for one in exemplars])
    if negatives:
        unlike = places.at(place, [_vector(pool, rows, one) for one in negatives])
        score = score - 0.5 * np.maximum(unlike, 0.0)
    given = tuple(sorted({rows[one.frame] for one in exemplars if one.frame in rows}))
    kinds, found = places.names(place)
    return Likeness(score, kinds, found, which, given)


def text(pool: Embeddings, encoder: TextEncoder, query: str) -> Likeness:
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
    found = [Places(pool, whole=True)]
    if len(pool.scores) or pool.tiles.per_frame:
        found.append(Places(pool, whole=False))
    return _best([_alike(places, words) for places in found])


def _alike(places: Places, words: NDArray[np.float32]) -> Likeness:
    score, place, which = places.nearest_words(words)
    kinds, rows = places.names(place)
    return Likeness(score, kinds, rows, which)


def _best(found: Sequence[Likeness]) -> Likeness:
    """The better of two likenesses, frame by frame."""
    first, *others = found
    for other in others:
        better = other.score > first.score
        first = Likeness(
            np.where(better, other.score, first.score),
            tuple(
                b if use else a
                for a, b, use in zip(first.kind, other.kind, better.tolist(), strict=True)
            ),
            np.where(better, other.row, first.row),
            np.where(better, other.exemplar, first.exemplar),
        )
    return first


def _vector(pool: Embeddings, rows: dict[str, int], one: Exemplar) -> NDArray[np.float32]:
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
    if fitting is not None and (tile is None or overlap.max() >= _FITS):
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
    if not comparable_tiles(pool):
        return None
    tiles = pool.tiles.boxes[row * count : (row + 1) * count]
    shared = intersection_matrix(box, tiles)[0]
    # Of two tiles that hold as much of the box, the smaller one holds less beside it.
    fit = shared / np.sqrt(area(tiles))
    return row * count + int(fit.argmax()) if fit.max() > 0 else None
