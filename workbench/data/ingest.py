"""From a source folder to checked frames and labels: the one way in.

A dataset depends on the content of the files and on what the annotations say: not on the machine,
the path of the source, the order of its files or the number of workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.data import checks, readers
from workbench.data.pictures import Picture, Refused, admit_many
from workbench.data.schema import FRONT_CAMERA
from workbench.data.source import Source, SourceFrame
from workbench.errors import DataError, ParameterError
from workbench.records.base import Digest, Ref
from workbench.records.dataset import Dataset, save
from workbench.records.frames import UNKNOWN, Drive, Frame, Label, LabelSchema
from workbench.records.store import Store
from workbench.records.types import Quarantined
from workbench.workspace import Workspace

Progress = Callable[[int, int], None]
Verdict = Picture | Refused

_CHUNK = 16
_WORTH_PROCESSES = 64
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


@dataclass(frozen=True)
class Ingested:
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
        return save(
            store,
            dataset or self.dataset,
            made_by="ingest",
            quarantine=self.quarantine,
            sources=self.sources,
        )


def ingest(
    place: Workspace,
    source: Path,
    *,
    name: str,
    format: str = "auto",  # noqa: A002 - the word users know
    schema: LabelSchema = FRONT_CAMERA,
    frame_rate: float = 30.0,
    workers: int = 2,
    progress: Progress | None = None,
) -> Ingested:
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
    if not _NAME.match(name):
        raise ParameterError(
            "not a dataset name", where=name, hint="Use letters, digits, dot, dash and underscore"
        )
    if workers < 1 or not frame_rate > 0:
        raise ParameterError(
            "workers and frame rate must be positive", where=f"{workers}, {frame_rate}"
        )
    found = readers.read(source, format)
    ordered = sorted(found.frames, key=lambda frame: (frame.drive, frame.index, frame.name))
    verdicts = _admit(place, ordered, workers, progress)
    building = _Building(found, schema)
    for frame, verdict in zip(ordered, verdicts, strict=True):
        building.add(frame, verdict)
    return building.finish(name, frame_rate)


def _admit(
    place: Workspace, frames: list[SourceFrame], workers: int, progress: Progress | None
) -> Iterator[Verdict]:
    """Verdicts in the order of ``frames``; memory does not grow with their number."""
    chunks = [frames[start : start + _CHUNK] for start in range(0, len(frames), _CHUNK)]
    work = [[(str(frame.file), frame.size) for frame in chunk] for chunk in chunks]
    media = str(place.media)
    done = 0
    if workers == 1 or len(frames) < _WORTH_PROCESSES:
        results: Iterator[list[Verdict]] = (admit_many(chunk, media) for chunk in work)
    else:
        results = _in_processes(work, media, workers)
    for verdicts in results:
        done += len(verdicts)
        if progress is not None:
            progress(done, len(frames))
        yield from verdicts


def _in_processes(
    work: list[list[tuple[str, tuple[int, int] | None]]], media: str, workers: int
) -> Iterator[list[Verdict]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from workbench.processes import die_with_starter

    # A forked child of a threaded parent (a notebook kernel) may hang; a fresh server cannot.
    context = multiprocessing.get_context("forkserver")
    # Imported once by the server instead of once by each worker.
    context.set_forkserver_preload(["workbench.data.pictures"])
    try:
        with ProcessPoolExecutor(workers, context, initializer=die_with_starter) as pool:
            yield from pool.map(admit_many, work, [media] * len(work))
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images died",
            hint="Out of memory, an image that crashes its decoder (find it with --workers 1), or "
            "a script that calls this without `if __name__ == '__main__':`",
        ) from error


class _Building:
    """Collects what held, and what did not."""

    def __init__(self, source: Source, schema: LabelSchema) -> None:
        self._source = source
        self._schema = schema
        self._frames: dict[Digest, tuple[Frame, SourceFrame]] = {}
        self._labels: list[Label] = []
        self._quarantine: list[Quarantined] = list(source.problems)

    def add(self, found: SourceFrame, verdict: Verdict) -> None:
        if isinstance(verdict, Refused):
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
        rules = checks.Rules(
            schema=self._schema,
            annotator=f"import:{self._source.format}",
            rendered=self._drive(found.drive).simulated,
        )
        labels, bad = checks.labels_of(frame, found, rules)
        self._labels.extend(labels)
        self._quarantine.extend(bad)

    def finish(self, name: str, frame_rate: float) -> Ingested:
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
            drive, timed = _with_time(self._drive(drive_id), pairs, frame_rate)
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
        return Ingested(dataset, tuple(self._quarantine), names, self._source.format)

    def _drive(self, drive_id: str) -> Drive:
        return self._source.drives.get(drive_id) or Drive(id=drive_id)


def _with_time(
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
