"""Read a source folder into checked frames and labels.

A dataset depends on the content of the files and on what the annotations say: not on the machine,
the path of the source, the order of its files or the number of workers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import Workspace
from workbench.data import readers
from workbench.data.images import RejectedImage, StoredImage, store_images
from workbench.data.schema import DROP, FRONT_CAMERA, IGNORE
from workbench.data.source import Source, SourceBox, SourceFrame
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
from workbench.records.store import Store
from workbench.records.types import Quarantined

EDGE_TOLERANCE_PX = 1.0
EDGE_TOLERANCE_SHARE = 0.005
"""A box may stand over the image's edge by one pixel or 0.5 % of that side, whichever is more.

Conventions differ by a pixel and tools round; such a box is cut at the edge. One that stands over
further belongs to another image, scale or convention, and is quarantined.
"""

MIN_SIDE_PX = 1.0
"""A side below one pixel is no observation."""


@dataclass(frozen=True)
class LabelRules:
    schema: LabelSchema
    annotator: str
    rendered: bool = False


def check_labels(
    frame: Frame, found: SourceFrame, rules: LabelRules
) -> tuple[list[Label], list[Quarantined]]:
    """The labels of a frame that hold, and those that do not with the reason for each."""
    labels: dict[tuple[str, Box], Label] = {}
    bad: list[Quarantined] = []
    for source in found.boxes:
        said = _check_box(source, frame, rules)
        if isinstance(said, Label):
            if (said.cls, said.box) in labels:
                bad.append(
                    _quarantine_label(found, source, "duplicate", f"{said.cls} with this box again")
                )
            else:
                labels[said.cls, said.box] = said
        elif said is not None:
            bad.append(_quarantine_label(found, source, *said))
    return list(labels.values()), bad


def _check_box(
    source: SourceBox, frame: Frame, rules: LabelRules
) -> Label | tuple[str, str] | None:
    """A label, or the reason and detail against it, or None when it is to be dropped."""
    cls = rules.schema.class_of(source.name)
    if cls == DROP:
        return None
    if cls is None:
        return "unknown-class", f"class {source.name!r}"
    box = _pixel_box(source, frame)
    if not isinstance(box, Box):
        return box
    return Label(
        frame=frame.id,
        cls=ANY_CLASS if cls == IGNORE else cls,
        box=box,
        origin=Origin.RENDERED if rules.rendered else Origin.IMPORTED,
        annotator=rules.annotator,
        occluded=source.occluded,
        truncated=source.truncated,
        ignore=source.ignore or cls == IGNORE,
        track=source.track,
    )


def _pixel_box(source: SourceBox, frame: Frame) -> Box | tuple[str, str]:
    """The box in pixels, cut at the edge, or the reason and detail against it."""
    corners = source.corners
    if not all(math.isfinite(value) for value in corners):
        return "degenerate", f"coordinates are not numbers: {corners}"
    if source.normalised:
        x0, y0, x1, y1 = corners
        corners = (x0 * frame.width, y0 * frame.height, x1 * frame.width, y1 * frame.height)
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        return "degenerate", f"no area: {_box_text(corners)}"
    over = _out_of_bounds(corners, frame)
    if over is not None:
        return "out-of-bounds", over
    x0, y0 = max(corners[0], 0.0), max(corners[1], 0.0)
    x1, y1 = min(corners[2], float(frame.width)), min(corners[3], float(frame.height))
    if x1 - x0 < MIN_SIDE_PX or y1 - y0 < MIN_SIDE_PX:
        return "degenerate", f"a side below {MIN_SIDE_PX:g} px: {_box_text(corners)}"
    return Box(x=x0, y=y0, w=x1 - x0, h=y1 - y0)


def _out_of_bounds(corners: tuple[float, ...], frame: Frame) -> str | None:
    x0, y0, x1, y1 = corners
    wide = max(EDGE_TOLERANCE_PX, EDGE_TOLERANCE_SHARE * frame.width)
    high = max(EDGE_TOLERANCE_PX, EDGE_TOLERANCE_SHARE * frame.height)
    if x0 >= -wide and y0 >= -high and x1 <= frame.width + wide and y1 <= frame.height + high:
        return None
    return f"{_box_text(corners)} in an image of {frame.width}x{frame.height}"


def _box_text(corners: tuple[float, ...]) -> str:
    return "box " + ", ".join(f"{value:.1f}" for value in corners)


def _quarantine_label(
    found: SourceFrame, source: SourceBox, reason: str, detail: str
) -> Quarantined:
    return Quarantined.model_validate(
        {"file": found.name, "reason": reason, "detail": f"{source.detail}: {detail}"}
    )


# ---- From a source folder to checked frames and labels: the one way in.
#
# A dataset depends on the content of the files and on what the annotations say: not on the machine,
# the path of the source, the order of its files or the number of workers.


Progress = Callable[[int, int], None]
_ImageResult = StoredImage | RejectedImage

_CHUNK_SIZE = 16
_MIN_FRAMES_FOR_PROCESSES = 64
_DATASET_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


@dataclass(frozen=True)
class IngestResult:
    """What became of a source.

    ``dataset`` is not saved yet and has no roles; ``sources`` maps a frame to its file name in
    the source.
    """

    dataset: Dataset
    quarantine: tuple[Quarantined, ...]
    sources: dict[Digest, str]
    format: str = UNKNOWN

    def save(self, store: Store, dataset: Dataset | None = None) -> Ref:
        """Keep it, or ``dataset`` made from it, as a dataset version with its quarantine."""
        return save_dataset(
            store,
            dataset or self.dataset,
            made_by="ingest",
            quarantine=self.quarantine,
            sources=self.sources,
        )


def ingest(
    workspace: Workspace,
    source: Path,
    *,
    name: str,
    format: str = "auto",  # noqa: A002 - the word users know
    schema: LabelSchema = FRONT_CAMERA,
    frame_rate: float = 30.0,
    workers: int = 2,
    progress: Progress | None = None,
) -> IngestResult:
    """Read ``source``, check every image and label, and copy good images into the workspace.

    One bad input never stops the rest: it is quarantined with its file and the reason. A bad
    label leaves its frame in; an image that does not fit its annotation goes with its labels.

    Args:
        name: What the dataset will be called.
        format: ``auto`` or a format in ``readers.READERS``.
        frame_rate: Hertz, for drives that have frame numbers but no clock. It is recorded as an
            assumption.
        workers: Processes that decode; 1 decodes in this one.
        progress: Called with images done and in all.

    Raises:
        ParameterError: An argument that cannot be meant.
        DataError: Nothing in the source can be used.
    """
    if not _DATASET_NAME.match(name):
        raise ParameterError(
            "not a dataset name", where=name, hint="Use letters, digits, dot, dash and underscore"
        )
    if workers < 1 or not frame_rate > 0:
        raise ParameterError(
            "workers and frame rate must be positive", where=f"{workers}, {frame_rate}"
        )
    found = readers.read_source(source, format)
    ordered = sorted(found.frames, key=lambda frame: (frame.drive, frame.index, frame.name))
    verdicts = _store_all(workspace, ordered, workers, progress)
    building = _DatasetBuilder(found, schema)
    for frame, verdict in zip(ordered, verdicts, strict=True):
        building.add(frame, verdict)
    result = building.finish(name, frame_rate)
    return replace(result, dataset=replace(result.dataset, workspace=workspace))


def _store_all(
    workspace: Workspace, frames: list[SourceFrame], workers: int, progress: Progress | None
) -> Iterator[_ImageResult]:
    """Verdicts in the order of ``frames``; memory does not grow with their number."""
    chunks = [frames[start : start + _CHUNK_SIZE] for start in range(0, len(frames), _CHUNK_SIZE)]
    work = [[(str(frame.file), frame.size) for frame in chunk] for chunk in chunks]
    media = str(workspace.media)
    done = 0
    if workers == 1 or len(frames) < _MIN_FRAMES_FOR_PROCESSES:
        results: Iterator[list[_ImageResult]] = (store_images(chunk, media) for chunk in work)
    else:
        results = _store_in_processes(work, media, workers)
    for verdicts in results:
        done += len(verdicts)
        if progress is not None:
            progress(done, len(frames))
        yield from verdicts


def _store_in_processes(
    work: list[list[tuple[str, tuple[int, int] | None]]], media: str, workers: int
) -> Iterator[list[_ImageResult]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from workbench.core.processes import die_with_pool_owner

    # A forked child of a threaded parent (a notebook kernel) may hang; a fresh server cannot.
    context = multiprocessing.get_context("forkserver")
    # Imported once by the server instead of once by each worker.
    context.set_forkserver_preload(["workbench.data.images"])
    try:
        with ProcessPoolExecutor(workers, context, initializer=die_with_pool_owner) as pool:
            yield from pool.map(store_images, work, [media] * len(work))
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images died",
            hint="Out of memory, an image that crashes its decoder (find it with --workers 1), or "
            "a script that calls this without `if __name__ == '__main__':`",
        ) from error


class _DatasetBuilder:
    """Collects what held, and what did not."""

    def __init__(self, source: Source, schema: LabelSchema) -> None:
        self._source = source
        self._schema = schema
        self._frames: dict[Digest, tuple[Frame, SourceFrame]] = {}
        self._labels: list[Label] = []
        self._quarantine: list[Quarantined] = list(source.problems)

    def add(self, found: SourceFrame, verdict: _ImageResult) -> None:
        if isinstance(verdict, RejectedImage):
            entry = {"file": found.name, "reason": verdict.reason, "detail": verdict.detail}
            self._quarantine.append(Quarantined.model_validate(entry))
            return
        if verdict.id in self._frames:
            detail = f"the same bytes as {self._frames[verdict.id][1].name}"
            entry = {"file": found.name, "reason": "duplicate", "detail": detail}
            self._quarantine.append(Quarantined.model_validate(entry))
            return
        frame = Frame(
            id=verdict.id,
            drive=found.drive,
            index=found.index,
            timestamp_us=found.timestamp_us,
            width=verdict.width,
            height=verdict.height,
            suffix=verdict.suffix,
            conditions=found.conditions,
            events=found.events,
            position=verdict.position,
        )
        self._frames[frame.id] = (frame, found)
        rules = LabelRules(
            schema=self._schema,
            annotator=f"import:{self._source.format}",
            rendered=self._drive(found.drive).simulated,
        )
        labels, bad = check_labels(frame, found, rules)
        self._labels.extend(labels)
        self._quarantine.extend(bad)

    def finish(self, name: str, frame_rate: float) -> IngestResult:
        if not self._frames:
            reasons = sorted({entry.reason for entry in self._quarantine})
            raise DataError(
                f"not one frame can be used ({', '.join(reasons)})",
                where=self._source.root,
                hint=f"The first: {self._quarantine[0].file}: {self._quarantine[0].detail}",
            )
        drives: list[Drive] = []
        frames: list[Frame] = []
        for drive_id in sorted({frame.drive for frame, _ in self._frames.values()}):
            pairs = [pair for pair in self._frames.values() if pair[0].drive == drive_id]
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
        names = {frame.id: found.name for frame, found in self._frames.values()}
        return IngestResult(dataset, tuple(self._quarantine), names, self._source.format)

    def _drive(self, drive_id: str) -> Drive:
        return self._source.drives.get(drive_id) or Drive(id=drive_id)


def _with_timestamps(
    drive: Drive, pairs: list[tuple[Frame, SourceFrame]], frame_rate: float
) -> tuple[Drive, list[Frame]]:
    """Frames with times counted from frame numbers, where a drive has those and no clock."""
    frames = [frame for frame, _ in pairs]
    if any(frame.timestamp_us is not None for frame in frames):
        return drive, frames
    if any(found.counter is None for _, found in pairs) or drive.id == UNKNOWN:
        return drive, frames
    source = f"frame number at {frame_rate:g} Hz (assumed)"
    timed = [
        frame.model_copy(update={"timestamp_us": round(found.counter * 1e6 / frame_rate)})
        for frame, found in pairs
        if found.counter is not None
    ]
    return drive.model_copy(update={"time_source": source}), timed
