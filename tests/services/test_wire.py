"""Health questions: only a real answer of the right kind counts."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from workbench.services import ports, wire


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def web() -> Iterator[int]:
    with http.server.ThreadingHTTPServer((ports.LOOPBACK, 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_http_counts_only_success(web: int) -> None:
    assert wire.http_ok(f"http://127.0.0.1:{web}/health")
    assert not wire.http_ok(f"http://127.0.0.1:{web}/elsewhere")
    assert wire.http_status(f"http://127.0.0.1:{web}/elsewhere") == 503


def test_nobody_there() -> None:
    port = ports.choose()
    assert wire.http_status(f"http://127.0.0.1:{port}/health") == 0
    assert not wire.mongod_ok(port)


@pytest.mark.parametrize("url", ["http://127.0.0.1:notaport/", "http://", "nonsense"])
def test_an_address_that_is_none(url: str) -> None:
    assert wire.http_status(url) == 0


def test_a_web_server_is_no_mongod(web: int) -> None:
    assert not wire.mongod_ok(web)


def test_a_server_that_accepts_and_says_nothing_is_not_well() -> None:
    with socket.socket() as server:
        server.bind((ports.LOOPBACK, 0))
        server.listen()
        port = server.getsockname()[1]
        assert not wire.mongod_ok(port, timeout=0.2)
        assert not wire.http_ok(f"http://127.0.0.1:{port}/", timeout=0.2)
