"""Where frames to answer come from: an image, a folder of them, or a dataset and its drives."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from workbench.data.source import IMAGE_SUFFIXES
from workbench.errors import DataError, ParameterError
from workbench.perception.preprocessing import Pixels, load_rgb
from workbench.records.dataset import Dataset, media_path
from workbench.workspace import Workspace

_AHEAD = 3
"""Decoded images waiting for each decoding thread: enough that the network never waits."""


@dataclass(frozen=True)
class Source:
    """One image to answer. ``file`` names it in answers; ``frame`` where it is on record."""

    path: Path
    file: str
    sequence: str
    frame: str | None = None


def from_path(path: Path) -> list[Source]:
    """An image, or all images below a folder; a folder is a sequence, in order of numbers in names.

    Raises:
        ParameterError: There is nothing, or no image in it.
    """
    if path.is_file():
        return [Source(path, path.name, "")]
    if not path.is_dir():
        raise ParameterError(
            "no such image, folder or dataset",
            where=path,
            hint="SRC is an image, a folder of images, NAME, NAME@N or NAME@N:DRIVE",
        )
    found = [
        Source(file, file.relative_to(path).as_posix(), file.relative_to(path).parent.as_posix())
        for file in path.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    ]
    if not found:
        raise ParameterError(
            "no images in the folder",
            where=path,
            hint=f"Read are {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    return sorted(found, key=lambda source: (source.sequence, _numbers(source.file)))


def from_dataset(place: Workspace, dataset: Dataset, drive: str | None = None) -> list[Source]:
    """The frames of a dataset or of one drive of it; a drive is a sequence.

    Raises:
        ParameterError: There is no such drive.
    """
    frames = [frame for frame in dataset.frames if drive is None or frame.drive == drive]
    if not frames:
        known = ", ".join(sorted(dataset.drive_by_id)[:8])
        raise ParameterError(
            f"no drive {drive!r} in {dataset.name}", where=dataset.ref, hint=f"It has {known} …"
        )
    return [
        Source(media_path(place, frame), f"{frame.drive}/{frame.index:06d}", frame.drive, frame.id)
        for frame in sorted(frames, key=lambda frame: (frame.drive, frame.index))
    ]


def decoded(
    sources: Sequence[Source], *, threads: int = 2
) -> Iterator[tuple[Source, Pixels | DataError]]:
    """Images in order, decoded ahead in threads; in place of one that cannot be, its error."""
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[Source, Future[Pixels | DataError]]] = deque()
        for source in sources:
            waiting.append((source, pool.submit(_read, source.path)))
            if len(waiting) > threads * _AHEAD:
                first, image = waiting.popleft()
                yield first, image.result()
        while waiting:
            first, image = waiting.popleft()
            yield first, image.result()


def _read(path: Path) -> Pixels | DataError:
    try:
        return load_rgb(path)
    except DataError as error:
        return error


def _numbers(name: str) -> list[tuple[int, str]]:
    """``frame10`` after ``frame9``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
