"""Free ports and health checks."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.services import probes


def listener() -> socket.socket:
    return socket.create_server((probes.LOOPBACK, 0))


def test_a_used_port_is_not_chosen() -> None:
    with listener() as server:
        taken = server.getsockname()[1]
        assert not probes.is_port_free(taken)
        assert probes.choose_port(taken) != taken


def test_the_preferred_port_is_chosen() -> None:
    port = probes.choose_port()
    assert probes.choose_port(port) == port


def test_a_port_that_becomes_free_in_time_is_chosen() -> None:
    server = listener()
    port = server.getsockname()[1]
    closing = threading.Timer(0.2, server.close)
    closing.start()
    assert probes.choose_port(port, timeout_s=20.0) == port
    closing.join()


def test_a_closed_connection_does_not_block_the_port() -> None:
    with listener() as server:
        port = server.getsockname()[1]
        with socket.create_connection((probes.LOOPBACK, port)):
            answered, _ = server.accept()
            answered.close()  # the server's side closes first and lingers in TIME_WAIT
    assert probes.is_port_free(port)


# Health checks


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def web() -> Iterator[int]:
    with http.server.ThreadingHTTPServer((probes.LOOPBACK, 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_only_status_2xx_is_ok(web: int) -> None:
    assert probes.http_ok(f"http://127.0.0.1:{web}/health")
    assert not probes.http_ok(f"http://127.0.0.1:{web}/elsewhere")
    assert probes.http_status(f"http://127.0.0.1:{web}/elsewhere") == 503


def test_no_server() -> None:
    port = probes.choose_port()
    assert probes.http_status(f"http://127.0.0.1:{port}/health") == 0
    assert not probes.mongod_ok("/nowhere/mongod.sock")


@pytest.mark.parametrize("url", ["http://127.0.0.1:notaport/", "http://", "nonsense"])
def test_invalid_addresses(url: str) -> None:
    assert probes.http_status(url) == 0


def test_a_server_of_another_protocol_is_not_a_mongod(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert not probes.mongod_ok(path)
        thread.join()


def test_a_server_that_never_answers_is_not_ok(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        assert not probes.mongod_ok(path, timeout_s=0.2)
    with socket.socket() as server:
        server.bind((probes.LOOPBACK, 0))
        server.listen()
        port = server.getsockname()[1]
        assert not probes.http_ok(f"http://127.0.0.1:{port}/", timeout_s=0.2)
