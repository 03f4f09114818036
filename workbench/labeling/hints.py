"""Hints from Label Studio that somebody answered, so that nobody has to ask all the time.

Label Studio's webhooks give up after a second and are never sent again, so a hint is only a reason
to look: what counts is read from the server, and every now and then it is read without a hint.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from workbench.labeling.server import LabelStudio
from workbench.records.base import Ref

_HEADER = "X-Workbench-Hint"
_LARGEST = 1 << 20
_LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def listening(
    server: LabelStudio, projects: Mapping[int, Ref], *, host: str = _LOOPBACK
) -> Iterator[Hints]:
    """Hints about these projects while the context lasts; afterwards the server sends none.

    Args:
        projects: Project id to the batch in it.
        host: This machine as the server sees it. Nothing but a loopback server reaches the default.
    """
    hints = Hints(projects)
    receiver = ThreadingHTTPServer((host, 0), hints.handler())
    receiver.daemon_threads = True
    thread = threading.Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    url = f"http://{host}:{receiver.server_address[1]}/"
    hooks: list[int] = []
    try:
        for project in projects:
            hooks.append(server.add_webhook(project, url, {_HEADER: hints.secret}))
        yield hints
    finally:
        for hook in hooks:
            server.remove_webhook(hook)
        receiver.shutdown()
        receiver.server_close()


class Hints:
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
                length = min(int(self.headers.get("Content-Length") or 0), _LARGEST)
                taken = hints._take(self.headers.get(_HEADER, ""), self.rfile.read(length))
                self.send_response(HTTPStatus.NO_CONTENT if taken else HTTPStatus.FORBIDDEN)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet: a hint is no event."""

        return Handler
