"""Prediction on many frames: input frames, resumable output file, drawn images."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw
from pydantic import ValidationError

from workbench.core import digest
from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import Workspace
from workbench.data.drawing import class_colour, draw_box_on_image
from workbench.data.source import IMAGE_SUFFIXES
from workbench.deployment.answers import Answer, AnswerStatus
from workbench.deployment.runtime import Runtime
from workbench.detection.preprocessing import Pixels, load_rgb
from workbench.records.dataset import Dataset, media_path

_READ_AHEAD = 3
"""Decoded images waiting for each decoding thread: enough that the network never waits."""


@dataclass(frozen=True)
class InputFrame:
    """One image to answer. ``file`` names it in answers; ``frame`` where it is on record."""

    path: Path
    file: str
    sequence: str
    frame: str | None = None


def frames_from_path(path: Path) -> list[InputFrame]:
    """An image, or all images below a folder; a folder is a sequence, in order of numbers in names.

    Raises:
        ParameterError: There is nothing, or no image in it.
    """
    if path.is_file():
        return [InputFrame(path, path.name, "")]
    if not path.is_dir():
        raise ParameterError(
            "no such image, folder or dataset",
            where=path,
            hint="SRC is an image, a folder of images, NAME, NAME@N or NAME@N:DRIVE",
        )
    found = [
        InputFrame(
            file, file.relative_to(path).as_posix(), file.relative_to(path).parent.as_posix()
        )
        for file in path.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    ]
    if not found:
        raise ParameterError(
            "no images in the folder",
            where=path,
            hint=f"Read are {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    return sorted(found, key=lambda source: (source.sequence, _natural_order(source.file)))


def frames_from_dataset(
    place: Workspace, dataset: Dataset, drive: str | None = None
) -> list[InputFrame]:
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
        InputFrame(
            media_path(place, frame), f"{frame.drive}/{frame.index:06d}", frame.drive, frame.id
        )
        for frame in sorted(frames, key=lambda frame: (frame.drive, frame.index))
    ]


def decode_ahead(
    sources: Sequence[InputFrame], *, threads: int = 2
) -> Iterator[tuple[InputFrame, Pixels | DataError]]:
    """Images in order, decoded ahead in threads; in place of one that cannot be, its error."""
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[InputFrame, Future[Pixels | DataError]]] = deque()
        for source in sources:
            waiting.append((source, pool.submit(_image_or_error, source.path)))
            if len(waiting) > threads * _READ_AHEAD:
                first, image = waiting.popleft()
                yield first, image.result()
        while waiting:
            first, image = waiting.popleft()
            yield first, image.result()


def _image_or_error(path: Path) -> Pixels | DataError:
    try:
        return load_rgb(path)
    except DataError as error:
        return error


def _natural_order(name: str) -> list[tuple[int, str]]:
    """``frame10`` after ``frame9``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


# ---- Answering many frames: what was answered is in a file, and a session that died goes on there.


Progress = Callable[[int, int], None]
DrawAnswer = Callable[[Pixels, Answer], None]


@dataclass
class SessionSummary:
    """A session: answers by status, and how long this part of it took."""

    frames: int = 0
    resumed: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    boxes: int = 0
    ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        self.frames += 1
        self.statuses[answer.status] += 1
        self.boxes += len(answer.boxes)
        if answer.ms is not None:
            self.ms.append(answer.ms)

    def as_json(self) -> dict[str, Any]:
        """``latency_ms`` is of preprocessing, network and decoding of the frames asked about."""
        times = np.array(self.ms)
        here = self.frames - self.resumed
        return {
            "frames": self.frames,
            "resumed": self.resumed,
            "statuses": {status: self.statuses[status] for status in AnswerStatus},
            "boxes": self.boxes,
            "latency_ms": None
            if not len(times)
            else {
                "median": round(float(np.median(times)), 3),
                "p99": round(float(np.quantile(times, 0.99)), 3),
                "max": round(float(times.max()), 3),
            },
            "images_per_second": round(here / self.seconds, 2) if here and self.seconds else None,
        }


def run_session(
    runtime: Runtime,
    sources: Sequence[InputFrame],
    *,
    output: Path | None = None,
    draw: DrawAnswer | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> SessionSummary:
    """Answer all frames in order.

    Args:
        output: JSON lines: a head that says what answers, then an answer a line. If it is there
            from the same bundles, what it answers is not asked again; a line that was cut off when
            a session died is.
        draw: Called with every image that could be read and its answer.
        threads: That decode images beside the network.

    Raises:
        ParameterError: ``output`` holds something else, or another bundle's answers.
    """
    summary = SessionSummary()
    head = _output_header(runtime)
    done = _resume(runtime, sources, output, head, summary) if output else 0
    stream = _open_output(output, head, fresh=not done) if output else None
    began = perf_counter()
    try:
        for source, image in decode_ahead(sources[done:], threads=threads):
            answer = runtime.answer(
                image, file=source.file, sequence=source.sequence, frame=source.frame
            )
            summary.add(answer)
            if stream:
                stream.write(_json_line(answer.model_dump(mode="json")))
                stream.flush()
            if draw and not isinstance(image, DataError):
                draw(image, answer)
            if progress:
                progress(summary.frames, len(sources))
    finally:
        if stream:
            stream.close()
    summary.seconds = perf_counter() - began
    return summary


def _output_header(runtime: Runtime) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "bundles": [
            {"digest": bundle.digest, "file": bundle.file, "simulated": bundle.simulated}
            for bundle in runtime.bundles
        ],
        "budget_ms": runtime.budget_ms,
        "score": runtime.score,
        "classes": list(runtime.classes),
    }


def _resume(
    runtime: Runtime,
    sources: Sequence[InputFrame],
    output: Path,
    head: dict[str, Any],
    summary: SessionSummary,
) -> int:
    """How many frames the file answers already; what is no whole line is cut off."""
    if not output.exists() or not output.stat().st_size:
        return 0
    content = output.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    if not lines:  # died while it wrote the head
        os.truncate(output, 0)
        return 0
    try:
        there = json.loads(lines[0])
        answers = [Answer.model_validate_json(line) for line in lines[1:]]
    except (ValueError, ValidationError) as error:
        raise ParameterError(
            "output file holds something else", where=output, hint="Name another file"
        ) from error
    same = len(answers) <= len(sources) and all(
        answer.file == source.file for answer, source in zip(answers, sources, strict=False)
    )
    if there != head or not same:
        raise ParameterError(
            "output file holds answers of other bundles, settings or frames",
            where=output,
            hint="Name another file, or delete this one to answer all frames again",
        )
    for answer in answers:
        summary.add(answer)
        if answer.status is AnswerStatus.OK:
            runtime.memory.keep(answer.sequence, answer.boxes)
        else:
            runtime.memory.recall(answer.sequence)
    summary.ms.clear()  # of another process on a machine that was busy otherwise
    summary.resumed = len(answers)
    os.truncate(output, sum(len(line) + 1 for line in lines))
    return len(answers)


def _open_output(output: Path, head: dict[str, Any], *, fresh: bool) -> IO[bytes]:
    output.parent.mkdir(parents=True, exist_ok=True)
    stream = output.open("ab")
    if fresh and not stream.tell():
        stream.write(_json_line(head))
        stream.flush()
    return stream


def _json_line(value: dict[str, Any]) -> bytes:
    return digest.canonical_json(value) + b"\n"


# ---- A frame with its answer drawn on it.


_MIN_DRAWN_SCORE = 0.25


class AnswerDrawer:
    """Writes ``FOLDER/FILE.jpg`` for each answer; boxes of the rule are drawn thin.

    Args:
        score: Boxes below are not drawn: they are answers too, but hide the picture.
    """

    def __init__(self, folder: Path, *, score: float = _MIN_DRAWN_SCORE) -> None:
        self._folder, self._score = folder, score

    def __call__(self, image: Pixels, answer: Answer) -> None:
        picture = Image.fromarray(np.ascontiguousarray(image))
        ours = answer.status is AnswerStatus.OK
        for box in answer.boxes:
            if box.score >= self._score:
                text, width = f"{box.cls} {box.score:.2f}", 2 if ours else 1
                draw_box_on_image(picture, box.xyxy, class_colour(box.cls), width=width, text=text)
        if not ours:
            pen = ImageDraw.Draw(picture)
            pen.text((4, 4), f"{answer.status}: {answer.by}, {answer.age} frames old", fill="red")
        path = self._folder / f"{Path(answer.file).with_suffix('')}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
