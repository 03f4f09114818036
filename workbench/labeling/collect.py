"""Collect: what labelers submitted becomes a label set, once every frame has its answers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from workbench.errors import ParameterError, Waiting
from workbench.labeling import agreement, ledger
from workbench.labeling.answers import (
    Answer,
    answers_needed,
    read_answers,
    region_id,
    summarise,
    to_labels,
)
from workbench.labeling.batches import sent_predictions
from workbench.labeling.send import find_project
from workbench.labeling.server import LabelStudio, Project
from workbench.records import dataset as datasets
from workbench.records.base import Digest, Ref
from workbench.records.frames import Label
from workbench.records.store import Store
from workbench.records.types import Annotator, LabelBatch, LabelSet
from workbench.workspace import Workspace


@dataclass(frozen=True)
class Mend:
    """A submitted box that cannot be used: which frame, whose, why, and where to mend it."""

    frame: Digest
    annotator: str
    url: str
    why: str


@dataclass(frozen=True)
class BatchStatus:
    """How far a batch is. A frame is done when enough labelers left a usable answer or a skip."""

    batch: Ref
    project: int
    url: str
    total: int
    done: int
    skipped: int
    annotators: tuple[Annotator, ...]
    to_mend: tuple[Mend, ...] = ()

    @property
    def complete(self) -> bool:
        return self.done == self.total


def status(place: Workspace, server: LabelStudio, batch_ref: Ref) -> BatchStatus:
    """How far labelers are with a batch, by the server's own count.

    Raises:
        ParameterError: The batch was never sent to this server.
    """
    project, answers = fetch(place, server, batch_ref)
    return _status(Store(place).get(batch_ref, LabelBatch), batch_ref, project, answers)


def collect(place: Workspace, server: LabelStudio, batch_ref: Ref, *, refresh: bool = False) -> Ref:
    """The label set of a complete batch.

    Every labeler's boxes are kept, with their origin; predictions that nobody submitted are not
    labels. Once collected, the same record is given again, even if the server is gone; with
    ``refresh`` what labelers changed since makes a new one.

    Raises:
        Waiting: Frames still need labelers, or boxes have to be mended.
        ParameterError: The batch was never sent to this server.
    """
    store = Store(place)
    with ledger.locked(place, batch_ref):
        entry = ledger.read(place, batch_ref)
        if entry and entry.collected and store.exists(entry.collected) and not refresh:
            return entry.collected
        batch = store.get(batch_ref, LabelBatch)
        project, answers = fetch(place, server, batch_ref)
        state = _status(batch, batch_ref, project, answers)
        if not state.complete:
            raise _waiting(state)
        collected = _keep(store, batch_ref, answers)
        ledger.write(
            place,
            ledger.Entry(
                batch=batch_ref,
                project=project.id,
                title=project.title,
                complete=True,
                collected=collected,
            ),
        )
    return collected


def fetch(place: Workspace, server: LabelStudio, batch_ref: Ref) -> tuple[Project, list[Answer]]:
    """A batch's project and every labeler's latest answer to each of its frames."""
    project = find_project(place, server, batch_ref)
    if project is None:
        raise ParameterError(
            "this batch is not on the server",
            where=server.url,
            hint=f"Send it with `workbench label send {batch_ref}`",
        )
    store = Store(place)
    batch = store.get(batch_ref, LabelBatch)
    wanted = set(batch.frames)
    dataset = datasets.load(store, batch.dataset)
    frames = {frame.id: frame for frame in dataset.frames if frame.id in wanted}
    classes = batch.label_schema.classes
    export = server.export(project.id)
    return project, read_answers(export, batch_ref, frames, classes, server.users())


def _status(
    batch: LabelBatch, batch_ref: Ref, project: Project, answers: list[Answer]
) -> BatchStatus:
    usable: dict[Digest, list[Answer]] = defaultdict(list)
    for answer in answers:
        if not answer.refused:
            usable[answer.frame].append(answer)
    needed = answers_needed(batch)
    to_mend = tuple(
        Mend(answer.frame, answer.annotator, f"{project.url}?task={answer.task}", refused.detail)
        for answer in answers
        for refused in answer.refused
    )
    # A frame with a box to mend is not done, even where another labeler's answer would do.
    spoiled = {mend.frame for mend in to_mend}
    done = sum(
        len(usable[frame]) >= count and frame not in spoiled for frame, count in needed.items()
    )
    return BatchStatus(
        batch=batch_ref,
        project=project.id,
        url=project.url,
        total=len(batch.frames),
        done=done,
        skipped=len(_skipped(answers)),
        annotators=summarise(answers),
        to_mend=to_mend,
    )


def _skipped(answers: list[Answer]) -> tuple[Digest, ...]:
    """Frames that labelers skipped and nobody labeled."""
    labeled = {answer.frame for answer in answers if not answer.skipped}
    return tuple(sorted({answer.frame for answer in answers} - labeled))


def _waiting(state: BatchStatus) -> Waiting:
    if state.to_mend:
        first = state.to_mend[0]
        return Waiting(
            f"{state.done} of {state.total} frames are labeled;"
            f" {len(state.to_mend)} boxes have to be mended first",
            where=first.url,
            hint=f"There, {first.annotator}: {first.why}",
        )
    return Waiting(
        f"{state.done} of {state.total} frames are labeled",
        where=state.url,
        hint="Label the others there, then run this again",
    )


def _keep(store: Store, batch_ref: Ref, answers: list[Answer]) -> Ref:
    predictions = {
        frame: {region_id(one): one for one in sent}
        for frame, sent in sent_predictions(store, batch_ref).items()
    }
    by_frame: dict[Digest, dict[str, tuple[Label, ...]]] = defaultdict(dict)
    for answer in answers:
        if not answer.skipped:
            by_frame[answer.frame][answer.annotator] = to_labels(
                answer, predictions.get(answer.frame, {}), batch_ref
            )
    labels = [
        label for people in by_frame.values() for theirs in people.values() for label in theirs
    ]
    people = summarise(answers)
    record = LabelSet(
        batch=batch_ref,
        annotators=people,
        labels=len(labels),
        skipped=_skipped(answers),
        agreement=agreement.measure(by_frame),
        simulated=any(person.simulated for person in people),
    )
    payload = {
        "labels.jsonl": b"".join(sorted(datasets.lines(labels).splitlines(keepends=True))),
        "answers.jsonl": datasets.lines(answer.row for answer in answers),
    }
    return store.put(record, payload)
