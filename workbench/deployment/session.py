"""Prediction on many frames: input frames, a resumable output file, images with boxes."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from workbench.core import digest
from workbench.core.errors import DataError, ParameterError
from workbench.core.text import counted, natural_key
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.data.drawing import MISSED, class_colours, draw_box_on_image
from workbench.data.files import IMAGE_SUFFIXES, find_files
from workbench.data.images import open_media, orientation
from workbench.deployment.runtime import Answer, AnswerStatus, Runtime
from workbench.deployment.video import (
    FOLDER_FPS,
    VIDEO_SUFFIXES,
    VideoReader,
    VideoWriter,
    count_frames,
    frames_per_second,
)
from workbench.detection.preprocessing import Pixels, load_rgb
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Role
from workbench.records.held_out import refuse_held_out
from workbench.records.store import Store

__all__ = ["InputFrame", "run_session"]

_READ_AHEAD = 3
"""Decoded images per decoding thread in the queue."""


@dataclass(frozen=True)
class InputFrame:
    """One image to answer.

    Attributes:
        file: Its name in answers.
        sequence: Name of its sequence.
        frame: Digest of the frame, if it is in a dataset.
        position: Number of the frame in a video, from 0; None for an image.
    """

    path: Path
    file: str
    sequence: str
    frame: str | None = None
    position: int | None = None


def frames_from_path(path: Path) -> list[InputFrame]:
    """An image, a video, or all images and videos below a folder, in natural order.

    Each folder and each video is a sequence.

    Raises:
        ParameterError: The path does not exist, or has no images.
    """
    if path.is_file():
        return _frames_of_file(path, path.name, "")
    if not path.is_dir():
        raise ParameterError(
            "no such image, video, folder or dataset",
            where=path,
            hint="SRC is an image, a video, a folder of them, NAME, NAME@N or NAME@N:DRIVE",
        )
    frames = [
        frame
        for file in find_files(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        for frame in _frames_of_file(
            file, file.relative_to(path).as_posix(), file.relative_to(path).parent.as_posix()
        )
    ]
    if not frames:
        raise ParameterError(
            "no images and no videos in the folder",
            where=path,
            hint=f"Formats: {', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))}",
        )
    return sorted(frames, key=lambda source: (source.sequence, natural_key(source.file)))


def _frames_of_file(path: Path, name: str, sequence: str) -> list[InputFrame]:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return [InputFrame(path, name, sequence)]
    return [
        InputFrame(path, f"{name}/{number:06d}", name, position=number)
        for number in range(count_frames(path))
    ]


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
    refuse_held_out(Store(workspace), frames, "predictions", roles=(Role.BLIND,))
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
    if any(source.position is not None for source in sources):
        threads = 1  # a video is read in order
    videos = VideoReader()
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode") as pool:
        queue: deque[tuple[InputFrame, Future[Pixels | DataError]]] = deque()
        for source in sources:
            queue.append((source, pool.submit(_image_or_error, source, videos)))
            if len(queue) > threads * _READ_AHEAD:
                first, image = queue.popleft()
                yield first, image.result()
        while queue:
            first, image = queue.popleft()
            yield first, image.result()


def _image_or_error(source: InputFrame, videos: VideoReader) -> Pixels | DataError:
    try:
        if source.position is not None:
            return videos.read(source.path, source.position)
        if source.frame is None:
            if turned := _orientation_note(source.path):
                return DataError(turned, where=source.path)
            return load_rgb(source.path)
        return np.asarray(open_media(source.path, source.frame))
    except DataError as error:
        return error


_TURNED = "EXIF orientation "


def _orientation_note(path: Path) -> str:
    """Why an image that viewers turn is refused, as ingest refuses it; empty for others."""
    try:
        with Image.open(path) as image:
            turned = orientation(image)
    except Exception:  # as decoders do on damaged files; decoding says what is wrong
        return ""
    if turned == 1:
        return ""
    return f"{_TURNED}{turned}: save it upright and without the tag"


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
        turned: Images with an EXIF orientation, which are refused.
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
        self.turned += _TURNED in answer.why
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
    draw: Sequence[_DrawAnswer] = (),
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
        draw: Each is called with every readable image and its answer.
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
            summary.add(answer)
            if stream:
                stream.write(_json_line(answer.model_dump(mode="json")))
                stream.flush()
            if watch:
                watch(image, answer)
            if not isinstance(image, DataError):
                for one in draw:
                    one(image, answer)
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


def draw_answer(
    image: Pixels, answer: Answer, colours: Mapping[str, str], score: float = _MIN_DRAWN_SCORE
) -> Image.Image:
    """The image with the boxes of an answer, thin where a rule answered; text fits its size.

    Args:
        colours: By class; see `class_colours`.
        score: Boxes with a lower score are not drawn.
    """
    drawn = Image.fromarray(np.ascontiguousarray(image))
    by_model = answer.status is AnswerStatus.OK
    line, font_size = max(2, drawn.width // 500), max(11, drawn.width // 90)
    for box in answer.boxes:
        if box.score >= score:
            colour = colours.get(box.cls) or class_colours((box.cls,))[box.cls]
            text = f"{box.cls.replace('_', ' ')} {box.score:.2f}"
            width = line if by_model else max(1, line // 2)
            draw_box_on_image(drawn, box.xyxy, colour, width=width, text=text, font_size=font_size)
    if not by_model:
        text = f"{answer.status}: {answer.by}, {counted(answer.age, 'frame')} old"
        draw_box_on_image(
            drawn,
            (0, 1.3 * font_size, drawn.width - 1, drawn.height - 1),
            MISSED,
            width=line,
            text=text,
            font_size=font_size,
        )
    return drawn


class AnswerVideo:
    """Writes the answers of a session as one video, frame by frame.

    Args:
        path: Ends on ``.mp4``, ``.webm`` or ``.avi``.
        sources: What is answered; a video gives its rate, images have ten a second.
        classes: Of the model, in order; they decide the colours.
    """

    def __init__(
        self, path: Path, sources: Sequence[InputFrame], classes: Sequence[str] = ()
    ) -> None:
        first = next((one for one in sources if one.position is not None), None)
        self._video = VideoWriter(path, frames_per_second(first.path) if first else FOLDER_FPS)
        self._colours = class_colours(classes)

    def __call__(self, image: Pixels, answer: Answer) -> None:
        self._video.write(draw_answer(image, answer, self._colours))

    def close(self) -> None:
        """Finish the file."""
        self._video.close()


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
        drawn = draw_answer(image, answer, self._colours, self._score)
        stem = _without_suffix(answer.file)
        name = answer.file if self._same_stem[stem] > 1 else stem
        # A drive may have any name; nothing is written outside the folder.
        inside = [part for part in Path(name).parts if part not in ("..", "/")]
        path = self._folder.joinpath(*inside[:-1], f"{inside[-1]}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(path, quality=90)
