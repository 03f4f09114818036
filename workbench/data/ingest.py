"""Read a source folder into checked frames and labels.

The resulting dataset depends on the content of the images and annotations only: not on the machine,
the path of the source, the order of its files, or the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.audit import log as audit
from workbench.core.errors import DataError, ParameterError
from workbench.core.names import check_name, check_text
from workbench.core.text import counted, short_repr
from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.data import readers
from workbench.data.images import RejectedImage, StoredImage, store_images
from workbench.data.schema import DROP, FRONT_CAMERA, IGNORE
from workbench.data.source import Source, SourceBox, SourceFrame, left_out_text
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset, save_dataset
from workbench.records.frames import (
    ANY_CLASS,
    UNKNOWN,
    Box,
    Drive,
    Frame,
    Label,
    LabelSchema,
    Origin,
)
from workbench.records.held_out import keep_blind
from workbench.records.store import Store
from workbench.records.types import Quarantined

__all__ = ["IngestResult"]

_EDGE_TOLERANCE_PX = 1.0
_EDGE_TOLERANCE_SHARE = 0.005
"""A box may exceed the image by 1 px or 0.5 % of the side, whichever is larger, and is clipped.

Conventions differ by a pixel, and tools round. A box that exceeds it further belongs to another
image, scale or convention, and is quarantined.
"""

_MIN_SIDE_PX = 1.0
"""Boxes with a shorter side are quarantined."""

_MAX_12_BIT = 4095

_CHUNK_SIZE = 16
_MIN_FRAMES_FOR_PROCESSES = 64
_MAX_NAME = 200
_MAX_DETAIL = 1000

_ImageResult = StoredImage | RejectedImage


@short_repr
@dataclass(frozen=True)
class IngestResult:
    """A source that was read and checked.

    Attributes:
        dataset: Not saved yet, and without roles.
        quarantine: Inputs that were left out.
        sources: File name in the source, by frame id.
        root: The folder of the source.
        format: Format of the source.
        notes: What is unusual about inputs that were taken.
        licence: Licence of the source; empty where not stated.
    """

    dataset: Dataset
    quarantine: tuple[Quarantined, ...]
    sources: dict[Digest, str]
    root: Path
    format: str = UNKNOWN
    notes: tuple[str, ...] = ()
    licence: str = ""

    def save(self, store: Store, dataset: Dataset | None = None) -> Ref:
        """Save a dataset version with the quarantine; frames that were blind before stay blind.

        Args:
            dataset: A dataset derived from this one, such as one with roles, to save instead.
        """
        saved = dataset or self.dataset
        saved = replace(saved, frames=keep_blind(store, saved.frames))
        ref = save_dataset(
            store,
            saved,
            made_by="ingest",
            quarantine=self.quarantine,
            sources=self.sources,
            source_root=self.root,
            licence=self.licence,
        )
        audit.append(
            store.workspace,
            "ingested",
            subjects=(ref,),
            dataset=saved.name,
            frames=len(saved.frames),
            quarantined=len(self.quarantine),
        )
        return ref


def ingest(  # noqa: PLR0913 - the source, and how to read it
    workspace: Workspace,
    source: Path,
    *,
    name: str,
    format: str = "auto",  # noqa: A002 - as on the command line
    schema: LabelSchema = FRONT_CAMERA,
    frame_rate: float = 30.0,
    workers: int = 2,
    conditions: Mapping[str, str] | None = None,
    licence: str = "",
    progress: Progress | None = None,
) -> IngestResult:
    """Read ``source``, check every image and label, and copy valid images into the workspace.

    Invalid inputs are quarantined with the reason. An invalid label does not affect its frame; an
    invalid image is left out with its labels.

    Args:
        name: Name of the dataset.
        format: A key of ``readers.READERS``, or ``auto`` to detect it.
        schema: Classes, and how the source's names map to them.
        frame_rate: Frames per second, for drives with frame numbers and no timestamps. It is
            recorded as an assumption.
        workers: Number of processes that decode images; 1 decodes in this process.
        conditions: Light (``day``, ``dusk``, ``night``) or weather (``clear``, ``rain``, ``fog``,
            ``snow``) by word of the source, beside the words that are known.
        licence: Of the source, as an SPDX identifier or in words. A release is refused where it
            forbids the use.
        progress: Called with the number of images done and their total.

    Raises:
        ParameterError: An argument is invalid.
        DataError: Nothing in the source can be used.
    """
    check_name(name, "dataset name")
    if licence:
        check_text(licence, "licence")
    if workers < 1:
        raise ParameterError(f"workers must be ≥ 1, not {workers}")
    if not frame_rate > 0:
        raise ParameterError(f"frame_rate must be > 0, not {frame_rate}")
    contents = readers.read_source(source, format, conditions)
    frames = sorted(contents.frames, key=lambda frame: (frame.drive, frame.index, frame.name))
    images = _store_all(workspace, frames, workers, progress)
    builder = _DatasetBuilder(contents, schema)
    for frame, image in zip(frames, images, strict=True):
        builder.add(frame, image)
    result = builder.finish(name, frame_rate)
    dataset = replace(result.dataset, workspace=workspace)
    return replace(result, dataset=dataset, licence=licence)


def _store_all(
    workspace: Workspace, frames: list[SourceFrame], workers: int, progress: Progress | None
) -> Iterator[_ImageResult]:
    """Store the image of each frame, in order; memory does not grow with their number."""
    chunks = [frames[start : start + _CHUNK_SIZE] for start in range(0, len(frames), _CHUNK_SIZE)]
    work = [[(str(frame.file), frame.size) for frame in chunk] for chunk in chunks]
    media = str(workspace.media)
    done = 0
    if workers == 1 or len(frames) < _MIN_FRAMES_FOR_PROCESSES:
        results: Iterator[list[_ImageResult]] = (store_images(chunk, media) for chunk in work)
    else:
        results = _store_in_processes(work, media, workers)
    for images in results:
        done += len(images)
        if progress is not None:
            progress(done, len(frames))
        yield from images


def _store_in_processes(
    work: list[list[tuple[str, tuple[int, int] | None]]], media: str, workers: int
) -> Iterator[list[_ImageResult]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from workbench.core.processes import die_with_pool_owner

    # A process forked from a threaded one (a notebook kernel) may hang.
    context = multiprocessing.get_context("forkserver")
    # Imported once by the fork server instead of once per worker.
    context.set_forkserver_preload(["workbench.data.images"])
    try:
        with ProcessPoolExecutor(workers, context, initializer=die_with_pool_owner) as pool:
            yield from pool.map(store_images, work, [media] * len(work))
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images was killed",
            hint="Possible reasons: not enough memory; an image that crashes its decoder (find it "
            "with --workers 1); a script without `if __name__ == '__main__':`",
        ) from error


class _DatasetBuilder:
    """Collects valid frames and labels, and the quarantine."""

    def __init__(self, source: Source, schema: LabelSchema) -> None:
        self._source = source
        self._schema = schema
        self._frames: dict[Digest, tuple[Frame, SourceFrame]] = {}
        self._labels: list[Label] = []
        self._dark: list[str] = []  # 16-bit images that use few of their levels
        self._quarantine: list[Quarantined] = list(source.problems)

    def add(self, source: SourceFrame, image: _ImageResult) -> None:
        if problem := _frame_problem(source):
            self._reject(source, "mislabelled", problem + left_out_text(source.boxes))
            return
        if isinstance(image, RejectedImage):
            self._reject(source, image.reason, image.detail + left_out_text(source.boxes))
            return
        if image.id in self._frames:
            other = self._frames[image.id][1].name
            detail = f"the same bytes as {other}{left_out_text(source.boxes)}"
            self._reject(source, "duplicate", detail)
            return
        if image.brightest is not None and image.brightest <= _MAX_12_BIT:
            self._dark.append(source.name)
        if image.inside > 1:
            detail = f"it holds {image.inside} images: the first is taken, save each as a file"
            self._quarantine.append(
                Quarantined(file=source.name, reason="unreadable", detail=detail)
            )
        frame = Frame(
            id=image.id,
            drive=source.drive,
            index=source.index,
            timestamp_us=source.timestamp_us,
            width=image.width,
            height=image.height,
            suffix=image.suffix,
            conditions=source.conditions,
            events=source.events,
            position=image.position,
        )
        labels, usable = self._labels_of(source, frame)
        if not usable:
            detail = "none of its boxes can be used; without them it would count as empty"
            self._reject(source, "mislabelled", detail)
            return
        self._frames[frame.id] = (frame, source)
        self._labels.extend(labels)

    def _labels_of(self, source: SourceFrame, frame: Frame) -> tuple[list[Label], bool]:
        """The labels of a frame, and whether the source says what is in it.

        It does not where every annotation is broken: such a frame is not one without objects.
        """
        rendered = self._drive(source.drive).simulated
        seen: set[tuple[str, Box]] = set()
        labels: list[Label] = []
        broken, understood = source.failed, 0
        for box in source.boxes:
            try:
                label = self._label(box, frame, rendered=rendered)
            except _InvalidBoxError as error:
                broken += error.reason != "unknown-class"
                understood += error.reason == "unknown-class"
                self._reject(source, error.reason, f"{box.detail}: {error}")
                continue
            understood += 1
            if label is None:
                continue
            if (label.cls, label.box) in seen:
                detail = f"{box.detail}: {label.cls} with this box again"
                self._reject(source, "duplicate", detail)
                continue
            seen.add((label.cls, label.box))
            labels.append(label)
        return labels, not broken or bool(understood)

    def finish(self, name: str, frame_rate: float) -> IngestResult:
        if not self._frames:
            reasons = sorted({entry.reason for entry in self._quarantine})
            first = self._quarantine[0]
            raise DataError(
                f"no usable frames ({', '.join(reasons)})",
                where=self._source.root,
                hint=f"The first problem: {first.file}: {first.detail}",
            )
        by_drive: dict[str, list[tuple[Frame, SourceFrame]]] = {}
        for frame, source in self._frames.values():
            by_drive.setdefault(frame.drive, []).append((frame, source))
        drives: list[Drive] = []
        frames: list[Frame] = []
        for drive_id, pairs in sorted(by_drive.items()):
            drive, timed = _with_timestamps(self._drive(drive_id), pairs, frame_rate)
            drives.append(drive)
            frames.extend(timed)
        dataset = Dataset(
            name=name,
            label_schema=self._schema,
            drives=tuple(drives),
            frames=tuple(sorted(frames, key=lambda frame: (frame.drive, frame.index, frame.id))),
            labels=tuple(self._labels),
            simulated=any(drive.simulated for drive in drives),
        )
        names = {frame.id: source.name for frame, source in self._frames.values()}
        return IngestResult(
            dataset,
            tuple(map(_readable, self._quarantine)),
            names,
            self._source.root,
            self._source.format,
            self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        if not self._dark:
            return self._source.notes
        images = counted(len(self._dark), "16-bit image")
        return (
            *self._source.notes,
            f"{images} with no value above {_MAX_12_BIT}, such as {self._dark[0]}: nearly black, "
            "because only the high byte of 16 bits is used; if they have 12 bits, multiply their "
            "values by 16",
        )

    def _drive(self, drive_id: str) -> Drive:
        return self._source.drives.get(drive_id) or Drive(id=drive_id)

    def _reject(self, source: SourceFrame, reason: str, detail: str) -> None:
        entry = {"file": source.name, "reason": reason, "detail": detail}
        self._quarantine.append(Quarantined.model_validate(entry))

    def _label(self, box: SourceBox, frame: Frame, *, rendered: bool) -> Label | None:
        """The label of a box; None if the schema drops its class."""
        cls = self._schema.class_of(box.name)
        if cls == DROP:
            return None
        if cls is None:
            raise _InvalidBoxError("unknown-class", f"class {box.name!r}")
        if box.track is not None and (problem := _text_problem(box.track)):
            raise _InvalidBoxError("mislabelled", f"its track {problem}")
        return Label(
            frame=frame.id,
            cls=ANY_CLASS if cls == IGNORE else cls,
            box=_pixel_box(box, frame),
            origin=Origin.RENDERED if rendered else Origin.IMPORTED,
            annotator=f"import:{self._source.format}",
            occluded=box.occluded,
            truncated=box.truncated,
            ignore=box.ignore or cls == IGNORE,
            track=box.track,
        )


class _InvalidBoxError(Exception):
    """A box that is no label; ``reason`` is one of `Quarantined`'s."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _frame_problem(source: SourceFrame) -> str | None:
    """Why a frame cannot be recorded as its source describes it."""
    for what, text in [("drive", source.drive), *(("event", event) for event in source.events)]:
        if problem := _text_problem(text):
            return f"its {what} {problem}"
    numbers = {"index": source.index, "timestamp_us": source.timestamp_us or 0}
    for what, number in numbers.items():
        if abs(number) >= 2**53:  # more than a record can hold
            return f"its {what} is too large"
    if not source.name.isprintable() and _readable_text(source.name) != source.name:
        return "its file name is not text in UTF-8: rename it"
    return None


def _text_problem(text: str) -> str | None:
    if len(text) > _MAX_NAME:
        return f"is a name of {len(text):,} characters; the limit is {_MAX_NAME}"
    if not text.isprintable():
        return f"has characters that cannot be shown: {_readable_text(text)!r}"
    return None


def _readable_text(text: str) -> str:
    """``text`` with bytes that are no UTF-8 as escapes, cut to a length that people read."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MAX_DETAIL else f"{text[: _MAX_DETAIL - 1]}…"


def _readable(entry: Quarantined) -> Quarantined:
    texts = {"file": _readable_text(entry.file), "detail": _readable_text(entry.detail)}
    return entry.model_copy(update=texts)


def _pixel_box(source: SourceBox, frame: Frame) -> Box:
    """The box in pixels, clipped to the image."""
    corners = source.corners
    if not all(math.isfinite(value) for value in corners):
        raise _InvalidBoxError("degenerate", f"coordinates are not numbers: {corners}")
    if source.normalised:
        x0, y0, x1, y1 = corners
        corners = (x0 * frame.width, y0 * frame.height, x1 * frame.width, y1 * frame.height)
    x0, y0, x1, y1 = corners
    text = "box " + ", ".join(f"{value:.1f}" for value in corners)
    if x1 <= x0 or y1 <= y0:
        raise _InvalidBoxError("degenerate", f"no area: {text}")
    dx = max(_EDGE_TOLERANCE_PX, _EDGE_TOLERANCE_SHARE * frame.width)
    dy = max(_EDGE_TOLERANCE_PX, _EDGE_TOLERANCE_SHARE * frame.height)
    if x0 < -dx or y0 < -dy or x1 > frame.width + dx or y1 > frame.height + dy:
        size = f"{frame.width}x{frame.height}"
        raise _InvalidBoxError("out-of-bounds", f"{text} in an image of {size}")
    x0, y0 = max(x0, 0.0), max(y0, 0.0)
    x1, y1 = min(x1, float(frame.width)), min(y1, float(frame.height))
    if x1 - x0 < _MIN_SIDE_PX or y1 - y0 < _MIN_SIDE_PX:
        raise _InvalidBoxError("degenerate", f"a side below {_MIN_SIDE_PX:g} px: {text}")
    return Box(x=x0, y=y0, w=x1 - x0, h=y1 - y0)


def _with_timestamps(
    drive: Drive, pairs: list[tuple[Frame, SourceFrame]], frame_rate: float
) -> tuple[Drive, list[Frame]]:
    """Frames with timestamps from frame numbers, if the drive has these and no timestamps."""
    frames = [frame for frame, _ in pairs]
    clocks = {source.clock for _, source in pairs}
    if None not in clocks and drive.time_source == UNKNOWN:
        units = ", ".join(sorted(filter(None, clocks)))
        return drive.model_copy(update={"time_source": f"time in the file name ({units})"}), frames
    if any(frame.timestamp_us is not None for frame in frames):
        return drive, frames
    if any(source.counter is None for _, source in pairs) or drive.id == UNKNOWN:
        return drive, frames
    time_source = f"frame number at {frame_rate:g} Hz (assumed)"
    timed = [
        frame.model_copy(update={"timestamp_us": round(source.counter * 1e6 / frame_rate)})
        for frame, source in pairs
        if source.counter is not None
    ]
    return drive.model_copy(update={"time_source": time_source}), timed
