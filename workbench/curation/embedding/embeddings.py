"""Embeddings as arrays, and the shards that hold them on disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import DataError, WorkbenchError
from workbench.core.workspace import Workspace, write_atomic
from workbench.curation.embedding.encoders import (
    MAX_OBJECTS,
    Encoder,
    TileGrid,
    tile_boxes,
    tile_count,
)
from workbench.records.frames import Frame

ShardArrays = Mapping[str, NDArray[Any]]

LAYOUT_VERSION = 2
"""Version of what a shard holds and means; 2 added tiles, sizes, noise and blockage."""

_SHARD_FILE = "shard.json"
_QUARANTINE_FILE = "quarantine.jsonl"
_TEMPORARY_PREFIX = ".writing-"
_STALE_S = 3600.0
_FRAME_ARRAYS = ("vectors", "entropy", "quality", "sizes", "tiles", "counts")
_OBJECT_ARRAYS = ("object_vectors", "boxes", "scores", "classes")
ARRAY_NAMES = (*_FRAME_ARRAYS, *_OBJECT_ARRAYS)


@dataclass(frozen=True)
class Shard:
    """Some frames in order, and their arrays, see `workbench.curation.embedding.embeddings.Embeddings`."""

    folder: Path
    frames: tuple[str, ...]

    def array(self, name: str) -> NDArray[Any]:
        try:
            values: NDArray[Any] = np.load(
                self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False
            )
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"embedding file cannot be read: {error}",
                where=self.folder / f"{name}.npy",
                hint="Delete its folder; the next pass makes it again",
            ) from error
        if name in _FRAME_ARRAYS and len(values) != len(self.frames):
            raise DataError(
                f"{len(values)} rows for {len(self.frames)} frames",
                where=self.folder / f"{name}.npy",
                hint="Delete its folder; the next pass makes it again",
            )
        return values


def embeddings_folder(place: Workspace, encoder: Encoder) -> Path:
    """Where the embeddings of one encoder lie."""
    identity = digest.of_json(
        {
            "layout": LAYOUT_VERSION,
            "model": encoder.model,
            "preprocessing": encoder.preprocessing,
            "grid": [list(scale) for scale in encoder.grid],
            "objects": MAX_OBJECTS,
        }
    )
    return place.root / "embeddings" / f"{digest.shorten(encoder.model)}-{digest.shorten(identity)}"


def read_shards(folder: Path) -> list[Shard]:
    """Every whole shard, in order of name."""
    found = []
    for about in sorted(folder.glob(f"[!.]*/{_SHARD_FILE}")):
        try:
            frames = tuple(json.loads(about.read_bytes())["frames"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"shard cannot be read: {error}",
                where=about,
                hint="Delete its folder; the next pass makes it again",
            ) from error
        found.append(Shard(about.parent, frames))
    return found


def write_shard(folder: Path, frames: Sequence[str], arrays: ShardArrays) -> Shard:
    """Write one shard.

    Raises:
        DataError: The vectors are not as wide as those that are there.
        WorkbenchError: The disk is full; nothing is left behind.
    """
    target = folder / digest.shorten(digest.of_json(list(frames)))
    _check_widths(folder, arrays)
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=_TEMPORARY_PREFIX))
        for name in ARRAY_NAMES:
            with (temporary / f"{name}.npy").open("wb") as stream:
                np.save(stream, arrays[name], allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        about = {"layout": LAYOUT_VERSION, "frames": list(frames)}
        (temporary / _SHARD_FILE).write_text(json.dumps(about))
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            # Another process embedded the same frames and was quicker.
            if not (target / _SHARD_FILE).exists():
                raise
    except OSError as error:
        raise _write_error(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return Shard(target, tuple(frames))


def _check_widths(folder: Path, arrays: ShardArrays) -> None:
    """Raise when a shard beside has vectors of another width: no model changes its own."""
    about = next(folder.glob(f"[!.]*/{_SHARD_FILE}"), None)
    if about is None:
        return
    for name in ("vectors", "tiles", "object_vectors"):
        there = np.load(about.parent / f"{name}.npy", mmap_mode="r", allow_pickle=False).shape[1:]
        if there != arrays[name].shape[1:]:
            raise DataError(
                f"{name} of shape {list(arrays[name].shape[1:])} do not go with those of shape "
                f"{list(there)} that the same model gave before",
                where=about.parent,
                hint="The model changed under the same name; name it by its weights, or delete "
                f"{folder.name} and embed again",
            )


def remove_stale_writes(folder: Path) -> None:
    """Remove what killed passes left half written, long enough ago that nobody writes it still."""
    for left in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def read_quarantine(folder: Path) -> dict[str, str]:
    """Frames that this encoder has no vector for, and why: asking it again would not help."""
    try:
        lines = (folder / _QUARANTINE_FILE).read_text().splitlines()
    except FileNotFoundError:
        return {}
    rows = [json.loads(line) for line in lines]
    return {row["frame"]: row["reason"] for row in rows}


def add_to_quarantine(folder: Path, reasons: Mapping[str, str]) -> None:
    """Add frames to the quarantine; what stands there stays."""
    rows = {**read_quarantine(folder), **reasons}
    text = "".join(
        json.dumps({"frame": frame, "reason": why}) + "\n" for frame, why in sorted(rows.items())
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / _QUARANTINE_FILE, text.encode())
    except OSError as error:
        raise _write_error(folder / _QUARANTINE_FILE, error) from error


def _write_error(where: Path, error: OSError) -> WorkbenchError:
    return WorkbenchError(
        f"embeddings cannot be written: {error.strerror or error}",
        where=where,
        hint="Free some space and run again; finished shards are kept",
    )


# ---- Embeddings: what a pass over a pool leaves, as arrays in the order that was asked for.


@dataclass(frozen=True)
class Tiles:
    """Vectors of the tiles of ``n`` frames, ``t`` each; read from disk when first looked at.

    They are the largest part of an embedding, and much of curation does without.

    Attributes:
        grid: (columns, rows) of each scale, coarse first.
        sizes: Int32 ``[n, 2]``: width and height of each frame, pixels.
    """

    grid: TileGrid = ()
    sizes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    read: Callable[[], NDArray[np.float16]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, vectors: NDArray[np.float16], grid: TileGrid, sizes: NDArray[np.int32]) -> Tiles:
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
        quality: Float32 ``[n, 5]``, columns as in `workbench.curation.embedding.quality.QUALITY_NAMES`.
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


def gather_embeddings(
    folder: Path,
    encoder: Encoder,
    frames: Sequence[Frame],
    left_out: tuple[tuple[str, str], ...],
) -> Embeddings:
    """The rows of ``frames`` out of all shards of ``folder``, in order.

    Raises:
        DataError: None of them is there, or a shard is damaged or of another model.
    """
    layout = _ShardRows(folder, frames)
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


class _ShardRows:
    """Which row of which shard each frame is, found once for all arrays."""

    def __init__(self, folder: Path, frames: Sequence[Frame]) -> None:
        kept = read_shards(folder)
        where = {
            frame: (s, r) for s, shard in enumerate(kept) for r, frame in enumerate(shard.frames)
        }
        self.names = tuple(frame.id for frame in frames if frame.id in where)
        places = np.array([where[name] for name in self.names], np.int64).reshape(-1, 2)
        order = np.argsort(places[:, 0], kind="stable")
        numbers, starts = np.unique(places[order, 0], return_index=True)
        self.parts: list[tuple[Shard, NDArray[np.int64], NDArray[np.int64]]] = []
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
            out[_ranges(self.starts[targets], counts[rows])] = values[
                _ranges(begins[rows], counts[rows])
            ]
        assert out is not None  # noqa: S101
        return out

    def tiles(self) -> NDArray[np.float16]:
        vectors = self.per_frame("tiles")
        flat: NDArray[np.float16] = vectors.reshape(-1, vectors.shape[-1])
        return flat

    @staticmethod
    def _same(shard: Shard, name: str, values: NDArray[Any], out: NDArray[Any]) -> None:
        if values.shape[1:] != out.shape[1:]:
            raise DataError(
                f"vectors of one model have different widths: {list(out.shape[1:])} and "
                f"{list(values.shape[1:])}",
                where=shard.folder / f"{name}.npy",
                hint="The folder was mixed from several; delete it, the next pass makes it again",
            )


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``start, start + 1, …`` of each run, one behind the other, int64 ``[sum(counts)]``."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    shifts: NDArray[np.int64] = np.repeat(starts - (ends - counts), counts)
    return np.arange(total) + shifts
