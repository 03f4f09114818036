"""Embeddings as arrays, and the shards that hold them on disk.

    embeddings/<model>-<identity>/<frames>/{shard.json, vectors.npy, …}
    embeddings/<model>-<identity>/quarantine.jsonl

One folder per encoder, shards of a few hundred frames. The identity is a digest of everything that
shapes an array: layout version, model, preprocessing and grid; another model or an older layout is
another folder. A shard is written to a temporary folder and renamed, so a killed process loses at
most one shard and a reader never sees half of one. Vectors are float16, far finer than the
differences that rank frames, in plain ``.npy`` files that are memory-mapped when read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import DataError, WorkbenchError
from workbench.core.parsing import UNREADABLE, parse_json
from workbench.core.text import short_repr
from workbench.core.workspace import Workspace, write_atomic
from workbench.curation.embedding.encoders import (
    MAX_OBJECTS,
    Encoder,
    TileGrid,
    tile_boxes,
    tile_count,
)
from workbench.records.frames import Frame
from workbench.records.integrity import is_unchanged

__all__ = ["Embeddings"]

_ShardArrays = Mapping[str, NDArray[Any]]
_LAYOUT_VERSION = 2
"""Version of a shard's content; 2 added tiles, sizes, noise and blockage."""

_WORDS_LAYOUT_VERSION = 3
"""The same for encoders with words: 3 added their two arrays. Other shards stay as they are."""

_RECOMPUTE_HINT = "Delete its folder; the next pass computes it again"
_SHARD_FILE = "shard.json"
_QUARANTINE_FILE = "quarantine.jsonl"
_TEMPORARY_PREFIX = ".writing-"
_STALE_S = 3600.0
_FRAME_ARRAYS = ("vectors", "entropy", "quality", "sizes", "tiles", "counts")
_OBJECT_ARRAYS = ("object_vectors", "boxes", "scores", "classes")
ARRAY_NAMES = (*_FRAME_ARRAYS, *_OBJECT_ARRAYS)
_WORD_ARRAYS = ("word_scores", "word_tiles")
"""Arrays that only shards of an encoder with words have."""


@dataclass(frozen=True)
class Tiles:
    """Vectors of the tiles of ``n`` frames, ``t`` per frame; loaded on first use.

    Attributes:
        grid: (columns, rows) of each scale, coarse first.
        sizes: Int32 ``[n, 2]``: width and height of each frame, pixels.
        read: Loads the vectors ``[n * t, c]``.
    """

    grid: TileGrid = ()
    sizes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    read: Callable[[], NDArray[np.float16]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, vectors: NDArray[np.float16], grid: TileGrid, sizes: NDArray[np.int32]) -> Tiles:
        """Tiles from ``vectors`` ``[n * t, c]`` in memory, frame by frame."""
        return cls(grid, sizes, lambda: vectors)

    def take(self, rows: NDArray[np.int64]) -> Tiles:
        """The tiles of the frames in ``rows``; their vectors are read when they are used."""
        if not self.per_frame:
            return self

        def read() -> NDArray[np.float16]:
            width = self.vectors.shape[1]
            by_frame = self.vectors.reshape(len(self.sizes), self.per_frame, width)
            return by_frame[rows].reshape(-1, width)

        return Tiles(self.grid, self.sizes[rows], read)

    @property
    def per_frame(self) -> int:
        """``t``; 0 for an encoder without tiles."""
        return tile_count(self.grid)

    @cached_property
    def vectors(self) -> NDArray[np.float16]:
        """Float16 ``[n * t, c]``, frame by frame, then scale by scale, row by row."""
        return np.empty((0, 0), np.float16) if self.read is None else self.read()

    @cached_property
    def boxes(self) -> NDArray[np.float32]:
        """Float32 ``[n * t, 4]`` xyxy, pixels of the frame."""
        return tile_boxes(self.grid, self.sizes).reshape(-1, 4)

    @property
    def owner(self) -> NDArray[np.int64]:
        """Int64 ``[n * t]``: row of the frame that each tile belongs to."""
        return np.repeat(np.arange(len(self.sizes)), self.per_frame)


@dataclass(frozen=True)
class Words:
    """Scores of ``w`` classes of an image classifier on each of ``n`` frames, read on use.

    Attributes:
        vocabulary: Names the classes, such as ``imagenet-1k``; empty for an encoder without words.
        grid: Tiles of a frame, see `Tiles`.
        read: Loads columns of an array: ``word_scores`` (float16) or ``word_tiles`` (uint16).
    """

    vocabulary: str = ""
    grid: TileGrid = ()
    read: Callable[[str, Sequence[int]], NDArray[Any]] | None = field(default=None, repr=False)

    def scores(self, classes: Sequence[int]) -> NDArray[np.float32]:
        """Float32 ``[n, k]``: the largest log probability of any tile for each of ``k`` classes."""
        assert self.read is not None  # noqa: S101 - asked for only with a vocabulary
        return self.read("word_scores", classes).astype(np.float32)

    def tiles(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """Int64 ``[n, k]``: the tile of the frame with that score, see `Tiles`."""
        assert self.read is not None  # noqa: S101
        return self.read("word_tiles", classes).astype(np.int64)

    def take(self, rows: NDArray[np.int64]) -> Words:
        """The words of the frames in ``rows``, in that order."""
        read = self.read
        if read is None:
            return self
        return Words(self.vocabulary, self.grid, lambda name, columns: read(name, columns)[rows])


@short_repr
@dataclass(frozen=True)
class Embeddings:
    """Vectors of frames, of the boxes detected on them and of their tiles.

    Attributes:
        frames: Digests of ``n`` frames, in the requested order.
        vectors: Float16 ``[n, d]``; memory-mapped where one shard holds exactly these frames.
        entropy: Float32 ``[n]``: uncertainty of the detector, summed over its boxes, nats.
        quality: Float32 ``[n, 5]``, columns as in `quality.QUALITY_NAMES`.
        owner: Int64 ``[m]``: row in ``frames`` that each object belongs to, ascending.
        object_vectors: Float16 ``[m, c]``.
        boxes: Float32 ``[m, 4]`` xyxy, pixels of the frame.
        scores: Float32 ``[m]`` in [0, 1].
        classes: Int64 ``[m]``, indices into ``class_names``.
        class_names: Class names of the detector.
        model: Digest of the encoder's weights.
        preprocessing: Digest of the encoder's preprocessing.
        skipped: Frames without an embedding, with the reason.
        tiles: Vectors of a fixed grid of tiles.
        words: Scores of an image classifier's classes, from an encoder that has one.
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
    skipped: tuple[tuple[str, str], ...] = ()
    tiles: Tiles = field(default_factory=Tiles)
    words: Words = field(default_factory=Words)

    def take(self, rows: NDArray[np.int64]) -> Embeddings:
        """The frames in ``rows``, in that order, with their objects, tiles and words."""
        counts = np.bincount(self.owner, minlength=len(self.frames))
        starts = np.cumsum(counts) - counts
        objects = _ranges(starts[rows], counts[rows])
        return replace(
            self,
            frames=tuple(self.frames[row] for row in rows.tolist()),
            vectors=self.vectors[rows],
            entropy=self.entropy[rows],
            quality=self.quality[rows],
            owner=np.repeat(np.arange(len(rows)), counts[rows]),
            object_vectors=self.object_vectors[objects],
            boxes=self.boxes[objects],
            scores=self.scores[objects],
            classes=self.classes[objects],
            tiles=self.tiles.take(rows),
            words=self.words.take(rows) if self.words.vocabulary else self.words,
        )


def gather_embeddings(
    folder: Path,
    encoder: Encoder,
    frames: Sequence[Frame],
    skipped: tuple[tuple[str, str], ...],
) -> Embeddings:
    """Collect the rows of ``frames`` from all shards of a folder, in order.

    Args:
        folder: The encoder's folder.
        encoder: Gives class names, digests and grid.
        frames: In the order of the result; those without a row are left out.
        skipped: Frames without an embedding, with the reason.

    Raises:
        DataError: No frame has a row, or a shard is damaged.
    """
    layout = _ShardRows(folder, frames)
    if not layout.names:
        reason = skipped[0][1] if skipped else "no frames given"
        raise DataError(
            f"no frame could be embedded: {reason}",
            where=folder,
            hint="Check that the dataset has such frames and that their images are readable",
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
        skipped=skipped,
        tiles=Tiles(encoder.grid, sizes, layout.tiles),
        words=Words(vocabulary_of(encoder), encoder.grid, layout.columns),
    )


def vocabulary_of(encoder: Encoder) -> str:
    """Names the classes that an encoder scores; empty for one that scores none."""
    return str(getattr(encoder, "vocabulary", ""))


class _ShardRows:
    """Row and shard of each frame, located once for all arrays."""

    def __init__(self, folder: Path, frames: Sequence[Frame]) -> None:
        shards = read_shards(folder)
        location = {
            frame: (s, r) for s, shard in enumerate(shards) for r, frame in enumerate(shard.frames)
        }
        self.names = tuple(frame.id for frame in frames if frame.id in location)
        located = np.array([location[name] for name in self.names], np.int64).reshape(-1, 2)
        order = np.argsort(located[:, 0], kind="stable")
        shard_numbers, starts = np.unique(located[order, 0], return_index=True)
        self.parts: list[tuple[_Shard, NDArray[np.int64], NDArray[np.int64]]] = []
        groups = np.split(order, starts[1:]) if len(order) else []
        for number, rows in zip(shard_numbers.tolist(), groups, strict=True):
            self.parts.append((shards[number], rows, located[rows, 1]))
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
            self._check_width(shard, name, values, out)
            out[targets] = values[rows]
        assert out is not None  # noqa: S101 - there is at least one part, or gather had raised
        return out

    def per_object(self, name: str) -> NDArray[Any]:
        out: NDArray[Any] | None = None
        for shard, targets, rows in self.parts:
            values = shard.array(name)
            if out is None:
                out = np.empty((self.starts[-1], *values.shape[1:]), values.dtype)
            counts = np.asarray(shard.array("counts"))
            offsets = np.cumsum(counts) - counts
            self._check_width(shard, name, values, out)
            out[_ranges(self.starts[targets], counts[rows])] = values[
                _ranges(offsets[rows], counts[rows])
            ]
        assert out is not None  # noqa: S101
        return out

    def columns(self, name: str, columns: Sequence[int]) -> NDArray[Any]:
        """Some columns of an array with a row per frame; a pool's whole array need not fit."""
        out: NDArray[Any] | None = None
        for shard, targets, rows in self.parts:
            values = shard.array(name)[:, list(columns)][rows]
            if out is None:
                out = np.empty((len(self.names), len(columns)), values.dtype)
            out[targets] = values
        assert out is not None  # noqa: S101
        return out

    def tiles(self) -> NDArray[np.float16]:
        vectors = self.per_frame("tiles")
        flat: NDArray[np.float16] = vectors.reshape(-1, vectors.shape[-1])
        return flat

    @staticmethod
    def _check_width(shard: _Shard, name: str, values: NDArray[Any], out: NDArray[Any]) -> None:
        if values.shape[1:] != out.shape[1:]:
            raise DataError(
                f"shards have vectors of different widths: {list(out.shape[1:])} and "
                f"{list(values.shape[1:])}",
                where=shard.folder / f"{name}.npy",
                hint="Delete the folder and embed again",
            )


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``start, start + 1, …`` of each run, concatenated, int64 ``[sum(counts)]``."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    shifts: NDArray[np.int64] = np.repeat(starts - (ends - counts), counts)
    return np.arange(total) + shifts


@dataclass(frozen=True)
class _Shard:
    """Frames in order, and their arrays on disk; see `Embeddings`."""

    folder: Path
    frames: tuple[str, ...]
    digests: Mapping[str, str] = field(default_factory=dict)

    def array(self, name: str) -> NDArray[Any]:
        """Memory-map one array of the shard.

        Raises:
            DataError: The file is damaged, or its length does not match the frames.
        """
        path = self.folder / f"{name}.npy"
        expected = self.digests.get(name)  # shards of earlier versions have none
        if expected and not is_unchanged(Workspace(self.folder.parents[2]), path, expected):
            raise DataError(
                "embedding file is missing or was changed", where=path, hint=_RECOMPUTE_HINT
            )
        values = _open_array(path)
        if name in (*_FRAME_ARRAYS, *_WORD_ARRAYS) and len(values) != len(self.frames):
            raise DataError(
                f"{len(values)} rows for {len(self.frames)} frames",
                where=path,
                hint=_RECOMPUTE_HINT,
            )
        return values


def _open_array(path: Path) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"cannot read embedding file: {error}", where=path, hint=_RECOMPUTE_HINT
        ) from error
    return values


def embeddings_folder(workspace: Workspace, encoder: Encoder) -> Path:
    """Folder of one encoder's embeddings.

    Args:
        workspace: The workspace.
        encoder: Its digests and grid name the folder.
    """
    vocabulary = vocabulary_of(encoder)
    identity = digest.of_json(
        {
            "layout": _WORDS_LAYOUT_VERSION if vocabulary else _LAYOUT_VERSION,
            **({"vocabulary": vocabulary} if vocabulary else {}),
            "model": encoder.model,
            "preprocessing": encoder.preprocessing,
            "grid": [list(scale) for scale in encoder.grid],
            "objects": MAX_OBJECTS,
        }
    )
    return (
        workspace.root
        / "embeddings"
        / f"{digest.shorten(encoder.model)}-{digest.shorten(identity)}"
    )


def read_shards(folder: Path) -> list[_Shard]:
    """List all complete shards, by name.

    Raises:
        DataError: A shard's index is damaged.
    """
    complete = []
    for index in sorted(folder.glob(f"[!.]*/{_SHARD_FILE}")):
        try:
            content = parse_json(index.read_bytes())
            frames, digests = tuple(content["frames"]), dict(content.get("digests", {}))
            if not all(isinstance(one, str) for one in (*frames, *digests, *digests.values())):
                raise ValueError("not a list of digests")
        except (OSError, *UNREADABLE) as error:
            raise DataError(
                f"cannot read shard: {error}",
                where=index,
                hint=_RECOMPUTE_HINT,
            ) from error
        complete.append(_Shard(index.parent, frames, digests))
    return complete


def write_shard(folder: Path, frames: Sequence[str], arrays: _ShardArrays) -> _Shard:
    """Write one shard.

    Args:
        folder: The encoder's folder.
        frames: Digests of the frames, in the order of the arrays.
        arrays: One array for each of `ARRAY_NAMES`, and of `_WORD_ARRAYS` with words.

    Raises:
        DataError: Vectors differ in width from those of existing shards.
        WorkbenchError: The disk is full; nothing is left behind.
    """
    target = folder / digest.shorten(digest.of_json(list(frames)))
    _check_widths(folder, arrays)
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=_TEMPORARY_PREFIX))
        for name in arrays:
            with (temporary / f"{name}.npy").open("wb") as stream:
                np.save(stream, arrays[name], allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        layout = _WORDS_LAYOUT_VERSION if _WORD_ARRAYS[0] in arrays else _LAYOUT_VERSION
        digests = {name: digest.of_file(temporary / f"{name}.npy") for name in arrays}
        index = {"layout": layout, "frames": list(frames), "digests": digests}
        (temporary / _SHARD_FILE).write_text(json.dumps(index))
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            # Another process embedded the same frames first.
            if not (target / _SHARD_FILE).exists():
                raise
    except OSError as error:
        raise _write_error(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return _Shard(target, tuple(frames), digests)


def _check_widths(folder: Path, arrays: _ShardArrays) -> None:
    """Raise when the vectors of an existing shard have another width."""
    index = next(folder.glob(f"[!.]*/{_SHARD_FILE}"), None)
    if index is None:
        return
    for name in ("vectors", "tiles", "object_vectors"):
        existing = _open_array(index.parent / f"{name}.npy").shape[1:]
        if existing != arrays[name].shape[1:]:
            raise DataError(
                f"{name} have shape {list(arrays[name].shape[1:])}, those of earlier shards "
                f"{list(existing)}",
                where=index.parent,
                hint="The encoder changed without a new digest; identify it by its weights, or "
                f"delete {folder.name} and embed again",
            )


def remove_stale_writes(folder: Path) -> None:
    """Remove temporary folders of killed processes, once they are an hour old."""
    for temporary in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _STALE_S:
                shutil.rmtree(temporary, ignore_errors=True)


def read_quarantine(folder: Path) -> dict[str, str]:
    """Frames for which this encoder gives no finite vector, with the reason."""
    try:
        lines = (folder / _QUARANTINE_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    reasons = {}
    for line in lines:
        with contextlib.suppress(*UNREADABLE):  # a damaged line: the frame is tried again
            row = parse_json(line)
            reasons[str(row["frame"])] = str(row["reason"])
    return reasons


def add_to_quarantine(folder: Path, reasons: Mapping[str, str]) -> None:
    """Add frames to the quarantine; existing entries stay."""
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
        f"cannot write embeddings: {error.strerror or error}",
        where=where,
        hint="Free disk space and run again; finished shards are kept",
    )
