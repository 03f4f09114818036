"""What this workspace knows of the batches it sent: one small file a batch.

It spares the server questions; it is not the truth. Lost or out of date, it is made again from
the server's own tasks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from workbench import digest, workspace
from workbench.records.base import Ref, Row, digest_of, make_ref
from workbench.workspace import Workspace

_log = logging.getLogger(__name__)


class Entry(Row):
    """Where a batch lies. ``complete`` once every frame is there; ``collected`` once labels are."""

    batch: Ref
    project: int
    title: str
    complete: bool = False
    collected: Ref | None = None


@contextlib.contextmanager
def locked(place: Workspace, batch: Ref) -> Iterator[None]:
    """Only one process at a time sends or collects a batch; whoever has to wait is told so."""
    path = _path(place, batch).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("another command is at work on batch/%s; waiting", digest_of(batch)[:12])
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read(place: Workspace, batch: Ref) -> Entry | None:
    try:
        return Entry.model_validate_json(_path(place, batch).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write(place: Workspace, entry: Entry) -> None:
    content = digest.canonical_json(entry.model_dump(mode="json"))
    workspace.write_atomic(_path(place, entry.batch), content)


def sent(place: Workspace) -> list[Ref]:
    """Every batch that was sent from this workspace, in the order they were begun."""
    paths = sorted((place.root / "labeling").glob("*.json"), key=lambda path: path.stat().st_ctime)
    return [make_ref("batch", path.stem) for path in paths]


def mirror_path(place: Workspace, batch: Ref) -> Path:
    """Where the answers that the server holds are kept, see `mirror`."""
    return place.root / "labeling" / f"{digest_of(batch)}.sqlite"


def _path(place: Workspace, batch: Ref) -> Path:
    return place.root / "labeling" / f"{digest_of(batch)}.json"
