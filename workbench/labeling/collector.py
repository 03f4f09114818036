"""Status of a batch on the server, and collecting its answers as a label set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from workbench.core.errors import ParameterError, Waiting
from workbench.core.workspace import Workspace
from workbench.labeling import agreement, label_config, projects, sync
from workbench.labeling.answers import (
    AnnotationRow,
    AnnotatorTally,
    Answer,
    AnswerRow,
    answer_row,
    is_replay,
    labelers_needed,
    read_task_answers,
    to_labels,
)
from workbench.labeling.batches import BatchContents
from workbench.labeling.review import disputed_labelers
from workbench.labeling.server import LabelStudio, Project
from workbench.labeling.sync import CachedFrame
from workbench.records import dataset
from workbench.records.base import Digest, FrozenModel, Ref
from workbench.records.frames import Label
from workbench.records.store import Store
from workbench.records.types import Annotator, LabelSet, Prediction


@dataclass(frozen=True)
class InvalidAnswer:
    """A submitted answer that cannot be used: which frame, whose, why, and where to mend it."""

    frame: Digest
    annotator: str
    url: str
    why: str


@dataclass(frozen=True)
class BatchStatus:
    """How far a batch is. A frame is done when enough labelers left a usable answer or a skip.

    ``drafts`` are answers begun and not submitted: nobody's yet. ``deleted`` frames had a task
    once, and somebody deleted it; ``unsent`` frames never had one.
    """

    batch: Ref
    project: int
    url: str
    total: int
    done: int
    skipped: int
    annotators: tuple[Annotator, ...]
    to_mend: tuple[InvalidAnswer, ...] = ()
    drafts: int = 0
    comments: int = 0
    deleted: tuple[Digest, ...] = ()
    unsent: int = 0
    collected: Ref | None = None

    @property
    def complete(self) -> bool:
        return self.done == self.total

    def waiting(self) -> Waiting:
        """What people have to do before the batch can be collected."""
        counted = f"{self.done} of {self.total} frames are labeled"
        if self.deleted:
            return Waiting(
                f"{counted}; {len(self.deleted)} were deleted from the project",
                where=self.url,
                hint="Decide: `workbench label send` brings them back,"
                " `workbench label collect --without-deleted` goes on without them",
            )
        if self.unsent:
            return Waiting(
                f"{counted}; {self.unsent} were never sent",
                where=self.url,
                hint=f"Send the rest with `workbench label send {self.batch}`",
            )
        if self.to_mend:
            first = self.to_mend[0]
            return Waiting(
                f"{counted}; {len(self.to_mend)} answers have to be mended first",
                where=first.url,
                hint=f"There, {first.annotator}: {first.why}",
            )
        return Waiting(counted, where=self.url, hint="Label the others there, then run this again")


@dataclass(frozen=True)
class FrameAnswers:
    """All that labelers left of one frame. ``annotations`` are as the server keeps them.

    ``started_from`` are the boxes that were sent for it, by name.
    """

    held: CachedFrame
    answers: list[Answer]
    annotations: list[AnnotationRow]
    rows: list[AnswerRow]
    to_mend: list[InvalidAnswer]
    started_from: dict[str, Prediction]


@dataclass
class _StatusTally:
    """Counts over a batch's frames while they pass by."""

    seen: set[Digest] = field(default_factory=set)
    done: int = 0
    skipped: list[Digest] = field(default_factory=list)
    people: AnnotatorTally = field(default_factory=AnnotatorTally)
    comments: int = 0
    to_mend: list[InvalidAnswer] = field(default_factory=list)
    drafts: int = 0

    def add(self, frame: FrameAnswers, needed: int) -> None:
        self.seen.add(frame.held.frame)
        for row in frame.rows:
            self.people.add(row)
            self.comments += row.comment is not None
        self.to_mend += frame.to_mend
        self.drafts += frame.held.drafts
        # A frame with something to mend is not done, even where another's answer would do.
        self.done += len(frame.answers) >= needed and not frame.to_mend
        if frame.answers and all(answer.skipped for answer in frame.answers):
            self.skipped.append(frame.held.frame)


class BatchView:
    """One look at a batch on its server, fetched into the mirror. Made by `look`."""

    def __init__(
        self, place: Workspace, contents: BatchContents, project: Project, server: LabelStudio
    ) -> None:
        self.contents = contents
        self.project = project
        self._place = place
        self._server = server
        self._may_not_settle = disputed_labelers(contents.store, contents.batch)
        self._least_s = {
            need.frame: need.least_s for need in contents.batch.needs if need.least_s is not None
        }

    @property
    def collected(self) -> Ref | None:
        """The label set that was made of exactly what is there now."""
        with sync.open_cache(self._place, self.project.id, self.contents.ref) as kept:
            return kept.collected

    def remember(self, labelset: Ref) -> None:
        """That this label set was made of what is there now."""
        with sync.open_cache(self._place, self.project.id, self.contents.ref) as kept:
            kept.collected = labelset

    def frames(self) -> Iterator[FrameAnswers]:
        """Every frame that the server holds, in order of their digests."""
        batch, people = self.contents.batch, self._server.users()
        with sync.open_cache(self._place, self.project.id, self.contents.ref) as kept:
            for held in kept.frames():
                frame = self.contents.frame(held.frame)
                answers, annotations = read_task_answers(
                    held.annotations, held.task, frame, batch.label_schema, people
                )
                sent = self.contents.started_by_name(held.frame)
                rows = [answer_row(answer, sent) for answer in answers]
                mends = [mend for answer in answers for mend in self._mends(answer)]
                yield FrameAnswers(held, answers, annotations, rows, mends, sent)

    def status(
        self, visit: Callable[[FrameAnswers], None] | None = None
    ) -> tuple[BatchStatus, _StatusTally]:
        """How far the batch is; ``visit`` is shown every frame on the way."""
        needed = labelers_needed(self.contents.batch)
        tally = _StatusTally()
        for frame in self.frames():
            tally.add(frame, needed[frame.held.frame])
            if visit:
                visit(frame)
        entry = sync.read_entry(self._place, self.contents.ref)
        gone = tuple(sorted(needed.keys() - tally.seen))
        was_there = entry is not None and entry.complete
        state = BatchStatus(
            batch=self.contents.ref,
            project=self.project.id,
            url=self.project.url,
            total=len(needed),
            done=tally.done,
            skipped=len(tally.skipped),
            annotators=tally.people.annotators(),
            to_mend=tuple(tally.to_mend),
            drafts=tally.drafts,
            comments=tally.comments,
            deleted=gone if was_there else (),
            unsent=0 if was_there else len(gone),
            collected=entry.collected if entry else None,
        )
        return state, tally

    def _mends(self, answer: Answer) -> Iterator[InvalidAnswer]:
        url = f"{self.project.url}?task={answer.task}"
        for refused in answer.refused:
            yield InvalidAnswer(answer.frame, answer.annotator, url, refused.detail)
        theirs = self._may_not_settle.get(answer.frame, ())
        if answer.annotator in theirs and not is_replay(answer.annotator):
            why = "your own boxes are in dispute here; delete this answer and leave it to another"
            yield InvalidAnswer(answer.frame, answer.annotator, url, why)
        least = self._least_s.get(answer.frame)
        seconds = None if answer.minutes is None else answer.minutes * 60
        if least is not None and seconds is not None and seconds < least:
            why = f"looked at for {seconds:.0f} s; this frame needs {least:.0f} s or more"
            yield InvalidAnswer(answer.frame, answer.annotator, url, why)


def fetch_batch(place: Workspace, server: LabelStudio, batch_ref: Ref) -> BatchView:
    """Fetch what changed in a batch since the last look.

    Raises:
        ParameterError: The batch is not on this server.
    """
    project = projects.find_project(place, server, batch_ref)
    if project is None:
        sent_before = sync.read_entry(place, batch_ref) is not None
        what = "the project of this batch was deleted" if sent_before else "it was never sent"
        raise ParameterError(
            f"this batch is not on the server: {what}",
            where=server.url,
            hint=f"Send it with `workbench label send {batch_ref}`;"
            " answers that were not collected are lost with a project"
            if sent_before
            else f"Send it with `workbench label send {batch_ref}`",
        )
    contents = BatchContents(Store(place), batch_ref)
    with sync.open_cache(place, project.id, batch_ref) as kept:
        kept.refresh(server)
    return BatchView(place, contents, project, server)


# ---- Collect: what labelers submitted becomes a label set, once every frame has its answers.


def batch_status(place: Workspace, server: LabelStudio, batch_ref: Ref) -> BatchStatus:
    """How far labelers are with a batch. Reads only.

    Raises:
        ParameterError: The batch is not on this server.
    """
    with sync.batch_lock(place, batch_ref):
        return fetch_batch(place, server, batch_ref).status()[0]


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
    with sync.batch_lock(place, batch_ref):
        entry = sync.read_entry(place, batch_ref)
        if entry and entry.collected and store.exists(entry.collected) and not refresh:
            return entry.collected
        seen = fetch_batch(place, server, batch_ref)
        if entry and entry.collected and entry.collected == seen.collected:
            return entry.collected
        with tempfile.TemporaryDirectory() as folder:
            with _LabelSetFiles(Path(folder), seen) as files:
                state, tally = seen.status(files.add)
            _update_task_notes(server, files.notes)
            going_without = state.deleted if without_deleted else ()
            if state.done + len(going_without) < state.total:
                raise state.waiting()
            collected = _save_label_set(store, files, tally, going_without)
        sync.write_entry(
            place,
            sync.IndexEntry(
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
class _TaskNote:
    task: int
    data: dict[str, Any]


class _LabelSetFiles:
    """The payload of a label set, written while its frames pass by; nothing of it stays in memory.

    ``notes`` are what labelers have to be told, or need no longer be told.
    """

    NAMES = ("labels.jsonl", "answers.jsonl", "annotations.jsonl")

    def __init__(self, folder: Path, seen: BatchView) -> None:
        self.paths = {name: folder / name for name in self.NAMES}
        self.ref, self.batch = seen.contents.ref, seen.contents.batch
        self.labels = 0
        self.several: dict[Digest, dict[str, tuple[Label, ...]]] = {}
        self.notes: list[_TaskNote] = []

    def __enter__(self) -> _LabelSetFiles:
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
        if frame.held.data.get(label_config.NOTE, "") != note:
            self.notes.append(
                _TaskNote(frame.held.task, {**frame.held.data, label_config.NOTE: note})
            )

    def _write(self, name: str, rows: Iterable[FrozenModel]) -> int:
        """Rows of one frame, sorted, so that equal content is equal bytes; how many."""
        lines = sorted(dataset.to_json_lines(rows).splitlines(keepends=True))
        self._open[name].writelines(lines)
        return len(lines)


def _update_task_notes(server: LabelStudio, notes: Sequence[_TaskNote]) -> None:
    """Write above the image what has to be mended, and take away what has been."""
    for note in notes:
        server.set_note(note.task, note.data)


def _save_label_set(
    store: Store, files: _LabelSetFiles, tally: _StatusTally, deleted: tuple[Digest, ...]
) -> Ref:
    people = tally.people.annotators()
    record = LabelSet(
        batch=files.ref,
        annotators=people,
        labels=files.labels,
        skipped=tuple(tally.skipped),
        agreement=agreement.measure_agreement(files.several),
        simulated=any(person.simulated for person in people),
        deleted=deleted,
    )
    return store.put(record, files.paths)


__all__ = ["BatchStatus", "InvalidAnswer", "batch_status", "collect"]
