"""Compute the embeddings of a pool in one pass, on this machine or on Ray.

Rows that are on disk are not computed again: a killed pass resumes, and an added drive costs only
itself. A shard's bytes depend on its own frames only, so Ray's workers, which see the workspace's
folder at the same path, write what one machine would have written.
"""

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
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.curation.embedding.embeddings import (
    Embeddings,
    add_to_quarantine,
    embeddings_folder,
    gather_embeddings,
    read_quarantine,
    read_shards,
    remove_stale_writes,
    write_shard,
)
from workbench.curation.embedding.encoders import DetectorEncoder, Encoder, EncoderOutput
from workbench.curation.embedding.quality import measure_quality
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Pixels, load_frame
from workbench.records.frames import Frame
from workbench.services import ray_cluster

__all__ = ["embed"]

_NOT_FINITE = "the model's vector is not finite"
_Skipped = list[tuple[str, str]]
_MeasuredImage = tuple[Pixels, NDArray[np.float32]]
_SHARD_FRAMES = 256
"""Frames per shard, and so what a killed pass may lose."""


def embed(
    workspace: Workspace,
    encoder: Encoder | TorchPredictor,
    frames: Sequence[Frame],
    progress: Progress | None = None,
    *,
    batch: int = 16,
    ray: str | None = None,
) -> Embeddings:
    """Embed frames, computing only what is not on disk.

    Frames that cannot be read, or whose vectors are not finite, are skipped and listed; unreadable
    ones are tried again by the next pass. Images are decoded and measured in threads, and shards
    are written in another, while the model runs.

    Args:
        workspace: Holds images and embeddings.
        encoder: An encoder, or a detector to use as one.
        frames: In the order of the result.
        progress: Called with the number of frames done and their total.
        batch: Images per forward pass.
        ray: Address of a Ray cluster whose workers share the work and see the workspace's folder at
            the same path; ``local`` starts one here. Shards come out the same.

    Raises:
        DataError: No frame could be embedded, or vectors differ in width from earlier ones.
        WorkbenchError: The disk is full.
    """
    source = DetectorEncoder(encoder) if isinstance(encoder, TorchPredictor) else encoder
    folder = embeddings_folder(workspace, source)
    remove_stale_writes(folder)
    missing, skipped = _missing_frames(folder, frames)
    done = len(frames) - len(missing)

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(frames))

    step(0)
    parts = [
        missing[start : start + _SHARD_FRAMES] for start in range(0, len(missing), _SHARD_FRAMES)
    ]
    if ray is None:
        skipped += _write_shards(workspace, source, parts, batch, step)
    else:
        skipped += _write_shards_on_ray(workspace, source, parts, batch, step, address=ray)
    return gather_embeddings(folder, source, frames, tuple(skipped))


def _missing_frames(folder: Path, frames: Sequence[Frame]) -> tuple[list[Frame], _Skipped]:
    """Frames that no shard holds, each once, and the quarantined ones among the rest."""
    known = {frame for shard in read_shards(folder) for frame in shard.frames}
    quarantined = read_quarantine(folder)
    missing = {frame.id: frame for frame in frames if frame.id not in known}
    skipped = [(frame, quarantined[frame]) for frame in missing if frame in quarantined]
    return [frame for name, frame in missing.items() if name not in quarantined], skipped


def _write_shards(
    workspace: Workspace,
    encoder: Encoder,
    parts: Sequence[Sequence[Frame]],
    batch: int,
    step: Callable[[int], None],
) -> _Skipped:
    """Embed each part of a pool into its own shard; returns skipped frames with the reason.

    Args:
        workspace: Holds images and embeddings.
        encoder: The encoder.
        parts: Frames of each shard.
        batch: Images per forward pass.
        step: Called with the number of frames just done.
    """
    folder = embeddings_folder(workspace, encoder)
    skipped: _Skipped = []
    ends = np.cumsum([-(-len(part) // batch) for part in parts])
    batches = [
        part[start : start + batch] for part in parts for start in range(0, len(part), batch)
    ]
    with (
        processes.keep_freed_memory(),
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as writer,
    ):
        writing: Future[None] | None = None
        shard = _ShardBuilder()
        current = 0
        for number, (chunk, read) in enumerate(_prefetch(workspace, batches), start=1):
            _encode_batch(encoder, chunk, read, shard)
            step(len(chunk))
            if number == ends[current]:
                if writing is not None:
                    writing.result()  # raises on a full disk before more is computed
                writing = writer.submit(shard.write, folder)
                skipped += shard.skipped
                shard, current = _ShardBuilder(), current + 1
        if writing is not None:
            writing.result()
    return skipped


def _encode_batch(
    encoder: Encoder,
    chunk: Sequence[Frame],
    read: Sequence[Future[_MeasuredImage]],
    shard: _ShardBuilder,
) -> None:
    names, images, measured = [], [], []
    for frame, future in zip(chunk, read, strict=True):
        try:
            image, metrics = future.result()
        except DataError as error:
            shard.skipped.append((frame.id, error.what))
            continue
        names.append(frame.id)
        images.append(image)
        measured.append(metrics)
    if names:
        shard.add(names, images, np.stack(measured), encoder.embed(images))


def _prefetch(
    workspace: Workspace, batches: Sequence[Sequence[Frame]]
) -> Iterator[tuple[Sequence[Frame], list[Future[_MeasuredImage]]]]:
    """Batches with their images, decoded and measured one batch ahead."""
    with (
        processes.single_threaded_opencv(),
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool,
    ):

        def start(number: int) -> list[Future[_MeasuredImage]]:
            chunk = batches[number] if number < len(batches) else ()
            return [pool.submit(_load_and_measure, workspace, frame) for frame in chunk]

        following = start(0)
        for number, chunk in enumerate(batches):
            current, following = following, start(number + 1)
            yield chunk, current


def _load_and_measure(workspace: Workspace, frame: Frame) -> _MeasuredImage:
    image = load_frame(workspace, frame)
    return image, measure_quality(image)


class _ShardBuilder:
    """Rows of one shard, collected until it is complete.

    Attributes:
        skipped: Frames without a vector, with the reason.
    """

    def __init__(self) -> None:
        self.skipped: list[tuple[str, str]] = []
        self._quarantined: dict[str, str] = {}
        self._frames: list[str] = []
        self._arrays: dict[str, list[NDArray[Any]]] = {}

    def add(
        self,
        frames: Sequence[str],
        images: Sequence[Pixels],
        measured: NDArray[np.float32],
        output: EncoderOutput,
    ) -> None:
        """Add the rows of one batch; frames with a vector that is not finite go into quarantine.

        Args:
            frames: Digests of the batch.
            images: Their pixels.
            measured: Float32 ``[n, 5]`` quality.
            output: Vectors and boxes.
        """
        whole = [
            all(np.isfinite(part).all() for part in parts)
            for parts in zip(output.frames, output.tiles, output.objects, strict=True)
        ]
        for frame, finite in zip(frames, whole, strict=True):
            if not finite:
                self.skipped.append((frame, _NOT_FINITE))
                self._quarantined[frame] = _NOT_FINITE
        rows = [row for row, finite in enumerate(whole) if finite]
        if not rows:
            return
        self._frames += [frames[row] for row in rows]
        detections = [output.detections[row] for row in rows]
        selected = slice(None) if len(rows) == len(frames) else rows
        sizes = [(images[row].shape[1], images[row].shape[0]) for row in rows]
        values: dict[str, NDArray[Any]] = {
            "vectors": _to_float16(output.frames[selected]),
            "entropy": output.entropy[selected],
            "quality": measured[selected],
            "sizes": np.array(sizes, np.int32),
            "tiles": _to_float16(output.tiles[selected]),
            "counts": np.array([len(one) for one in detections], np.int64),
            "object_vectors": _to_float16(np.concatenate([output.objects[row] for row in rows])),
            "boxes": np.concatenate([one.boxes for one in detections]),
            "scores": np.concatenate([one.scores for one in detections]),
            "classes": np.concatenate([one.classes for one in detections]),
        }
        if output.words is not None:
            values["word_scores"] = _to_float16(output.words.scores[selected])
            values["word_tiles"] = output.words.tiles[selected]
        for name, value in values.items():
            self._arrays.setdefault(name, []).append(value)

    def write(self, folder: Path) -> None:
        """Write the quarantine, then the shard; a kill between the two loses neither."""
        if self._quarantined:
            add_to_quarantine(folder, self._quarantined)
        if self._frames:
            arrays = {name: np.concatenate(parts) for name, parts in self._arrays.items()}
            write_shard(folder, self._frames, arrays)


def _to_float16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype(np.float16)


def _write_shards_on_ray(
    workspace: Workspace,
    encoder: Encoder,
    parts: Sequence[Sequence[Frame]],
    batch: int,
    step: Callable[[int], None],
    *,
    address: str,
) -> _Skipped:
    """`_write_shards` on Ray's workers; returns skipped frames with the reason.

    Args:
        address: Cluster address (``host:port``, ``auto``, ``ray://host:port``), or ``local``.

    Raises:
        ServiceError: Ray is unreachable, or a worker was lost for good; finished shards are kept.
        WorkbenchError: As on one machine.
    """
    if not parts:
        return []
    import torch

    threads = torch.get_num_threads()
    with ray_cluster.connect(workspace, address, cpus=max(threads, os.cpu_count() or 1)) as ray:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        actor = ray.remote(_RayWorker).options(num_cpus=threads, max_restarts=2, max_task_retries=2)
        shared = ray.put(encoder)
        pool = [
            actor.remote(str(workspace.root), shared, batch, threads)
            for _ in range(min(workers, len(parts)))
        ]
        return _distribute(ray, pool, parts, step)


def _distribute(
    ray: Any, pool: Sequence[Any], parts: Sequence[Sequence[Frame]], step: Callable[[int], None]
) -> _Skipped:
    waiting = list(enumerate(parts))[::-1]
    running: dict[Any, tuple[Any, int]] = {}
    skipped: dict[int, _Skipped] = {}
    idle = list(pool)
    try:
        while waiting or running:
            while waiting and idle:
                worker, (number, part) = idle.pop(), waiting.pop()
                running[worker.write.remote(list(part))] = (worker, number)
            for finished in ray.wait(list(running))[0]:
                worker, number = running.pop(finished)
                skipped[number] = ray.get(finished)
                idle.append(worker)
                step(len(parts[number]))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WorkbenchError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise ServiceError(
            f"Ray lost a worker: {ray_cluster.first_line(error)}",
            hint="Run again; finished shards are kept",
        ) from error
    return [entry for number in sorted(skipped) for entry in skipped[number]]


class _RayWorker:
    """Holds the encoder, loaded once, and embeds one shard at a time."""

    def __init__(self, root: str, encoder: Encoder, batch: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.workspace, self.encoder, self.batch = Workspace(Path(root)), encoder, batch

    def write(self, part: list[Frame]) -> _Skipped:

        return _write_shards(self.workspace, self.encoder, [part], self.batch, lambda _: None)
