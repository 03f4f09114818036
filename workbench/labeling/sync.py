"""What this workspace knows about sent batches: index, answer cache, webhooks for news."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from workbench.core import digest, workspace
from workbench.core.workspace import Workspace
from workbench.labeling.server import BatchTotals, LabelStudio, Task
from workbench.records.base import Digest, FrozenModel, Ref, digest_of, make_ref

_log = logging.getLogger(__name__)


class IndexEntry(FrozenModel):
    """Where a batch lies. ``complete`` once every frame is there; ``collected`` once labels are."""

    batch: Ref
    project: int
    title: str
    complete: bool = False
    collected: Ref | None = None


@contextlib.contextmanager
def batch_lock(place: Workspace, batch: Ref) -> Iterator[None]:
    """Only one process at a time sends or collects a batch; whoever has to wait is told so."""
    path = _entry_path(place, batch).with_suffix(".lock")
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


def read_entry(place: Workspace, batch: Ref) -> IndexEntry | None:
    try:
        return IndexEntry.model_validate_json(_entry_path(place, batch).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_entry(place: Workspace, entry: IndexEntry) -> None:
    content = digest.canonical_json(entry.model_dump(mode="json"))
    workspace.write_atomic(_entry_path(place, entry.batch), content)


def sent_batches(place: Workspace) -> list[Ref]:
    """Every batch that was sent from this workspace, in the order they were begun."""
    paths = sorted((place.root / "labeling").glob("*.json"), key=lambda path: path.stat().st_ctime)
    return [make_ref("batch", path.stem) for path in paths]


def cache_path(place: Workspace, batch: Ref) -> Path:
    """Where the answers that the server holds are kept, see `mirror`."""
    return place.root / "labeling" / f"{digest_of(batch)}.sqlite"


def _entry_path(place: Workspace, batch: Ref) -> Path:
    return place.root / "labeling" / f"{digest_of(batch)}.json"


# ---- What the server holds of a batch's answers, kept beside the ledger so that only news is fetched.
#
# A cache and nothing more: lost, damaged or doubtful, it is filled again from a snapshot. What
# changed is asked by the server's own clock, and the server's count of annotations tells when
# something went without leaving a date, as deleted annotations do.


_SNAPSHOT_ABOVE = 200
"""Changed tasks from which on a snapshot of all is quicker than asking for each."""

_CLOCK_MARGIN = timedelta(seconds=10)
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
class CachedFrame:
    """What the server holds of one frame. ``annotations`` are of all its tasks, if there are more.

    ``data`` is the task's own, ``drafts`` counts what labelers began and did not submit.
    """

    frame: Digest
    task: int
    data: dict[str, Any]
    annotations: list[dict[str, Any]]
    drafts: int


class AnswerCache:
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
        since = datetime.fromisoformat(self._about("at")) - _CLOCK_MARGIN
        listed = server.changed(self._project, self._batch, since)
        known = dict(self._link.execute("SELECT id, updated_at FROM task"))
        changed = [task for task, at in listed.items() if known.get(task) != at]
        if len(changed) > _SNAPSHOT_ABOVE:
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

    def frames(self) -> Iterator[CachedFrame]:
        """Every frame the server holds, in order of their digests, one at a time."""
        rows = self._link.execute("SELECT frame, id, body FROM task ORDER BY frame, id")
        waiting: CachedFrame | None = None
        for frame, task, body in rows:
            found = _cached_frame(frame, task, json.loads(body))
            if waiting is not None and waiting.frame == frame:
                waiting = _join_frames(waiting, found)
                continue
            if waiting is not None:
                yield waiting
            waiting = found
        if waiting is not None:
            yield waiting

    def _fill(self, server: LabelStudio, totals: BatchTotals) -> int:
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

    def _doubtful(self, totals: BatchTotals) -> bool:
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
def open_cache(place: Workspace, project: int, batch: Ref) -> Iterator[AnswerCache]:
    """The mirror of a batch; one that cannot be read is begun anew."""
    path = cache_path(place, batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        link = sqlite3.connect(path, timeout=60)
        mirror = AnswerCache(link, project, batch)
    except sqlite3.DatabaseError:
        link.close()
        path.unlink()
        link = sqlite3.connect(path, timeout=60)
        mirror = AnswerCache(link, project, batch)
    with contextlib.closing(link):
        yield mirror


def _cached_frame(frame: Digest, task: int, body: dict[str, Any]) -> CachedFrame:
    return CachedFrame(frame, task, body["data"], body["annotations"], body["drafts"])


def _join_frames(first: CachedFrame, second: CachedFrame) -> CachedFrame:
    annotations = [*first.annotations, *second.annotations]
    return CachedFrame(
        first.frame, first.task, first.data, annotations, first.drafts + second.drafts
    )


# ---- Hints from Label Studio that somebody answered, so that nobody has to ask all the time.
#
# Label Studio's webhooks give up after a second and are never sent again, so a hint is only a reason
# to look: what counts is read from the server, and every now and then it is read without a hint.


_SECRET_HEADER = "X-Workbench-Hint"
_MAX_BODY_BYTES = 1 << 20
_LOOPBACK_HOST = "127.0.0.1"


@contextlib.contextmanager
def listen(
    server: LabelStudio, projects: Mapping[int, Ref], *, host: str = _LOOPBACK_HOST
) -> Iterator[WebhookEvents]:
    """Hints about these projects while the context lasts; afterwards the server sends none.

    Args:
        projects: Project id to the batch in it.
        host: This machine as the server sees it. Nothing but a loopback server reaches the default.
    """
    hints = WebhookEvents(projects)
    receiver = ThreadingHTTPServer((host, 0), hints.handler())
    receiver.daemon_threads = True
    thread = threading.Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    url = f"http://{host}:{receiver.server_address[1]}/"
    hooks: list[int] = []
    try:
        for project in projects:
            hooks.append(server.add_webhook(project, url, {_SECRET_HEADER: hints.secret}))
        yield hints
    finally:
        for hook in hooks:
            server.remove_webhook(hook)
        receiver.shutdown()
        receiver.server_close()


class WebhookEvents:
    """Batches of which something was heard. Made by `listening`."""

    def __init__(self, projects: Mapping[int, Ref]) -> None:
        self.secret = secrets.token_urlsafe(24)
        self._projects = dict(projects)
        self._heard: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait(self, timeout_s: float, quiet_s: float = 1.0) -> list[Ref]:
        """Batches to look at: those heard of, or after ``timeout_s`` without a word, all of them.

        Waits ``quiet_s`` after the first hint, because answers come in bursts.
        """
        try:
            heard = {self._heard.get(timeout=timeout_s)}
        except queue.Empty:
            return sorted(self._projects.values())
        time.sleep(quiet_s)
        while not self._heard.empty():
            heard.add(self._heard.get())
        return sorted(self._projects[project] for project in heard)

    def _take(self, secret: str, body: bytes) -> bool:
        """Note a hint; only its project is read, and only where the secret is right."""
        if not secrets.compare_digest(secret, self.secret):
            return False
        with contextlib.suppress(ValueError, TypeError, KeyError):
            project = int(json.loads(body)["project"]["id"])
            if project in self._projects:
                self._heard.put(project)
        return True

    def handler(hints) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has its own self
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = min(int(self.headers.get("Content-Length") or 0), _MAX_BODY_BYTES)
                taken = hints._take(self.headers.get(_SECRET_HEADER, ""), self.rfile.read(length))
                self.send_response(HTTPStatus.NO_CONTENT if taken else HTTPStatus.FORBIDDEN)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet: a hint is no event."""

        return Handler
