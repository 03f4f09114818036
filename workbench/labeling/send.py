"""Send: frames that were chosen become tasks in a Label Studio project, each exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench.errors import ServiceError
from workbench.labeling import attempts, ledger, media, projects
from workbench.labeling.answers import answers_needed
from workbench.labeling.contents import Contents
from workbench.labeling.server import LabelStudio
from workbench.labeling.tasks import chunks, in_order, make_tasks
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.store import Store
from workbench.workspace import Workspace

Progress = Callable[[int, int], None]

CHUNK = 1000
"""Tasks in one import call: large enough to cost nothing, small enough to bound memory."""

_ATTEMPTS = 3
_LANDING_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses between looks for an import whose answer was lost: it may still be under way."""

_ANSWERED_S = (0.5, 1.0)
"""The same where the server did answer, if with an error: then it is no longer at work."""


@dataclass(frozen=True)
class SentBatch:
    """``sent`` tasks were written now, ``already`` were there before."""

    batch: Ref
    project: int
    title: str
    url: str
    sent: int
    already: int


def send(
    place: Workspace,
    server: LabelStudio,
    batch_ref: Ref,
    project: str | None = None,
    *,
    progress: Progress | None = None,
) -> SentBatch:
    """Bring a batch to Label Studio; what is there already is never written again.

    Safe to repeat after any interruption: what the server holds decides what is missing. Tasks
    that somebody deleted there come back; tasks that came twice lose the copy nobody worked on.

    Args:
        project: Title of the project, at most 50 characters; by default made from the dataset's
            name and the batch. Several batches may share a project, if their schemas fit.

    Raises:
        ParameterError: The title belongs to a project whose schema does not fit.
        DataError: Images of frames are missing.
        ServiceError: The server is away.
    """
    title = projects.title_of(place, batch_ref, project)
    with ledger.locked(place, batch_ref):
        contents = Contents(Store(place), batch_ref)
        frames = contents.batch.frames
        known = projects.find(place, server, batch_ref, title)
        entry = ledger.read(place, batch_ref)
        if known and entry and entry.complete:
            there = server.totals(known.id, digest_of(batch_ref))
            if there.tasks == len(frames):
                return SentBatch(batch_ref, known.id, title, known.url, 0, len(frames))
        if known is None:
            known = projects.create(server, title, contents.batch)
            projects.link_guide(place, server, known, contents.batch)
        projects.fit(server, known, contents.batch.label_schema)
        media.attach(server, known.id, place)
        collected = entry.collected if entry else None
        opened = ledger.Entry(batch=batch_ref, project=known.id, title=title, collected=collected)
        ledger.write(place, opened)
        sent = _import_missing(server, known.id, contents, progress)
        ledger.write(place, opened.model_copy(update={"complete": True}))
    return SentBatch(batch_ref, known.id, title, known.url, sent, len(frames) - sent)


def _import_missing(
    server: LabelStudio, project: int, contents: Contents, progress: Progress | None
) -> int:
    """Import what the server lacks, and see that each frame is there once; how many were lacking.

    After a failed call the server says what did arrive: an import takes place whole or not at all.
    """
    batch, wanted = digest_of(contents.ref), in_order(contents.batch)
    there = _once_each(server, project, batch)
    lacking = sum(frame not in there for frame in wanted)
    doubtful = False
    for attempt in range(_ATTEMPTS):
        try:
            missing = [frame for frame in wanted if frame not in there]
            _import(server, project, contents, missing, progress)
            break
        except ServiceError as error:
            if attempt == _ATTEMPTS - 1 or not attempts.may_have_landed(error):
                raise
            doubtful = True
            there = _once_each(server, project, batch)
    shared = {frame: n for frame, n in answers_needed(contents.batch).items() if n > 1}
    if doubtful or shared:
        there = _once_each(server, project, batch)
    for frame, labelers in shared.items():
        server.offer_to(there[frame], labelers)
    return lacking


def _import(
    server: LabelStudio,
    project: int,
    contents: Contents,
    missing: list[Digest],
    progress: Progress | None,
) -> None:
    batch, total = digest_of(contents.ref), len(contents.batch.frames)
    done = total - len(missing)
    for some in chunks(make_tasks(contents, missing), CHUNK):
        try:
            server.import_tasks(project, some)
        except ServiceError as error:
            if not attempts.may_have_landed(error):
                raise
            pauses = _ANSWERED_S if attempts.was_answered(error) else _LANDING_S
            if not _landed(server, project, batch, done + len(some), pauses):
                raise
        done += len(some)
        if progress:
            progress(done, total)


def _landed(
    server: LabelStudio, project: int, batch: str, expected: int, pauses: Sequence[float]
) -> bool:
    """Whether an import whose answer was lost has taken place after all; patient, for it may."""
    for pause in pauses:
        if server.totals(project, batch).tasks >= expected:
            return True
        time.sleep(pause)
    return server.totals(project, batch).tasks >= expected


def _once_each(server: LabelStudio, project: int, batch: str) -> dict[Digest, int]:
    """The task of each frame; of a frame that came twice, the copy nobody worked on goes."""
    found = server.tasks(project, batch)
    twice = {frame: ids for frame, ids in found.items() if len(ids) > 1}
    if twice:
        ids = [task for several in twice.values() for task in several]
        worked_on = {
            task["id"]
            for task in server.export_tasks(project, ids)
            if task["annotations"] or task["drafts"]
        }
        for frame, several in twice.items():
            keep = next((task for task in several if task in worked_on), several[0])
            server.delete_tasks([one for one in several if one != keep and one not in worked_on])
            found[frame] = [keep]
    return {frame: several[0] for frame, several in found.items()}
