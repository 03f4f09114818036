"""Prediction on many frames: input frames, a resumable output file, images with boxes."""

from __future__ import annotations

import json
import os
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
from workbench.core.text import counted, natural_key
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.data.drawing import class_colours, draw_box_on_image
from workbench.data.files import IMAGE_SUFFIXES, find_images
from workbench.data.images import open_media
from workbench.deployment.runtime import Answer, AnswerStatus, Runtime
from workbench.detection.preprocessing import Pixels, load_rgb
from workbench.records.dataset import Dataset, media_path

__all__ = ["InputFrame", "run_session"]

_ORIENTATION_TAG = 0x0112

_READ_AHEAD = 3
"""Decoded images per decoding thread in the queue."""


@dataclass(frozen=True)
class InputFrame:
    """One image to answer.

    Attributes:
        file: Its name in answers.
        sequence: Name of its sequence.
        frame: Digest of the frame, if it is in a dataset.
    """

    path: Path
    file: str
    sequence: str
    frame: str | None = None


def frames_from_path(path: Path) -> list[InputFrame]:
    """An image, or all images below a folder; each folder is a sequence, in natural order.

    Raises:
        ParameterError: The path does not exist, or has no images.
    """
    if path.is_file():
        return [InputFrame(path, path.name, "")]
    if not path.is_dir():
        raise ParameterError(
            "no such image, folder or dataset",
            where=path,
            hint="SRC is an image, a folder of images, NAME, NAME@N or NAME@N:DRIVE",
        )
    frames = [
        InputFrame(
            file, file.relative_to(path).as_posix(), file.relative_to(path).parent.as_posix()
        )
        for file in find_images(path)
    ]
    if not frames:
        raise ParameterError(
            "no images in the folder",
            where=path,
            hint=f"Formats: {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    return sorted(frames, key=lambda source: (source.sequence, natural_key(source.file)))


def frames_from_dataset(
    workspace: Workspace, dataset: Dataset, drive: str | None = None
) -> list[InputFrame]:
    """Frames of a dataset, or of one of its drives; each drive is a sequence.

    Raises:
        ParameterError: The drive does not exist.
    """
    frames = [frame for frame in dataset.frames if drive is None or frame.drive == drive]
    if not frames:
        known = ", ".join(sorted(dataset.drive_by_id)[:8])
        raise ParameterError(
            f"no drive {drive!r} in {dataset.name}", where=dataset.ref, hint=f"Drives: {known} …"
        )
    counts = Counter((frame.drive, frame.index) for frame in frames)
    sources = []
    for frame in sorted(frames, key=lambda frame: (frame.drive, frame.index, frame.id)):
        name = f"{frame.drive}/{frame.index:06d}"
        if counts[frame.drive, frame.index] > 1:  # frames without numbers
            name += f"-{frame.id[:12]}"
        sources.append(InputFrame(media_path(workspace, frame), name, frame.drive, frame.id))
    return sources


def decode_ahead(
    sources: Sequence[InputFrame], *, threads: int = 2
) -> Iterator[tuple[InputFrame, Pixels | DataError]]:
    """Frames in order with their images, decoded ahead in threads, or the error of decoding."""
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode") as pool:
        queue: deque[tuple[InputFrame, Future[Pixels | DataError]]] = deque()
        for source in sources:
            queue.append((source, pool.submit(_image_or_error, source)))
            if len(queue) > threads * _READ_AHEAD:
                first, image = queue.popleft()
                yield first, image.result()
        while queue:
            first, image = queue.popleft()
            yield first, image.result()


def _image_or_error(source: InputFrame) -> Pixels | DataError:
    try:
        if source.frame is None:
            return load_rgb(source.path)
        return np.asarray(open_media(source.path, source.frame))
    except DataError as error:
        return error


_TURNED = "EXIF orientation "


def _orientation_note(path: Path) -> str:
    """A sentence about an image that viewers turn; empty for others."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, ValueError, SyntaxError):
        return ""
    if orientation in (0, 1):
        return ""
    return f"{_TURNED}{orientation} is not applied: boxes are in the pixels as stored"


_DrawAnswer = Callable[[Pixels, Answer], None]
_WatchAnswer = Callable[[Pixels | DataError, Answer], None]


@dataclass
class SessionSummary:
    """Result of a session.

    Attributes:
        frames: Number of answers.
        resumed: Answers that were in the output file already.
        statuses: Number of answers by status.
        boxes: Number of boxes.
        turned: Images with an EXIF orientation, which is not applied.
        ms: Time of each frame in this process.
        seconds: Duration in this process.
    """

    frames: int = 0
    resumed: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    boxes: int = 0
    turned: int = 0
    ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self.frames += 1
        self.statuses[answer.status] += 1
        self.boxes += len(answer.boxes)
        self.turned += answer.why.startswith(_TURNED)
        if answer.ms is not None:
            self.ms.append(answer.ms)

    def as_json(self) -> dict[str, Any]:
        """As JSON; ``latency_ms`` covers preprocessing, network and decoding."""
        times = np.array(self.ms)
        answered = self.frames - self.resumed
        return {
            "frames": self.frames,
            "resumed": self.resumed,
            "statuses": {status: self.statuses[status] for status in AnswerStatus},
            "boxes": self.boxes,
            "turned": self.turned,
            "latency_ms": None
            if not len(times)
            else {
                "median": round(float(np.median(times)), 3),
                "p99": round(float(np.quantile(times, 0.99)), 3),
                "max": round(float(times.max()), 3),
            },
            "images_per_second": round(answered / self.seconds, 2)
            if answered and self.seconds
            else None,
        }


def run_session(
    runtime: Runtime,
    sources: Sequence[InputFrame],
    *,
    output: Path | None = None,
    draw: _DrawAnswer | None = None,
    watch: _WatchAnswer | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> SessionSummary:
    """Answer all frames in order.

    Args:
        runtime: The loaded bundles.
        sources: Frames to answer.
        output: JSON lines file: a header, then one answer per line. An existing file of the same
            bundles, settings and frames is continued.
        draw: Called with every readable image and its answer.
        watch: Called with every image, or the error of decoding it, and its answer.
        threads: Threads that decode images.
        progress: Called with the number of frames done and in all.

    Raises:
        ParameterError: ``output`` is not such a file, or has answers of other bundles, settings or
            frames.
    """
    summary = SessionSummary()
    head = _output_header(runtime)
    done = _resume(runtime, sources, output, head, summary) if output else 0
    stream = _open_output(output, head, fresh=not done) if output else None
    start = perf_counter()
    try:
        for source, image in decode_ahead(sources[done:], threads=threads):
            answer = runtime.answer(
                image, file=source.file, sequence=source.sequence, frame=source.frame
            )
            if answer.status is AnswerStatus.OK and source.frame is None:
                # Ingest refuses turned images; here the boxes are in the pixels as stored.
                answer = answer.model_copy(update={"why": _orientation_note(source.path)})
            summary.add(answer)
            if stream:
                stream.write(_json_line(answer.model_dump(mode="json")))
                stream.flush()
            if watch:
                watch(image, answer)
            if draw and not isinstance(image, DataError):
                draw(image, answer)
            if progress:
                progress(summary.frames, len(sources))
    finally:
        if stream:
            stream.close()
    summary.seconds = perf_counter() - start
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
    """Number of frames that the file answers already; an incomplete last line is removed."""
    if not output.exists() or not output.stat().st_size:
        return 0
    content = output.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    if not lines:  # interrupted while writing the header
        os.truncate(output, 0)
        return 0
    try:
        existing = json.loads(lines[0])
        answers = [Answer.model_validate_json(line) for line in lines[1:]]
    except (ValueError, ValidationError) as error:
        raise ParameterError(
            "output file is not a file of answers", where=output, hint="Choose another file"
        ) from error
    same = len(answers) <= len(sources) and all(
        answer.file == source.file for answer, source in zip(answers, sources, strict=False)
    )
    if existing != head or not same:
        raise ParameterError(
            "output file has answers of other bundles, settings or frames",
            where=output,
            hint="Choose another file, or delete this one to answer all frames again",
        )
    for answer in answers:
        summary.add(answer)
        if answer.status is AnswerStatus.OK:
            runtime.memory.remember(answer.sequence, answer.boxes)
        else:
            runtime.memory.recall(answer.sequence)
    summary.ms.clear()  # latencies of another process are not comparable
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


_MIN_DRAWN_SCORE = 0.25


def _without_suffix(file: str) -> str:
    path = Path(file)
    return str(path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path)


class AnswerDrawer:
    """Writes ``FOLDER/FILE.jpg`` with the boxes of each answer; thin where a rule answered.

    Where files differ in their suffixes only, the suffix is kept: ``a.png.jpg``.

    Args:
        folder: Where to write.
        files: Names of all files that are answered.
        classes: Of the model, in order; they decide the colours.
        score: Boxes with a lower score are not drawn.
    """

    def __init__(
        self,
        folder: Path,
        *,
        files: Sequence[str] = (),
        classes: Sequence[str] = (),
        score: float = _MIN_DRAWN_SCORE,
    ) -> None:
        self._folder, self._score = folder, score
        self._colours = class_colours(classes)
        self._same_stem = Counter(_without_suffix(file) for file in files)

    def __call__(self, image: Pixels, answer: Answer) -> None:
        drawn = Image.fromarray(np.ascontiguousarray(image))
        by_model = answer.status is AnswerStatus.OK
        for box in answer.boxes:
            if box.score >= self._score:
                text, width = f"{box.cls} {box.score:.2f}", 2 if by_model else 1
                colour = self._colours.get(box.cls) or class_colours((box.cls,))[box.cls]
                draw_box_on_image(drawn, box.xyxy, colour, width=width, text=text)
        if not by_model:
            pen = ImageDraw.Draw(drawn)
            pen.text(
                (4, 4),
                f"{answer.status}: {answer.by}, {counted(answer.age, 'frame')} old",
                fill="red",
            )
        stem = _without_suffix(answer.file)
        name = answer.file if self._same_stem[stem] > 1 else stem
        # A drive may have any name; nothing is written outside the folder.
        inside = [part for part in Path(name).parts if part not in ("..", "/")]
        path = self._folder.joinpath(*inside[:-1], f"{inside[-1]}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(path, quality=90)
