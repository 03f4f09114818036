"""Status of a batch on the server, and collecting its answers as a label set."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from workbench.audit import log as audit
from workbench.core.errors import ParameterError, Waiting
from workbench.core.keyring import signing_key
from workbench.core.signatures import sign_reference
from workbench.core.text import counted, short_repr
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.labeling import label_config, projects, sync
from workbench.labeling.agreement import measure_agreement
from workbench.labeling.answers import (
    AnnotationRow,
    AnnotatorTally,
    Answer,
    AnswerRow,
    answer_row,
    is_replay,
    labelers_needed,
    parse_answers,
    to_labels,
)
from workbench.labeling.batches import BatchContents
from workbench.labeling.review import disputed_labelers
from workbench.labeling.server import LabelStudio, Project
from workbench.labeling.sync import CachedFrame
from workbench.records import dataset
from workbench.records.base import Digest, FrozenModel, Ref, short_ref
from workbench.records.frames import Label
from workbench.records.store import Store
from workbench.records.types import LABEL_SET_PURPOSE, Annotator, LabelSet, Prediction

__all__ = ["BatchStatus", "InvalidAnswer", "batch_status", "collect"]


@dataclass(frozen=True)
class InvalidAnswer:
    """A submitted answer that its labeler has to correct.

    Attributes:
        url: The task in Label Studio.
        why: What is wrong.
    """

    frame: Digest
    annotator: str
    url: str
    why: str


@short_repr
@dataclass(frozen=True)
class BatchStatus:
    """Progress of a batch. A frame is done when enough labelers left a valid answer or a skip.

    Attributes:
        project: Label Studio's project id.
        total, done, skipped: Number of frames.
        invalid: Answers that have to be corrected.
        drafts: Number of answers that were started and not submitted.
        comments: Number of answers with a comment.
        deleted: Frames whose task somebody deleted.
        unsent: Number of frames that never had a task.
        partly: Number of frames that were answered and wait for another labeler.
        collected: Label set of the last collection.
    """

    batch: Ref
    project: int
    url: str
    total: int
    done: int
    skipped: int
    annotators: tuple[Annotator, ...]
    invalid: tuple[InvalidAnswer, ...] = ()
    drafts: int = 0
    comments: int = 0
    deleted: tuple[Digest, ...] = ()
    unsent: int = 0
    collected: Ref | None = None
    partly: int = 0

    @property
    def complete(self) -> bool:
        return self.done == self.total

    def waiting(self) -> Waiting:
        """The exception for an incomplete batch, with what people have to do next."""
        message = f"{self.done} of {counted(self.total, 'frame')} labeled"
        if self.partly:
            verb = "waits" if self.partly == 1 else "wait"
            message += f", {self.partly} {verb} for another labeler"
        if self.deleted:
            return Waiting(
                f"{message}; deleted from the project: {len(self.deleted)}",
                where=self.url,
                hint="`workbench label send` creates them again,"
                " `workbench label collect --without-deleted` collects without them",
            )
        if self.unsent:
            return Waiting(
                f"{message}; never sent: {self.unsent}",
                where=self.url,
                hint=f"Send the rest with `workbench label send {self.batch}`",
            )
        if self.invalid:
            first = self.invalid[0]
            return Waiting(
                f"{message}; answers to correct: {len(self.invalid)}",
                where=first.url,
                hint=f"For {first.annotator}: {first.why}",
            )
        if self.done + self.partly == self.total:
            return Waiting(
                message,
                where=self.url,
                hint="Let a second person label there, or collect with one answer each: "
                f"`workbench label collect {short_ref(self.batch)} --fewer-labelers`",
            )
        return Waiting(message, where=self.url, hint="Label the others there, then run this again")


def batch_status(workspace: Workspace, server: LabelStudio, batch_ref: Ref) -> BatchStatus:
    """Progress of a batch on the server. Changes nothing there.

    Raises:
        ParameterError: The batch is not on this server.
    """
    with sync.batch_lock(workspace, batch_ref):
        return fetch_batch(workspace, server, batch_ref).status()[0]


def collect(
    workspace: Workspace,
    server: LabelStudio,
    batch_ref: Ref,
    *,
    refresh: bool = False,
    without_deleted: bool = False,
    fewer_labelers: bool = False,
) -> Ref:
    """Save the answers of a complete batch as a label set.

    Every labeler's annotations are kept with their origin; predictions that nobody submitted are
    not labels. Invalid answers go back to their labelers: a note above the image says what to
    correct. A second call returns the same record, even if the server is gone.

    Args:
        refresh: Fetch again, and save a new label set if labelers changed something.
        without_deleted: Collect without frames whose task somebody deleted.
        fewer_labelers: One valid answer is enough, also where the batch asks for more labelers.

    Raises:
        Waiting: Frames lack answers, answers have to be corrected, or tasks were deleted.
        ParameterError: The batch is not on this server.
    """
    store = Store(workspace)
    with sync.batch_lock(workspace, batch_ref):
        entry = sync.read_entry(workspace, batch_ref)
        if entry and entry.collected and store.exists(entry.collected) and not refresh:
            return entry.collected
        view = fetch_batch(workspace, server, batch_ref)
        if entry and entry.collected and entry.collected == view.collected:
            return entry.collected
        with tempfile.TemporaryDirectory() as folder:
            with _LabelSetFiles(Path(folder), view) as files:
                status, tally = view.status(files.add)
            for task, data in files.notes.items():
                server.set_task_data(task, data)
            deleted = status.deleted if without_deleted else ()
            done = status.done + (status.partly if fewer_labelers else 0)
            if done + len(deleted) < status.total:
                raise status.waiting()
            record = LabelSet(
                batch=batch_ref,
                annotators=status.annotators,
                labels=files.labels,
                skipped=tuple(tally.skipped),
                agreement=measure_agreement(files.several),
                simulated=any(annotator.simulated for annotator in status.annotators),
                deleted=deleted,
            )
            collected = store.put(record, files.paths)
        signature = sign_reference(signing_key(workspace, "labels"), LABEL_SET_PURPOSE, collected)
        store.write_side(collected, "signature", signature)
        audit.append(
            workspace,
            "labelled",
            subjects=(collected, batch_ref),
            annotators=[one.id for one in record.annotators],
            labels=record.labels,
        )
        entry = sync.IndexEntry(
            batch=batch_ref,
            project=view.project.id,
            title=view.project.title,
            complete=True,
            collected=collected,
        )
        sync.write_entry(workspace, entry)
        view.set_collected(collected)
    return collected


def fetch_batch(workspace: Workspace, server: LabelStudio, batch_ref: Ref) -> _BatchView:
    """Fetch what changed in a batch since the last call.

    Raises:
        ParameterError: The batch is not on this server.
    """
    project = projects.find_project(workspace, server, batch_ref)
    if project is None:
        hint = f"Send it with `workbench label send {batch_ref}`"
        if sync.read_entry(workspace, batch_ref) is None:
            raise ParameterError("the batch was never sent", where=server.url, hint=hint)
        raise ParameterError(
            "the batch's project was deleted",
            where=server.url,
            hint=f"{hint}; answers that were not collected are lost",
        )
    with sync.open_cache(workspace, project.id, batch_ref) as cache:
        cache.refresh(server)
    return _BatchView(workspace, BatchContents(Store(workspace), batch_ref), project, server)


@dataclass(frozen=True)
class _FrameAnswers:
    """All answers to one frame.

    Attributes:
        rows: Rows of ``answers.jsonl``.
        annotations: Rows of ``annotations.jsonl``.
        predictions: Boxes that were sent for it, by region id.
    """

    cached: CachedFrame
    answers: list[Answer]
    annotations: list[AnnotationRow]
    rows: list[AnswerRow]
    invalid: list[InvalidAnswer]
    predictions: dict[str, Prediction]


@dataclass
class _StatusTally:
    """Totals over the frames of a batch."""

    seen: set[Digest] = field(default_factory=set)
    done: int = 0
    partly: int = 0
    skipped: list[Digest] = field(default_factory=list)
    people: AnnotatorTally = field(default_factory=AnnotatorTally)
    comments: int = 0
    invalid: list[InvalidAnswer] = field(default_factory=list)
    drafts: int = 0

    def add(self, frame: _FrameAnswers, needed: int) -> None:
        self.seen.add(frame.cached.frame)
        for row in frame.rows:
            self.people.add(row)
            self.comments += row.comment is not None
        self.invalid += frame.invalid
        self.drafts += frame.cached.drafts
        # With an invalid answer a frame is not done, even if the other answers are enough.
        self.done += len(frame.answers) >= needed and not frame.invalid
        self.partly += 0 < len(frame.answers) < needed and not frame.invalid
        if frame.answers and all(answer.skipped for answer in frame.answers):
            self.skipped.append(frame.cached.frame)


class _BatchView:
    """A batch as it is on the server, read from the answer cache. Create it with `fetch_batch`."""

    def __init__(
        self, workspace: Workspace, contents: BatchContents, project: Project, server: LabelStudio
    ) -> None:
        self.contents = contents
        self.project = project
        self._workspace = workspace
        self._server = server
        self._disputed = disputed_labelers(contents.store, contents.batch)
        self._min_seconds = {
            need.frame: need.least_s for need in contents.batch.needs if need.least_s is not None
        }

    @property
    def collected(self) -> Ref | None:
        """The label set made from exactly these answers."""
        with sync.open_cache(self._workspace, self.project.id, self.contents.ref) as cache:
            return cache.collected

    def set_collected(self, labelset: Ref) -> None:
        """Record that a label set was made from exactly these answers."""
        with sync.open_cache(self._workspace, self.project.id, self.contents.ref) as cache:
            cache.collected = labelset

    def frames(self) -> Iterator[_FrameAnswers]:
        """Every frame that has a task, ordered by digest."""
        schema, users = self.contents.batch.label_schema, self._server.users()
        with sync.open_cache(self._workspace, self.project.id, self.contents.ref) as cache:
            for cached in cache.frames():
                frame = self.contents.frame(cached.frame)
                answers, annotations = parse_answers(
                    cached.annotations, cached.task, frame, schema, users
                )
                predictions = self.contents.predictions(cached.frame)
                rows = [answer_row(answer, predictions) for answer in answers]
                shown = shows_frame(cached.data.get("image"), frame.id)
                invalid = [one for answer in answers for one in self._invalid(answer, shown)]
                yield _FrameAnswers(cached, answers, annotations, rows, invalid, predictions)

    def status(
        self, visit: Callable[[_FrameAnswers], None] | None = None
    ) -> tuple[BatchStatus, _StatusTally]:
        """Progress of the batch.

        Args:
            visit: Called with every frame on the way.
        """
        needed = labelers_needed(self.contents.batch)
        tally = _StatusTally()
        for frame in self.frames():
            tally.add(frame, needed[frame.cached.frame])
            if visit:
                visit(frame)
        entry = sync.read_entry(self._workspace, self.contents.ref)
        missing = tuple(sorted(needed.keys() - tally.seen))
        was_complete = entry is not None and entry.complete
        status = BatchStatus(
            batch=self.contents.ref,
            project=self.project.id,
            url=self.project.url,
            total=len(needed),
            done=tally.done,
            skipped=len(tally.skipped),
            annotators=tally.people.annotators(),
            invalid=tuple(tally.invalid),
            drafts=tally.drafts,
            comments=tally.comments,
            deleted=missing if was_complete else (),
            unsent=0 if was_complete else len(missing),
            collected=entry.collected if entry else None,
            partly=tally.partly,
        )
        return status, tally

    def _invalid(self, answer: Answer, shown: bool) -> Iterator[InvalidAnswer]:
        reasons = [region.detail for region in answer.invalid]
        if not shown:
            reasons.append(
                "the task was changed to show another image; delete it, and send the batch again"
            )
        disputed = self._disputed.get(answer.frame, frozenset())
        if answer.annotator in disputed and not is_replay(answer.annotator):
            reasons.append(
                "your own boxes are disputed here; delete this answer, another labeler adjudicates"
            )
        minimum = self._min_seconds.get(answer.frame)
        seconds = None if answer.minutes is None else answer.minutes * 60
        if minimum is not None and seconds is not None and seconds < minimum:
            reasons.append(f"labeled in {seconds:.0f} s; this frame needs at least {minimum:.0f} s")
        url = f"{self.project.url}?task={answer.task}"
        for reason in reasons:
            yield InvalidAnswer(answer.frame, answer.annotator, url, reason)


def shows_frame(address: object, frame: Digest) -> bool:
    """Whether a task's image is the frame's, as `projects.image_address` writes it."""
    if not isinstance(address, str):
        return False
    path = address.removeprefix("/data/local-files/?d=")
    local = path != address
    known = local or address.partition("://")[0] in projects.MEDIA_STORAGES
    if ".." in path or re.search(r"[?&#%\\]" if local else r"[?&#]", path):
        return False
    name = re.search(r"/([0-9a-f]{2})/([0-9a-f]{64})(?:\.view)?\.\w+\Z", address)
    return known and name is not None and name[2] == frame and frame.startswith(name[1])


class _LabelSetFiles:
    """Payload of a label set, written frame by frame.

    Attributes:
        several: Labels by labeler of frames that more than one labeler answered.
        notes: New data of tasks whose note above the image changes.
    """

    NAMES = ("labels.jsonl", "answers.jsonl", "annotations.jsonl")

    def __init__(self, folder: Path, view: _BatchView) -> None:
        self.paths = {name: folder / name for name in self.NAMES}
        self._batch_ref = view.contents.ref
        self._start: Literal["model", "people"] = "model" if view.contents.batch.model else "people"
        self.labels = 0
        self.several: dict[Digest, dict[str, tuple[Label, ...]]] = {}
        self.notes: dict[int, Json] = {}

    def __enter__(self) -> _LabelSetFiles:
        self._open = {name: path.open("wb") for name, path in self.paths.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def add(self, frame: _FrameAnswers) -> None:
        by_labeler = {
            answer.annotator: to_labels(answer, frame.predictions, self._batch_ref, self._start)
            for answer in frame.answers
            if not answer.skipped
        }
        labels = [label for several in by_labeler.values() for label in several]
        self.labels += len(labels)
        self._write("labels.jsonl", labels)
        self._write("answers.jsonl", frame.rows)
        self._write("annotations.jsonl", frame.annotations)
        if len(by_labeler) > 1:
            self.several[frame.cached.frame] = by_labeler
        note = "; ".join(f"{one.annotator}: {one.why}" for one in frame.invalid)
        if frame.cached.data.get(label_config.NOTE, "") != note:
            self.notes[frame.cached.task] = {**frame.cached.data, label_config.NOTE: note}

    def _write(self, name: str, rows: Iterable[FrozenModel]) -> None:
        """Write rows of one frame, sorted, so that equal content is equal bytes."""
        self._open[name].writelines(sorted(dataset.to_json_lines(rows).splitlines(keepends=True)))
