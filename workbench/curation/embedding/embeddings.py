"""Embeddings: what a pass over a pool leaves, as arrays in the order that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding import shards
from workbench.curation.embedding.encoder import Encoder, Grid, tile_boxes, tile_count
from workbench.errors import DataError
from workbench.records.frames import Frame


@dataclass(frozen=True)
class Tiles:
    """Vectors of the tiles of ``n`` frames, ``t`` each; read from disk when first looked at.

    They are the largest part of an embedding, and much of curation does without.

    Attributes:
        grid: (columns, rows) of each scale, coarse first.
        sizes: Int32 ``[n, 2]``: width and height of each frame, pixels.
    """

    grid: Grid = ()
    sizes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    read: Callable[[], NDArray[np.float16]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, vectors: NDArray[np.float16], grid: Grid, sizes: NDArray[np.int32]) -> Tiles:
        """Tiles that are at hand: ``vectors`` ``[n * t, c]``, frame by frame."""
        return cls(grid, sizes, lambda: vectors)

    @property
    def per_frame(self) -> int:
        """``t``; 0 where the encoder looks at no tiles."""
        return tile_count(self.grid)

    @cached_property
    def vectors(self) -> NDArray[np.float16]:
        """Float16 ``[n * t, c]``, frame by frame; in a frame scale by scale, row by row."""
        return np.empty((0, 0), np.float16) if self.read is None else self.read()

    @cached_property
    def boxes(self) -> NDArray[np.float32]:
        """Float32 ``[n * t, 4]`` xyxy pixels of the frame."""
        return tile_boxes(self.grid, self.sizes).reshape(-1, 4)

    @property
    def owner(self) -> NDArray[np.int64]:
        """Int64 ``[n * t]``: the row of the frame that each tile belongs to."""
        return np.repeat(np.arange(len(self.sizes)), self.per_frame)

    @property
    def position(self) -> NDArray[np.int64]:
        """Int64 ``[n * t]``: which tile of the grid, the same in every frame."""
        return np.tile(np.arange(self.per_frame), len(self.sizes))


@dataclass(frozen=True)
class Embeddings:
    """Vectors of frames, of the boxes found on them and of their tiles.

    Attributes:
        frames: Digests of ``n`` frames, in the order asked for.
        vectors: Float16 ``[n, d]``; mapped from disk where one shard holds just these frames.
        entropy: Float32 ``[n]``: how unsure the detector was, summed over its boxes, nats.
        quality: Float32 ``[n, 5]``, columns as in `workbench.curation.embedding.quality.NAMES`.
        owner: Int64 ``[m]``: the row in ``frames`` that each object belongs to, ascending.
        object_vectors: Float16 ``[m, c]``.
        boxes: Float32 ``[m, 4]`` xyxy pixels of the frame.
        scores: Float32 ``[m]`` in [0, 1].
        classes: Int64 ``[m]``, numbers into ``class_names``.
        left_out: Frames without an embedding, and why.
        tiles: Vectors of a fixed grid of tiles, whatever they show.
    """

    frames: tuple[str, ...]
    vectors: NDArray[np.float16]
    entropy: NDArray[np.float32]
    quality: NDArray[np.float32]
    owner: NDArray[np.int64]
    object_vectors: NDArray[np.float16]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    class_names: tuple[str, ...]
    model: str
    preprocessing: str
    left_out: tuple[tuple[str, str], ...] = ()
    tiles: Tiles = field(default_factory=Tiles)


def gather(
    folder: Path,
    encoder: Encoder,
    frames: Sequence[Frame],
    left_out: tuple[tuple[str, str], ...],
) -> Embeddings:
    """The rows of ``frames`` out of all shards of ``folder``, in order.

    Raises:
        DataError: None of them is there, or a shard is damaged or of another model.
    """
    layout = _Layout(folder, frames)
    if not layout.names:
        reason = left_out[0][1] if left_out else "there are no frames"
        raise DataError(
            f"nothing could be embedded: {reason}",
            where=folder,
            hint="Check that the dataset has such frames, and that their images can be read",
        )
    sizes = layout.per_frame("sizes")
    return Embeddings(
        frames=layout.names,
        vectors=layout.per_frame("vectors"),
        entropy=layout.per_frame("entropy"),
        quality=layout.per_frame("quality"),
        owner=np.repeat(np.arange(len(layout.names)), layout.counts),
        object_vectors=layout.per_object("object_vectors"),
        boxes=layout.per_object("boxes"),
        scores=layout.per_object("scores"),
        classes=layout.per_object("classes"),
        class_names=encoder.classes,
        model=encoder.model,
        preprocessing=encoder.preprocessing,
        left_out=left_out,
        tiles=Tiles(encoder.grid, sizes, layout.tiles),
    )


class _Layout:
    """Which row of which shard each frame is, found once for all arrays."""

    def __init__(self, folder: Path, frames: Sequence[Frame]) -> None:
        kept = shards.read_all(folder)
        where = {
            frame: (s, r) for s, shard in enumerate(kept) for r, frame in enumerate(shard.frames)
        }
        self.names = tuple(frame.id for frame in frames if frame.id in where)
        places = np.array([where[name] for name in self.names], np.int64).reshape(-1, 2)
        order = np.argsort(places[:, 0], kind="stable")
        numbers, starts = np.unique(places[order, 0], return_index=True)
        self.parts: list[tuple[shards.Shard, NDArray[np.int64], NDArray[np.int64]]] = []
        groups = np.split(order, starts[1:]) if len(order) else []
        for number, targets in zip(numbers.tolist(), groups, strict=True):
            self.parts.append((kept[number], targets, places[targets, 1]))
        self.whole = len(self.parts) == 1 and self.parts[0][0].frames == self.names
        self.counts = self.per_frame("counts") if self.parts else np.empty(0, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])

    def per_frame(self, name: str) -> NDArray[Any]:
        if self.whole:
            return self.parts[0][0].array(name)
        out: NDArray[Any] | None = None
        for shard, targets, rows in self.parts:
            values = shard.array(name)
            if out is None:
                out = np.empty((len(self.names), *values.shape[1:]), values.dtype)
            self._same(shard, name, values, out)
            out[targets] = values[rows]
        assert out is not None  # noqa: S101 - there is a part, or gather had raised
        return out

    def per_object(self, name: str) -> NDArray[Any]:
        out: NDArray[Any] | None = None
        for shard, targets, rows in self.parts:
            values = shard.array(name)
            if out is None:
                out = np.empty((self.starts[-1], *values.shape[1:]), values.dtype)
            counts = np.asarray(shard.array("counts"))
            begins = np.cumsum(counts) - counts
            self._same(shard, name, values, out)
            out[ranges(self.starts[targets], counts[rows])] = values[
                ranges(begins[rows], counts[rows])
            ]
        assert out is not None  # noqa: S101
        return out

    def tiles(self) -> NDArray[np.float16]:
        vectors = self.per_frame("tiles")
        flat: NDArray[np.float16] = vectors.reshape(-1, vectors.shape[-1])
        return flat

    @staticmethod
    def _same(shard: shards.Shard, name: str, values: NDArray[Any], out: NDArray[Any]) -> None:
        if values.shape[1:] != out.shape[1:]:
            raise DataError(
                f"vectors of one model have different widths: {list(out.shape[1:])} and "
                f"{list(values.shape[1:])}",
                where=shard.folder / f"{name}.npy",
                hint="The folder was mixed from several; delete it, the next pass makes it again",
            )


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``start, start + 1, …`` of each run, one behind the other, int64 ``[sum(counts)]``."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    shifts: NDArray[np.int64] = np.repeat(starts - (ends - counts), counts)
    return np.arange(total) + shifts
