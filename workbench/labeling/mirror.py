"""What the server holds of a batch's answers, kept beside the ledger so that only news is fetched.

A cache and nothing more: lost, damaged or doubtful, it is filled again from a snapshot. What
changed is asked by the server's own clock, and the server's count of annotations tells when
something went without leaving a date, as deleted annotations do.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from workbench.labeling import ledger
from workbench.labeling.holdings import Task, Totals
from workbench.labeling.server import LabelStudio
from workbench.records.base import Digest, Ref, digest_of
from workbench.workspace import Workspace

_MANY = 200
"""Changed tasks from which on a snapshot of all is quicker than asking for each."""

_MARGIN = timedelta(seconds=10)
"""A change may become visible this much later than the time it bears.

Whole imports take longer, and show in the server's counts.
"""

_TABLES = """
CREATE TABLE IF NOT EXISTS task (
    id INTEGER PRIMARY KEY, frame TEXT, updated_at TEXT, annotations INTEGER, body TEXT);
CREATE INDEX IF NOT EXISTS task_frame ON task (frame);
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
"""


@dataclass(frozen=True)
class Held:
    """What the server holds of one frame. ``annotations`` are of all its tasks, if there are more.

    ``data`` is the task's own, ``drafts`` counts what labelers began and did not submit.
    """

    frame: Digest
    task: int
    data: dict[str, Any]
    annotations: list[dict[str, Any]]
    drafts: int


class Mirror:
    """The answers of one batch. Made by `opened`."""

    def __init__(self, link: sqlite3.Connection, project: int, batch: Ref) -> None:
        self._link = link
        self._project = project
        self._batch = digest_of(batch)
        self.total = 0
        link.executescript(_TABLES)

    def refresh(self, server: LabelStudio) -> int:
        """Fetch what changed; how many tasks that were."""
        totals = server.totals(self._project, self._batch)
        if self._about("project") != str(self._project):
            return self._fill(server, totals)
        since = datetime.fromisoformat(self._about("at")) - _MARGIN
        listed = server.changed(self._project, self._batch, since)
        known = dict(self._link.execute("SELECT id, updated_at FROM task"))
        changed = [task for task, at in listed.items() if known.get(task) != at]
        if len(changed) > _MANY:
            return self._fill(server, totals)
        fetched = list(server.export_tasks(self._project, changed))
        with self._link:
            self._keep(fetched)
            self._set("at", totals.at)
        if self._doubtful(totals):
            return self._fill(server, totals)
        self.total = totals.tasks
        return len(changed)

    @property
    def collected(self) -> Ref | None:
        """The label set made of exactly what is held here."""
        return self._about("collected") or None

    @collected.setter
    def collected(self, labelset: Ref) -> None:
        with self._link:
            self._set("collected", labelset)

    def frames(self) -> Iterator[Held]:
        """Every frame the server holds, in order of their digests, one at a time."""
        rows = self._link.execute("SELECT frame, id, body FROM task ORDER BY frame, id")
        waiting: Held | None = None
        for frame, task, body in rows:
            found = _held(frame, task, json.loads(body))
            if waiting is not None and waiting.frame == frame:
                waiting = _joined(waiting, found)
                continue
            if waiting is not None:
                yield waiting
            waiting = found
        if waiting is not None:
            yield waiting

    def _fill(self, server: LabelStudio, totals: Totals) -> int:
        with tempfile.TemporaryDirectory() as folder:
            tasks = server.snapshot(self._project, Path(folder) / "snapshot.json")
            with self._link:
                self._link.execute("DELETE FROM task")
                self._set("collected", "")
                count = self._keep(tasks)
                self._set("project", str(self._project))
                self._set("at", totals.at)
        self.total = count
        return count

    def _keep(self, tasks: Iterable[Task]) -> int:
        count = 0
        for task in tasks:
            data = task["data"]
            if data.get("batch") != self._batch:
                continue
            if not count:
                self._set("collected", "")
            annotations = task.get("annotations") or []
            answered = sum(not one.get("was_cancelled") for one in annotations)
            body = {
                "data": data,
                "annotations": annotations,
                "drafts": len(task.get("drafts") or ()),
            }
            row = (task["id"], data["frame"], task["updated_at"], answered, json.dumps(body))
            self._link.execute("INSERT OR REPLACE INTO task VALUES (?, ?, ?, ?, ?)", row)
            count += 1
        return count

    def _doubtful(self, totals: Totals) -> bool:
        tasks, annotations = self._link.execute(
            "SELECT count(*), coalesce(sum(annotations), 0) FROM task"
        ).fetchone()
        return bool((tasks, annotations) != (totals.tasks, totals.annotations))

    def _about(self, name: str) -> str:
        row = self._link.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def _set(self, name: str, value: str) -> None:
        self._link.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))


@contextlib.contextmanager
def opened(place: Workspace, project: int, batch: Ref) -> Iterator[Mirror]:
    """The mirror of a batch; one that cannot be read is begun anew."""
    path = ledger.mirror_path(place, batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        link = sqlite3.connect(path, timeout=60)
        mirror = Mirror(link, project, batch)
    except sqlite3.DatabaseError:
        link.close()
        path.unlink()
        link = sqlite3.connect(path, timeout=60)
        mirror = Mirror(link, project, batch)
    with contextlib.closing(link):
        yield mirror


def _held(frame: Digest, task: int, body: dict[str, Any]) -> Held:
    return Held(frame, task, body["data"], body["annotations"], body["drafts"])


def _joined(first: Held, second: Held) -> Held:
    annotations = [*first.annotations, *second.annotations]
    return Held(first.frame, first.task, first.data, annotations, first.drafts + second.drafts)
