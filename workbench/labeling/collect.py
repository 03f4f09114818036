"""Collect: what labelers submitted becomes a label set, once every frame has its answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from workbench.labeling import agreement, config, ledger
from workbench.labeling.answers import summarise
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
        state, tally = seen.status()
        _tell_labelers(server, seen)
        going_without = state.deleted if without_deleted else ()
        if state.done + len(going_without) < state.total:
            raise state.waiting()
        collected = _keep(store, seen, tally, going_without)
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


def _tell_labelers(server: LabelStudio, seen: Look) -> None:
    """Write above the image what has to be mended, and take away what has been."""
    for frame in seen.frames():
        note = "; ".join(f"{mend.annotator}: {mend.why}" for mend in frame.to_mend)
        data = frame.held.data
        if data.get(config.NOTE, "") != note:
            server.set_note(frame.held.task, {**data, config.NOTE: note})


def _keep(store: Store, seen: Look, tally: Tally, deleted: tuple[Digest, ...]) -> Ref:
    people = summarise(tally.rows)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)
        names = ("labels.jsonl", "answers.jsonl", "annotations.jsonl")
        with (
            (kept / names[0]).open("wb") as labels_file,
            (kept / names[1]).open("wb") as answers_file,
            (kept / names[2]).open("wb") as annotations_file,
        ):
            count = 0
            several: dict[Digest, dict[str, tuple[Label, ...]]] = {}
            for frame in seen.frames():
                by_person = _labels(seen, frame)
                count += _write(
                    labels_file, (label for theirs in by_person.values() for label in theirs)
                )
                _write(answers_file, frame.rows)
                _write(annotations_file, frame.annotations)
                if len(by_person) > 1:
                    several[frame.held.frame] = by_person
        record = LabelSet(
            batch=seen.contents.ref,
            annotators=people,
            labels=count,
            skipped=tuple(tally.skipped),
            agreement=agreement.measure(several),
            simulated=any(person.simulated for person in people),
            deleted=deleted,
        )
        return store.put(record, {name: kept / name for name in names})


def _labels(seen: Look, frame: FrameAnswers) -> dict[str, tuple[Label, ...]]:
    """Labels by labeler; a skip is none."""
    sent = seen.contents.started_by_name(frame.held.frame)
    batch, ref = seen.contents.batch, seen.contents.ref
    return {
        answer.annotator: to_labels(answer, sent, ref, "people" if batch.adjudicates else "model")
        for answer in frame.answers
        if not answer.skipped
    }


def _write(file: BinaryIO, rows: Iterable[Row]) -> int:
    """Rows of one frame, sorted, so that equal content is equal bytes; how many."""
    lines = sorted(datasets.lines(rows).splitlines(keepends=True))
    file.writelines(lines)
    return len(lines)
