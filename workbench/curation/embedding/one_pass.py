"""Embed: one pass over a pool gives vectors of frames, objects and tiles, entropy and quality.

What is on disk already is never computed again: a killed pass goes on, an added drive costs only
itself. Identity carries its parameters: another model or preprocessing is another folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench import resources
from workbench.curation.embedding import on_ray, quality, shards
from workbench.curation.embedding.detector_encoder import DetectorEncoder
from workbench.curation.embedding.embeddings import Embeddings, gather
from workbench.curation.embedding.encoder import Encoder
from workbench.curation.embedding.rows import Rows
from workbench.errors import DataError
from workbench.perception.predictor import TorchPredictor
from workbench.perception.preprocessing import Pixels, load_rgb
from workbench.records.dataset import media_path
from workbench.records.frames import Frame
from workbench.workspace import Workspace

__all__ = ["Embeddings", "embed"]

Progress = Callable[[int, int], None]
LeftOut = list[tuple[str, str]]
Measured = tuple[Pixels, NDArray[np.float32]]

SHARD = 256
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
    folder = shards.folder_of(place, source)
    shards.sweep(folder)
    missing, left_out = _to_do(folder, frames)
    done = len(frames) - len(missing)

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(frames))

    step(0)
    parts = [missing[start : start + SHARD] for start in range(0, len(missing), SHARD)]
    if ray is None:
        left_out += write_parts(place, source, parts, batch, step)
    else:
        left_out += on_ray.write_parts(place, source, parts, batch, step, address=ray)
    return gather(folder, source, frames, tuple(left_out))


def _to_do(folder: Path, frames: Sequence[Frame]) -> tuple[list[Frame], LeftOut]:
    """Frames that no shard holds, each once, and those that need not be tried again."""
    known = {frame for shard in shards.read_all(folder) for frame in shard.frames}
    refused = shards.quarantined(folder)
    wanted = {frame.id: frame for frame in frames if frame.id not in known}
    left_out = [(frame, refused[frame]) for frame in wanted if frame in refused]
    return [frame for name, frame in wanted.items() if name not in refused], left_out


def write_parts(
    place: Workspace,
    encoder: Encoder,
    parts: Sequence[Sequence[Frame]],
    batch: int,
    step: Callable[[int], None],
) -> LeftOut:
    """Embed each part of a pool into a shard of its own; what was left out, and why.

    A part's bytes depend on its own frames only, wherever and beside whatever it is made.
    """
    folder = shards.folder_of(place, encoder)
    left_out: LeftOut = []
    ends = np.cumsum([-(-len(part) // batch) for part in parts])
    batches = [
        part[start : start + batch] for part in parts for start in range(0, len(part), batch)
    ]
    with (
        resources.memory_kept(),
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as writer,
    ):
        writing: Future[None] | None = None
        rows = Rows()
        current = 0
        for number, (chunk, read) in enumerate(_read_ahead(place, batches), start=1):
            _look(encoder, chunk, read, rows)
            step(len(chunk))
            if number == ends[current]:
                if writing is not None:
                    writing.result()  # a full disk is told here, before more is computed
                writing = writer.submit(rows.write, folder)
                left_out += rows.left_out
                rows, current = Rows(), current + 1
        if writing is not None:
            writing.result()
    return left_out


def _look(
    encoder: Encoder, chunk: Sequence[Frame], read: Sequence[Future[Measured]], rows: Rows
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


def _read_ahead(
    place: Workspace, batches: Sequence[Sequence[Frame]]
) -> Iterator[tuple[Sequence[Frame], list[Future[Measured]]]]:
    """Batches with their images, decoded and measured one batch ahead."""
    with (
        resources.opencv_unthreaded(),
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool,
    ):

        def start(number: int) -> list[Future[Measured]]:
            chunk = batches[number] if number < len(batches) else ()
            return [pool.submit(_read, media_path(place, frame)) for frame in chunk]

        following = start(0)
        for number, chunk in enumerate(batches):
            current, following = following, start(number + 1)
            yield chunk, current


def _read(path: Path) -> Measured:
    image = load_rgb(path)
    return image, quality.measure(image)
