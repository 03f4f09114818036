"""A proxy in front of a real Label Studio that injects network and server faults."""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "host"}


@dataclass(frozen=True)
class Fault:
    """What happens to one call.

    ``status``: answered with this and not passed on. ``delay_s``: passed on this much later.
    ``lose_answer``: passed on, and the line is cut before the answer. ``then`` is called after the
    server has answered and before its answer is given.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    lose_answer: bool = False
    then: Callable[[], object] | None = None


class FaultyProxy:
    """Passes calls on; `fail` says what happens to those that match. ``calls`` were passed on."""

    def __init__(self, target: str, tls: tuple[Path, Path] | None = None) -> None:
        self.target = urlsplit(target)
        self.calls: list[tuple[str, str]] = []
        self._faults: list[tuple[str, str, Fault]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, part: str, fault: Fault, times: int = 1) -> None:
        """The next calls of this method whose path contains ``part`` meet a fault."""
        self._faults += [(method, part, fault)] * times

    @property
    def writes(self) -> list[str]:
        """Calls that may have changed something."""
        with self._lock:
            return [f"{method} {path}" for method, path in self.calls if method != "GET"]

    def _next(self, method: str, path: str) -> Fault:
        with self._lock:
            for number, (wanted, part, fault) in enumerate(self._faults):
                if wanted == method and part in path:
                    del self._faults[number]
                    return fault
            return Fault()

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler needs its own self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                path = self.path
                if path.startswith("http://"):  # as a client behind a forward proxy asks
                    parts = urlsplit(path)
                    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy._next(self.command, path)
                if fault.status is not None:
                    self.answer(
                        fault.status, list(fault.headers.items()), b'{"detail": "injected"}'
                    )
                    return
                time.sleep(fault.delay_s)
                status, headers, content = proxy._pass_on(
                    self.command, path, dict(self.headers.items()), body
                )
                if fault.then:
                    fault.then()
                if fault.lose_answer:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.answer(status, headers, content)

            def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                try:
                    self.send_response_only(status)
                    for name, value in headers:
                        if name.lower() not in _HOP:
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True  # the client has given up

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler

    def _pass_on(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        link = http.client.HTTPConnection(self.target.netloc, timeout=120)
        kept = {name: value for name, value in headers.items() if name.lower() not in _HOP}
        try:
            link.request(method, path, body, kept)
            answer = link.getresponse()
            content = answer.read()
        except OSError:
            return 502, [], b'{"detail": "nobody behind the proxy"}'
        finally:
            link.close()
        with self._lock:
            self.calls.append((method, path))
        return answer.status, answer.getheaders(), content
