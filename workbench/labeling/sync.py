"""What this workspace knows about sent batches: index, answer cache and webhooks.

The Label Studio server is authoritative. Lost or outdated files below ``labeling/`` are rebuilt
from the server's tasks.
"""

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

from filelock import FileLock, Timeout
from pydantic import ValidationError

from workbench.core import digest
from workbench.core.types import Json
from workbench.core.workspace import Workspace, write_atomic
from workbench.labeling.server import BatchTotals, LabelStudio, Task
from workbench.records.base import Digest, FrozenModel, Ref, digest_of, make_ref

__all__ = ["listen", "read_entry", "sent_batches"]

_log = logging.getLogger(__name__)

_SNAPSHOT_ABOVE = 200
"""Number of changed tasks above which a snapshot of all tasks is faster than single exports."""

_CLOCK_MARGIN = timedelta(seconds=10)
"""A change may become visible this much later than its timestamp.

Imports can take longer; they show in the server's counts.
"""

_TABLES = """
CREATE TABLE IF NOT EXISTS task (
    id INTEGER PRIMARY KEY, frame TEXT, updated_at TEXT, annotations INTEGER, body TEXT);
CREATE INDEX IF NOT EXISTS task_frame ON task (frame);
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
"""

_SECRET_HEADER = "X-Workbench-Hint"
_MAX_BODY_BYTES = 1 << 20


class IndexEntry(FrozenModel):
    """Where a batch was sent to.

    Attributes:
        project: Label Studio's project id.
        complete: Every frame has a task.
        collected: Label set of the last collection.
    """

    batch: Ref
    project: int
    title: str
    complete: bool = False
    collected: Ref | None = None


@contextlib.contextmanager
def batch_lock(workspace: Workspace, batch: Ref) -> Iterator[None]:
    """Let one process at a time send or collect a batch; others log a message and wait."""
    path = _path(workspace, batch, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("batch/%s is in use by another command; waiting", digest_of(batch)[:12])
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_entry(workspace: Workspace, batch: Ref) -> IndexEntry | None:
    """Index entry of a batch; None if it was never sent from here or the file is damaged."""
    try:
        return IndexEntry.model_validate_json(_path(workspace, batch, ".json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_entry(workspace: Workspace, entry: IndexEntry) -> None:
    """Save the index entry of a batch."""
    content = digest.canonical_json(entry.model_dump(mode="json"))
    write_atomic(_path(workspace, entry.batch, ".json"), content)


def sent_batches(workspace: Workspace) -> list[Ref]:
    """Every batch sent from this workspace, oldest first."""
    paths = sorted(
        (workspace.root / "labeling").glob("*.json"), key=lambda path: path.stat().st_ctime
    )
    return [make_ref("batch", path.stem) for path in paths]


def _path(workspace: Workspace, batch: Ref, suffix: str) -> Path:
    return workspace.root / "labeling" / f"{digest_of(batch)}{suffix}"


@dataclass(frozen=True)
class CachedFrame:
    """What the server holds for one frame.

    Attributes:
        task: Id of the frame's oldest task.
        data: Data columns of that task.
        annotations: Annotations of all tasks of the frame, as exported.
        drafts: Number of answers that were started and not submitted.
    """

    frame: Digest
    task: int
    data: Json
    annotations: list[Json]
    drafts: int


class _AnswerCache:
    """Answers of one batch in SQLite, so that only changed tasks are fetched; see `open_cache`.

    Changes are requested by the server's clock. The server's count of annotations reveals changes
    without a timestamp, such as deleted annotations; then everything is fetched again.
    """

    def __init__(self, connection: sqlite3.Connection, project_id: int, batch: Ref) -> None:
        self._connection = connection
        self._project_id = project_id
        self._batch = digest_of(batch)
        connection.executescript(_TABLES)

    def refresh(self, server: LabelStudio) -> None:
        """Fetch what changed on the server."""
        totals = server.totals(self._project_id, self._batch)
        if not self._fetch_changes(server, totals):
            self._fetch_all(server, totals)

    def _fetch_changes(self, server: LabelStudio, totals: BatchTotals) -> bool:
        """Update changed tasks only; False if the cache does not match the server after that."""
        if self._get("project") != str(self._project_id):
            return False
        since = datetime.fromisoformat(self._get("at")) - _CLOCK_MARGIN
        listed = server.changed_tasks(self._project_id, self._batch, since)
        known = dict(self._connection.execute("SELECT id, updated_at FROM task"))
        changed = [task for task, at in listed.items() if known.get(task) != at]
        if len(changed) > _SNAPSHOT_ABOVE:
            return False
        tasks = list(server.export_tasks(self._project_id, changed))
        with self._connection:
            self._store(tasks)
            self._set("at", totals.at)
        counts = self._connection.execute(
            "SELECT count(*), coalesce(sum(annotations), 0) FROM task"
        ).fetchone()
        return bool(counts == (totals.tasks, totals.annotations))

    @property
    def collected(self) -> Ref | None:
        """Label set made from exactly the cached answers."""
        return self._get("collected") or None

    @collected.setter
    def collected(self, labelset: Ref) -> None:
        with self._connection:
            self._set("collected", labelset)

    def frames(self) -> Iterator[CachedFrame]:
        """Every frame of the batch on the server, ordered by digest."""
        rows = self._connection.execute("SELECT frame, id, body FROM task ORDER BY frame, id")
        current: CachedFrame | None = None
        for frame, task, text in rows:
            body = json.loads(text)
            if current is not None and current.frame == frame:
                current.annotations.extend(body["annotations"])
                drafts = current.drafts + body["drafts"]
                current = CachedFrame(
                    frame, current.task, current.data, current.annotations, drafts
                )
                continue
            if current is not None:
                yield current
            current = CachedFrame(frame, task, body["data"], body["annotations"], body["drafts"])
        if current is not None:
            yield current

    def _fetch_all(self, server: LabelStudio, totals: BatchTotals) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tasks = server.snapshot(self._project_id, Path(folder) / "snapshot.json")
            with self._connection:
                self._connection.execute("DELETE FROM task")
                self._set("collected", "")
                self._store(tasks)
                self._set("project", str(self._project_id))
                self._set("at", totals.at)

    def _store(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            data = task["data"]
            if data.get("batch") != self._batch:
                continue
            self._set("collected", "")
            annotations = task.get("annotations") or []
            submitted = sum(not one.get("was_cancelled") for one in annotations)
            body = {
                "data": data,
                "annotations": annotations,
                "drafts": len(task.get("drafts") or ()),
            }
            row = (task["id"], data["frame"], task["updated_at"], submitted, json.dumps(body))
            self._connection.execute("INSERT OR REPLACE INTO task VALUES (?, ?, ?, ?, ?)", row)

    def _get(self, name: str) -> str:
        row = self._connection.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def _set(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))


@contextlib.contextmanager
def open_cache(workspace: Workspace, project_id: int, batch: Ref) -> Iterator[_AnswerCache]:
    """The answer cache of a batch; a damaged one is replaced by an empty one."""
    path = _path(workspace, batch, ".sqlite")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(path, timeout=60)
        cache = _AnswerCache(connection, project_id, batch)
    except sqlite3.DatabaseError:
        connection.close()
        path.unlink()
        connection = sqlite3.connect(path, timeout=60)
        cache = _AnswerCache(connection, project_id, batch)
    with contextlib.closing(connection):
        yield cache


@contextlib.contextmanager
def listen(
    server: LabelStudio, projects: Mapping[int, Ref], *, host: str = "127.0.0.1"
) -> Iterator[_WebhookEvents]:
    """Receive webhooks of projects while the context lasts.

    Label Studio gives up on a webhook after one second and never repeats it. An event is therefore
    only a reason to look at a batch: the answers are read from the server.

    Args:
        projects: Project id to the batch in it.
        host: This machine as the server sees it; the default is for servers on this machine.
    """
    events = _WebhookEvents(projects)
    receiver = ThreadingHTTPServer((host, 0), events.handler())
    receiver.daemon_threads = True
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    url = f"http://{host}:{receiver.server_address[1]}/"
    hooks: list[int] = []
    try:
        for project in projects:
            hooks.append(server.add_webhook(project, url, {_SECRET_HEADER: events.secret}))
        yield events
    finally:
        for hook in hooks:
            server.remove_webhook(hook)
        receiver.shutdown()
        receiver.server_close()


class _WebhookEvents:
    """Batches that changed, as reported by the server's webhooks. Create it with `listen`."""

    def __init__(self, projects: Mapping[int, Ref]) -> None:
        self.secret = secrets.token_urlsafe(24)
        self._projects = dict(projects)
        self._events: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait(self, timeout_s: float, quiet_s: float = 1.0) -> list[Ref]:
        """Batches to look at: those with events, or all of them after ``timeout_s`` without any.

        Args:
            timeout_s: Longest wait for the first event, in seconds.
            quiet_s: Pause after the first event, in seconds, because events come in bursts.
        """
        try:
            projects = {self._events.get(timeout=timeout_s)}
        except queue.Empty:
            return sorted(self._projects.values())
        time.sleep(quiet_s)
        while not self._events.empty():
            projects.add(self._events.get())
        return sorted(self._projects[project] for project in projects)

    def _accept(self, secret: str, body: bytes) -> bool:
        """Queue an event if the secret is right; only its project id is read."""
        if not secrets.compare_digest(secret, self.secret):
            return False
        with contextlib.suppress(ValueError, TypeError, KeyError):
            project = int(json.loads(body)["project"]["id"])
            if project in self._projects:
                self._events.put(project)
        return True

    def handler(events) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has its own self
        """Request handler class for `http.server`."""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = min(int(self.headers.get("Content-Length") or 0), _MAX_BODY_BYTES)
                secret = self.headers.get(_SECRET_HEADER, "")
                accepted = events._accept(secret, self.rfile.read(length))
                self.send_response(HTTPStatus.NO_CONTENT if accepted else HTTPStatus.FORBIDDEN)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Requests are not logged."""

        return Handler
