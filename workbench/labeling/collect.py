"""Collect: what labelers submitted becomes a label set, once every frame has its answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.labeling import agreement, config, ledger
from workbench.labeling.origins import to_labels
from workbench.labeling.progress import BatchStatus, FrameAnswers, Look, Mend, Tally, look
from workbench.labeling.server import LabelStudio
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref, Row
from workbench.records.frames import Label
from workbench.records.store import Store
from workbench.records.types import LabelSet
from workbench.workspace import Workspace

__all__ = ["BatchStatus", "Mend", "collect", "status"]


def status(place: Workspace, server: LabelStudio, batch_ref: Ref) -> BatchStatus:
    """How far labelers are with a batch. Reads only.

    Raises:
        ParameterError: The batch is not on this server.
    """
    with ledger.locked(place, batch_ref):
        return look(place, server, batch_ref).status()[0]


def collect(
    place: Workspace,
    server: LabelStudio,
    batch_ref: Ref,
    *,
    refresh: bool = False,
    without_deleted: bool = False,
) -> Ref:
    """The label set of a complete batch.

    Every annotation of every labeler is kept, with its origin; predictions that nobody submitted
    are not labels. Answers that cannot be used go back to their labelers: the task says why above
    the image. Once collected, the same record is given again, even if the server is gone; with
    ``refresh`` what labelers changed since makes a new one.

    Args:
        without_deleted: Go on without frames whose task somebody deleted.

    Raises:
        Waiting: Frames still need labelers, answers have to be mended, or somebody has to decide
            about deleted frames.
        ParameterError: The batch is not on this server.
    """
    store = Store(place)
    with ledger.locked(place, batch_ref):
        entry = ledger.read(place, batch_ref)
        if entry and entry.collected and store.exists(entry.collected) and not refresh:
            return entry.collected
        seen = look(place, server, batch_ref)
        if entry and entry.collected and entry.collected == seen.collected:
            return entry.collected
        with tempfile.TemporaryDirectory() as folder:
            with _Files(Path(folder), seen) as files:
                state, tally = seen.status(files.add)
            _tell_labelers(server, files.notes)
            going_without = state.deleted if without_deleted else ()
            if state.done + len(going_without) < state.total:
                raise state.waiting()
            collected = _keep(store, files, tally, going_without)
        ledger.write(
            place,
            ledger.Entry(
                batch=batch_ref,
                project=seen.project.id,
                title=seen.project.title,
                complete=True,
                collected=collected,
            ),
        )
        seen.remember(collected)
    return collected


@dataclass(frozen=True)
class _Note:
    task: int
    data: dict[str, Any]


class _Files:
    """The payload of a label set, written while its frames pass by; nothing of it stays in memory.

    ``notes`` are what labelers have to be told, or need no longer be told.
    """

    NAMES = ("labels.jsonl", "answers.jsonl", "annotations.jsonl")

    def __init__(self, folder: Path, seen: Look) -> None:
        self.paths = {name: folder / name for name in self.NAMES}
        self.ref, self.batch = seen.contents.ref, seen.contents.batch
        self.labels = 0
        self.several: dict[Digest, dict[str, tuple[Label, ...]]] = {}
        self.notes: list[_Note] = []

    def __enter__(self) -> _Files:
        self._open = {name: path.open("wb") for name, path in self.paths.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def add(self, frame: FrameAnswers) -> None:
        start: Literal["model", "people"] = "model" if self.batch.model else "people"
        by_person = {
            answer.annotator: to_labels(answer, frame.started_from, self.ref, start)
            for answer in frame.answers
            if not answer.skipped
        }
        self.labels += self._write(
            "labels.jsonl", (label for theirs in by_person.values() for label in theirs)
        )
        self._write("answers.jsonl", frame.rows)
        self._write("annotations.jsonl", frame.annotations)
        if len(by_person) > 1:
            self.several[frame.held.frame] = by_person
        note = "; ".join(f"{mend.annotator}: {mend.why}" for mend in frame.to_mend)
        if frame.held.data.get(config.NOTE, "") != note:
            self.notes.append(_Note(frame.held.task, {**frame.held.data, config.NOTE: note}))

    def _write(self, name: str, rows: Iterable[Row]) -> int:
        """Rows of one frame, sorted, so that equal content is equal bytes; how many."""
        lines = sorted(datasets.lines(rows).splitlines(keepends=True))
        self._open[name].writelines(lines)
        return len(lines)


def _tell_labelers(server: LabelStudio, notes: Sequence[_Note]) -> None:
    """Write above the image what has to be mended, and take away what has been."""
    for note in notes:
        server.set_note(note.task, note.data)


def _keep(store: Store, files: _Files, tally: Tally, deleted: tuple[Digest, ...]) -> Ref:
    people = tally.people.annotators()
    record = LabelSet(
        batch=files.ref,
        annotators=people,
        labels=files.labels,
        skipped=tuple(tally.skipped),
        agreement=agreement.measure(files.several),
        simulated=any(person.simulated for person in people),
        deleted=deleted,
    )
    return store.put(record, files.paths)
