"""How far a batch is: who answered, what has to be mended, what is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from workbench.errors import ParameterError, Waiting
from workbench.labeling import ledger, mirror, projects
from workbench.labeling.adjudication import labeled_by
from workbench.labeling.answers import (
    AnnotationRow,
    Answer,
    AnswerRow,
    People,
    answers_needed,
    is_replay,
    read_answers,
)
from workbench.labeling.contents import Contents
from workbench.labeling.mirror import Held
from workbench.labeling.origins import answer_row
from workbench.labeling.server import LabelStudio, Project
from workbench.records.base import Digest, Ref
from workbench.records.store import Store
from workbench.records.types import Annotator, Prediction
from workbench.workspace import Workspace


@dataclass(frozen=True)
class Mend:
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
    to_mend: tuple[Mend, ...] = ()
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

    held: Held
    answers: list[Answer]
    annotations: list[AnnotationRow]
    rows: list[AnswerRow]
    to_mend: list[Mend]
    started_from: dict[str, Prediction]


@dataclass
class Tally:
    """Counts over a batch's frames while they pass by."""

    seen: set[Digest] = field(default_factory=set)
    done: int = 0
    skipped: list[Digest] = field(default_factory=list)
    people: People = field(default_factory=People)
    comments: int = 0
    to_mend: list[Mend] = field(default_factory=list)
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


class Look:
    """One look at a batch on its server, fetched into the mirror. Made by `look`."""

    def __init__(
        self, place: Workspace, contents: Contents, project: Project, server: LabelStudio
    ) -> None:
        self.contents = contents
        self.project = project
        self._place = place
        self._server = server
        self._may_not_settle = labeled_by(contents.store, contents.batch)
        self._least_s = {
            need.frame: need.least_s for need in contents.batch.needs if need.least_s is not None
        }

    @property
    def collected(self) -> Ref | None:
        """The label set that was made of exactly what is there now."""
        with mirror.opened(self._place, self.project.id, self.contents.ref) as kept:
            return kept.collected

    def remember(self, labelset: Ref) -> None:
        """That this label set was made of what is there now."""
        with mirror.opened(self._place, self.project.id, self.contents.ref) as kept:
            kept.collected = labelset

    def frames(self) -> Iterator[FrameAnswers]:
        """Every frame that the server holds, in order of their digests."""
        batch, people = self.contents.batch, self._server.users()
        with mirror.opened(self._place, self.project.id, self.contents.ref) as kept:
            for held in kept.frames():
                frame = self.contents.frame(held.frame)
                answers, annotations = read_answers(
                    held.annotations, held.task, frame, batch.label_schema, people
                )
                sent = self.contents.started_by_name(held.frame)
                rows = [answer_row(answer, sent) for answer in answers]
                mends = [mend for answer in answers for mend in self._mends(answer)]
                yield FrameAnswers(held, answers, annotations, rows, mends, sent)

    def status(
        self, visit: Callable[[FrameAnswers], None] | None = None
    ) -> tuple[BatchStatus, Tally]:
        """How far the batch is; ``visit`` is shown every frame on the way."""
        needed = answers_needed(self.contents.batch)
        tally = Tally()
        for frame in self.frames():
            tally.add(frame, needed[frame.held.frame])
            if visit:
                visit(frame)
        entry = ledger.read(self._place, self.contents.ref)
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

    def _mends(self, answer: Answer) -> Iterator[Mend]:
        url = f"{self.project.url}?task={answer.task}"
        for refused in answer.refused:
            yield Mend(answer.frame, answer.annotator, url, refused.detail)
        theirs = self._may_not_settle.get(answer.frame, ())
        if answer.annotator in theirs and not is_replay(answer.annotator):
            why = "your own boxes are in dispute here; delete this answer and leave it to another"
            yield Mend(answer.frame, answer.annotator, url, why)
        least = self._least_s.get(answer.frame)
        seconds = None if answer.minutes is None else answer.minutes * 60
        if least is not None and seconds is not None and seconds < least:
            why = f"looked at for {seconds:.0f} s; this frame needs {least:.0f} s or more"
            yield Mend(answer.frame, answer.annotator, url, why)


def look(place: Workspace, server: LabelStudio, batch_ref: Ref) -> Look:
    """Fetch what changed in a batch since the last look.

    Raises:
        ParameterError: The batch is not on this server.
    """
    project = projects.find(place, server, batch_ref)
    if project is None:
        sent_before = ledger.read(place, batch_ref) is not None
        what = "the project of this batch was deleted" if sent_before else "it was never sent"
        raise ParameterError(
            f"this batch is not on the server: {what}",
            where=server.url,
            hint=f"Send it with `workbench label send {batch_ref}`;"
            " answers that were not collected are lost with a project"
            if sent_before
            else f"Send it with `workbench label send {batch_ref}`",
        )
    contents = Contents(Store(place), batch_ref)
    with mirror.opened(place, project.id, batch_ref) as kept:
        kept.refresh(server)
    return Look(place, contents, project, server)
