"""Compute the embeddings of a pool in one pass, on this machine or on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core import processes
from workbench.core.errors import DataError, ServiceError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.curation.embedding import embeddings, quality
from workbench.curation.embedding.embeddings import Embeddings, gather_embeddings
from workbench.curation.embedding.encoders import DetectorEncoder, Encoder, EncoderOutput
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Pixels, load_rgb
from workbench.records.dataset import media_path
from workbench.records.frames import Frame
from workbench.services import ray_cluster

_NOT_FINITE = "the model's vector is not finite"


class ShardBuilder:
    """What was seen on the frames of one shard.

    Attributes:
        left_out: Frames of it that got no vector, and why.
    """

    def __init__(self) -> None:
        self.left_out: list[tuple[str, str]] = []
        self._refused: dict[str, str] = {}
        self._frames: list[str] = []
        self._arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in embeddings.ARRAY_NAMES}

    def add(
        self,
        frames: Sequence[str],
        images: Sequence[Pixels],
        measured: NDArray[np.float32],
        seen: EncoderOutput,
    ) -> None:
        """Take the rows of one batch; a frame with a number that is none goes into quarantine."""
        whole = [
            all(np.isfinite(part).all() for part in parts)
            for parts in zip(seen.frames, seen.tiles, seen.objects, strict=True)
        ]
        for frame, finite in zip(frames, whole, strict=True):
            if not finite:
                self.left_out.append((frame, _NOT_FINITE))
                self._refused[frame] = _NOT_FINITE
        rows = [row for row, finite in enumerate(whole) if finite]
        if not rows:
            return
        self._frames += [frames[row] for row in rows]
        found = [seen.found[row] for row in rows]
        chosen = slice(None) if len(rows) == len(frames) else rows
        sizes = [(images[row].shape[1], images[row].shape[0]) for row in rows]
        values: dict[str, NDArray[Any]] = {
            "vectors": _to_float16(seen.frames[chosen]),
            "entropy": seen.entropy[chosen],
            "quality": measured[chosen],
            "sizes": np.array(sizes, np.int32),
            "tiles": _to_float16(seen.tiles[chosen]),
            "counts": np.array([len(one) for one in found], np.int64),
            "object_vectors": _to_float16(np.concatenate([seen.objects[row] for row in rows])),
            "boxes": np.concatenate([one.boxes for one in found]),
            "scores": np.concatenate([one.scores for one in found]),
            "classes": np.concatenate([one.classes for one in found]),
        }
        for name, value in values.items():
            self._arrays[name].append(value)

    def write(self, folder: Path) -> None:
        """One shard of all rows; the quarantine is written first, so that a kill loses neither."""
        if self._refused:
            embeddings.add_to_quarantine(folder, self._refused)
        if self._frames:
            arrays = {name: np.concatenate(parts) for name, parts in self._arrays.items()}
            embeddings.write_shard(folder, self._frames, arrays)


def _to_float16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype(np.float16)


# ---- The pass on Ray, for pools that one machine cannot hold: each worker embeds whole shards.
#
# Every worker sees the workspace's folder at the same path, and writes into it what one machine
# would have written: a shard's bytes depend on its own frames only, and each worker gives the
# network as many threads as this process does, since sums depend on that.


_LeftOut = list[tuple[str, str]]


def _write_shards_on_ray(
    place: Workspace,
    encoder: Encoder,
    parts: Sequence[Sequence[Frame]],
    batch: int,
    step: Callable[[int], None],
    *,
    address: str,
) -> _LeftOut:
    """As `one_pass.write_parts`, with Ray's workers; what was left out, and why.

    Args:
        address: Of a cluster (``host:port``, ``auto``, ``ray://host:port``), or ``local``.

    Raises:
        ServiceError: Ray is not there, or lost a worker for good; finished shards are kept.
        WorkbenchError: As on one machine.
    """
    if not parts:
        return []
    import torch

    threads = torch.get_num_threads()
    with ray_cluster.connect(place, address, cpus=max(threads, os.cpu_count() or 1)) as ray:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        actor = ray.remote(_RayWorker).options(num_cpus=threads, max_restarts=2, max_task_retries=2)
        shared = ray.put(encoder)
        pool = [
            actor.remote(str(place.root), shared, batch, threads)
            for _ in range(min(workers, len(parts)))
        ]
        return _distribute(ray, pool, parts, step)


def _distribute(
    ray: Any, pool: Sequence[Any], parts: Sequence[Sequence[Frame]], step: Callable[[int], None]
) -> _LeftOut:
    waiting = list(enumerate(parts))[::-1]
    running: dict[Any, tuple[Any, int]] = {}
    found: dict[int, _LeftOut] = {}
    idle = list(pool)
    try:
        while waiting or running:
            while waiting and idle:
                worker, (number, part) = idle.pop(), waiting.pop()
                running[worker.write.remote(list(part))] = (worker, number)
            for done in ray.wait(list(running))[0]:
                worker, number = running.pop(done)
                found[number] = ray.get(done)
                idle.append(worker)
                step(len(parts[number]))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WorkbenchError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise ServiceError(
            f"a worker was lost: {ray_cluster.first_line(error)}",
            hint="Run it again: finished shards are kept",
        ) from error
    return [one for number in sorted(found) for one in found[number]]


class _RayWorker:
    """Holds the encoder, loaded once, and embeds one shard at a time."""

    def __init__(self, root: str, encoder: Encoder, batch: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.place, self.encoder, self.batch = Workspace(Path(root)), encoder, batch

    def write(self, part: list[Frame]) -> _LeftOut:

        return write_shards(self.place, self.encoder, [part], self.batch, lambda _: None)


# ---- Embed: one pass over a pool gives vectors of frames, objects and tiles, entropy and quality.
#
# What is on disk already is never computed again: a killed pass goes on, an added drive costs only
# itself. Identity carries its parameters: another model or preprocessing is another folder.


Progress = Callable[[int, int], None]
_MeasuredImage = tuple[Pixels, NDArray[np.float32]]

SHARD_FRAMES = 256
"""Frames in one shard: what a killed pass may lose."""


def embed(
    place: Workspace,
    encoder: Encoder | TorchPredictor,
    frames: Sequence[Frame],
    progress: Progress | None = None,
    *,
    batch: int = 16,
    ray: str | None = None,
) -> Embeddings:
    """Vectors of these frames, computing only what is not on disk.

    Frames that cannot be read, or that the model answers with numbers that are none, are left
    out and listed; the former are tried again by the next pass. Images are decoded and measured
    in threads, and shards written in another, while the model runs.

    Args:
        ray: Address of a Ray cluster whose workers share the work, and see the workspace's folder
            at the same path; ``local`` starts one here. Shards come out the same.

    Raises:
        DataError: Not a single frame could be embedded, or the model gives vectors of another
            width than it gave before.
        WorkbenchError: The disk is full.
    """
    source = DetectorEncoder(encoder) if isinstance(encoder, TorchPredictor) else encoder
    folder = embeddings.embeddings_folder(place, source)
    embeddings.remove_stale_writes(folder)
    missing, left_out = _missing_frames(folder, frames)
    done = len(frames) - len(missing)

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(frames))

    step(0)
    parts = [
        missing[start : start + SHARD_FRAMES] for start in range(0, len(missing), SHARD_FRAMES)
    ]
    if ray is None:
        left_out += write_shards(place, source, parts, batch, step)
    else:
        left_out += _write_shards_on_ray(place, source, parts, batch, step, address=ray)
    return gather_embeddings(folder, source, frames, tuple(left_out))


def _missing_frames(folder: Path, frames: Sequence[Frame]) -> tuple[list[Frame], _LeftOut]:
    """Frames that no shard holds, each once, and those that need not be tried again."""
    known = {frame for shard in embeddings.read_shards(folder) for frame in shard.frames}
    refused = embeddings.read_quarantine(folder)
    wanted = {frame.id: frame for frame in frames if frame.id not in known}
    left_out = [(frame, refused[frame]) for frame in wanted if frame in refused]
    return [frame for name, frame in wanted.items() if name not in refused], left_out


def write_shards(
    place: Workspace,
    encoder: Encoder,
    parts: Sequence[Sequence[Frame]],
    batch: int,
    step: Callable[[int], None],
) -> _LeftOut:
    """Embed each part of a pool into a shard of its own; what was left out, and why.

    A part's bytes depend on its own frames only, wherever and beside whatever it is made.
    """
    folder = embeddings.embeddings_folder(place, encoder)
    left_out: _LeftOut = []
    ends = np.cumsum([-(-len(part) // batch) for part in parts])
    batches = [
        part[start : start + batch] for part in parts for start in range(0, len(part), batch)
    ]
    with (
        processes.keep_freed_memory(),
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as writer,
    ):
        writing: Future[None] | None = None
        rows = ShardBuilder()
        current = 0
        for number, (chunk, read) in enumerate(_prefetch(place, batches), start=1):
            _encode_batch(encoder, chunk, read, rows)
            step(len(chunk))
            if number == ends[current]:
                if writing is not None:
                    writing.result()  # a full disk is told here, before more is computed
                writing = writer.submit(rows.write, folder)
                left_out += rows.left_out
                rows, current = ShardBuilder(), current + 1
        if writing is not None:
            writing.result()
    return left_out


def _encode_batch(
    encoder: Encoder,
    chunk: Sequence[Frame],
    read: Sequence[Future[_MeasuredImage]],
    rows: ShardBuilder,
) -> None:
    kept, images, measured = [], [], []
    for frame, future in zip(chunk, read, strict=True):
        try:
            image, numbers = future.result()
        except DataError as error:
            rows.left_out.append((frame.id, error.what))
            continue
        kept.append(frame.id)
        images.append(image)
        measured.append(numbers)
    if kept:
        rows.add(kept, images, np.stack(measured), encoder.look(images))


def _prefetch(
    place: Workspace, batches: Sequence[Sequence[Frame]]
) -> Iterator[tuple[Sequence[Frame], list[Future[_MeasuredImage]]]]:
    """Batches with their images, decoded and measured one batch ahead."""
    with (
        processes.single_threaded_opencv(),
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool,
    ):

        def start(number: int) -> list[Future[_MeasuredImage]]:
            chunk = batches[number] if number < len(batches) else ()
            return [pool.submit(_load_and_measure, media_path(place, frame)) for frame in chunk]

        following = start(0)
        for number, chunk in enumerate(batches):
            current, following = following, start(number + 1)
            yield chunk, current


def _load_and_measure(path: Path) -> _MeasuredImage:
    image = load_rgb(path)
    return image, quality.measure_quality(image)


__all__ = ["Embeddings", "embed"]
