"""Embed: one pass over a pool gives vectors of frames and objects, entropy and quality.

What is on disk already is never computed again: a killed pass goes on, an added drive costs only
itself. Identity carries its parameters: another model or preprocessing is another folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding import quality, shards
from workbench.curation.embedding.encoder import DetectorEncoder, Encoder, Seen
from workbench.curation.embedding.shards import Shard
from workbench.errors import DataError
from workbench.perception.predictor import TorchPredictor
from workbench.perception.preprocessing import Pixels, load_rgb
from workbench.records.dataset import media_path
from workbench.records.frames import Frame
from workbench.workspace import Workspace

Progress = Callable[[int, int], None]

SHARD = 256
"""Frames in one shard: what a killed pass may lose."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors of frames and of the boxes found on them.

    Attributes:
        frames: Digests of ``n`` frames, in the order asked for.
        vectors: Float16 ``[n, d]``; mapped from disk where one shard holds just these frames.
        entropy: Float32 ``[n]``: how unsure the detector was, summed over its boxes, nats.
        quality: Float32 ``[n, 3]``, columns as in `workbench.curation.embedding.quality.NAMES`.
        owner: Int64 ``[m]``: the row in ``frames`` that each object belongs to, ascending.
        object_vectors: Float16 ``[m, c]``.
        boxes: Float32 ``[m, 4]`` xyxy pixels of the frame.
        scores: Float32 ``[m]`` in [0, 1].
        classes: Int64 ``[m]``, numbers into ``class_names``.
        left_out: Frames without an embedding, and why.
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


def embed(
    place: Workspace,
    encoder: Encoder | TorchPredictor,
    frames: Sequence[Frame],
    progress: Progress | None = None,
    *,
    batch: int = 16,
) -> Embeddings:
    """Vectors of these frames, computing only what is not on disk.

    Frames that cannot be read, or that the model answers with numbers that are none, are left
    out and listed. Images are decoded in threads while the model runs.

    Raises:
        DataError: Not a single frame could be embedded.
        WorkbenchError: The disk is full.
    """
    source = DetectorEncoder(encoder) if isinstance(encoder, TorchPredictor) else encoder
    folder = shards.folder_of(place, source.model, source.preprocessing)
    known = {frame for shard in shards.read_all(folder) for frame in shard.frames}
    missing = [frame for frame in frames if frame.id not in known]
    left_out: list[tuple[str, str]] = []
    done = len(frames) - len(missing)
    if progress:
        progress(done, len(frames))
    pending = _Pending(folder)
    for chunk, seen, measured in _passes(place, source, missing, batch, left_out):
        pending.add(chunk, seen, measured, left_out)
        done += len(chunk)
        if progress:
            progress(min(done, len(frames)), len(frames))
    pending.close()
    return _gather(folder, source, frames, tuple(left_out))


def _passes(
    place: Workspace,
    encoder: Encoder,
    frames: Sequence[Frame],
    batch: int,
    left_out: list[tuple[str, str]],
) -> Iterator[tuple[list[Frame], Seen, NDArray[np.float32]]]:
    """Batches of readable frames with what was seen and measured, read one batch ahead."""
    chunks = [frames[start : start + batch] for start in range(0, len(frames), batch)]
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:

        def start(chunk: Sequence[Frame]) -> list[Future[tuple[Pixels, NDArray[np.float32]]]]:
            return [pool.submit(_read, media_path(place, frame)) for frame in chunk]

        following = start(chunks[0]) if chunks else []
        for index, chunk in enumerate(chunks):
            current = following
            following = start(chunks[index + 1]) if index + 1 < len(chunks) else []
            kept, images, measured = [], [], []
            for frame, future in zip(chunk, current, strict=True):
                try:
                    image, numbers = future.result()
                except DataError as error:
                    left_out.append((frame.id, error.what))
                    continue
                kept.append(frame)
                images.append(image)
                measured.append(numbers)
            if kept:
                yield kept, encoder.look(images), np.stack(measured)


def _read(path: Path) -> tuple[Pixels, NDArray[np.float32]]:
    image = load_rgb(path)
    return image, quality.measure(image)


class _Pending:
    """Rows that wait until they fill a shard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.frames: list[str] = []
        self.rows: dict[str, list[NDArray[Any]]] = {name: [] for name in shards.ARRAYS}

    def add(
        self,
        frames: Sequence[Frame],
        seen: Seen,
        measured: NDArray[np.float32],
        left_out: list[tuple[str, str]],
    ) -> None:
        for row, frame in enumerate(frames):
            vector, found = seen.frames[row], seen.found[row]
            if not (np.isfinite(vector).all() and np.isfinite(seen.objects[row]).all()):
                left_out.append((frame.id, "the model's vector is not finite"))
                continue
            self.frames.append(frame.id)
            values: dict[str, NDArray[Any]] = {
                "vectors": _half(vector)[None],
                "entropy": seen.entropy[row : row + 1],
                "quality": measured[row : row + 1],
                "counts": np.array([len(found)], np.int64),
                "object_vectors": _half(seen.objects[row]),
                "boxes": found.boxes,
                "scores": found.scores,
                "classes": found.classes,
            }
            for name, value in values.items():
                self.rows[name].append(value)
        if len(self.frames) >= SHARD:
            self.close()

    def close(self) -> None:
        if not self.frames:
            return
        shards.write(
            self.folder, self.frames, {n: np.concatenate(rows) for n, rows in self.rows.items()}
        )
        self.frames.clear()
        for rows in self.rows.values():
            rows.clear()


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype(np.float16)


def _gather(
    folder: Path,
    encoder: Encoder,
    frames: Sequence[Frame],
    left_out: tuple[tuple[str, str], ...],
) -> Embeddings:
    """The rows of ``frames`` out of all shards, in order."""
    kept = shards.read_all(folder)
    where = {frame: (s, r) for s, shard in enumerate(kept) for r, frame in enumerate(shard.frames)}
    names = tuple(frame.id for frame in frames if frame.id in where)
    if not names:
        reason = left_out[0][1] if left_out else "there are no frames"
        raise DataError(
            f"nothing could be embedded: {reason}",
            where=folder,
            hint="Check the dataset's frames of role pool and their images",
        )
    used = sorted({where[name][0] for name in names})
    loaded = {s: {name: kept[s].array(name) for name in shards.ARRAYS} for s in used}
    _same_width(kept, loaded)
    starts = {s: np.concatenate([[0], np.cumsum(loaded[s]["counts"])]) for s in used}
    object_rows = {
        name: np.arange(starts[s][r], starts[s][r + 1]) for name, (s, r) in _only(where, names)
    }
    counts = np.array([len(object_rows[name]) for name in names])

    def per_frame(array: str) -> NDArray[Any]:
        if len(used) == 1 and kept[used[0]].frames == names:
            return loaded[used[0]][array]
        out = np.empty(
            (len(names), *loaded[used[0]][array].shape[1:]), loaded[used[0]][array].dtype
        )
        for shard, targets, rows in _by_shard(where, names):
            out[targets] = loaded[shard][array][rows]
        return out

    def per_object(array: str) -> NDArray[Any]:
        parts = [loaded[where[name][0]][array][object_rows[name]] for name in names]
        return np.concatenate(parts)

    return Embeddings(
        frames=names,
        vectors=per_frame("vectors"),
        entropy=per_frame("entropy"),
        quality=per_frame("quality"),
        owner=np.repeat(np.arange(len(names)), counts),
        object_vectors=per_object("object_vectors"),
        boxes=per_object("boxes"),
        scores=per_object("scores"),
        classes=per_object("classes"),
        class_names=encoder.classes,
        model=encoder.model,
        preprocessing=encoder.preprocessing,
        left_out=left_out,
    )


def _only(
    where: dict[str, tuple[int, int]], names: Sequence[str]
) -> Iterator[tuple[str, tuple[int, int]]]:
    return ((name, where[name]) for name in names)


def _by_shard(
    where: dict[str, tuple[int, int]], names: Sequence[str]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """For each shard: rows of the result, and the shard's rows that belong there."""
    places = np.array([where[name] for name in names], np.int64).reshape(-1, 2)
    for shard in np.unique(places[:, 0]).tolist():
        targets = np.flatnonzero(places[:, 0] == shard)
        yield shard, targets, places[targets, 1]


def _same_width(kept: list[Shard], loaded: dict[int, dict[str, NDArray[Any]]]) -> None:
    widths = {arrays["vectors"].shape[1] for arrays in loaded.values()}
    if len(widths) > 1:
        odd = kept[max(loaded)].folder
        raise DataError(
            f"vectors of one model have different widths: {sorted(widths)}",
            where=odd,
            hint="The folder was mixed from several; delete it, the next pass makes it again",
        )
