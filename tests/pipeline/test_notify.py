"""Notifications: what is sent, to whom, and that a dead target fails nothing."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from workbench.core.errors import ParameterError
from workbench.pipeline.execution import StepReport
from workbench.pipeline.notify import check_targets, notify
from workbench.pipeline.run import RunReport, RunStatus


def report(status: RunStatus) -> RunReport:
    step = StepReport(name="train", status="failed", reason="out of memory")
    return RunReport(pipeline="engine", run_id="r-1", status=status, steps=(step,), outputs={})


@contextmanager
def served(server: socketserver.BaseServer) -> Iterator[int]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        server.server_close()


def test_a_webhook_gets_the_reason_the_next_step_and_the_page() -> None:
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with served(HTTPServer(("127.0.0.1", 0), Handler)) as port:
        targets = check_targets([f"http://127.0.0.1:{port}/hook"])
        assert notify(targets, report("failed"), "http://mlflow/run") == []
        assert notify(targets, report("succeeded")) == []
        assert notify(targets, report("cancelled")) == []
    assert [body["status"] for body in bodies] == ["failed"]
    assert "run r-1" in bodies[0]["text"] and "train: out of memory" in bodies[0]["text"]
    assert "continues at the failed step" in bodies[0]["text"]
    assert bodies[0]["url"] == "http://mlflow/run" in bodies[0]["text"]


def test_mail_goes_through_the_given_server(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            data = False
            for raw in self.rfile:
                line = raw.decode().rstrip("\r\n")
                received.append(line)
                if data and line != ".":
                    continue
                data = line.upper() == "DATA"
                codes = {"DATA": b"354 go on\r\n", "QUIT": b"221 bye\r\n"}
                self.wfile.write(codes.get(line.upper(), b"250 ok\r\n"))

    with served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        monkeypatch.setenv("WORKBENCH_SMTP", f"127.0.0.1:{port}")
        assert notify(["mailto:ada@example.com"], report("waiting")) == []
    assert "rcpt TO:<ada@example.com>" in received
    assert "Subject: engine waiting: run r-1" in received
    assert any("Label the frames in Label Studio" in line for line in received)


def test_a_dead_target_is_a_sentence_without_its_token() -> None:
    problems = notify(["http://127.0.0.1:9/hook?token=abcdefgh12345678"], report("refused"))
    assert len(problems) == 1 and problems[0].startswith("no notification to http://127.0.0.1:9")
    assert "abcdefgh12345678" not in problems[0]


@pytest.mark.parametrize("target", ["ada@example.com", "https://", "file:///etc/passwd", "mailto:"])
def test_an_invalid_target_is_refused_before_the_run(target: str) -> None:
    with pytest.raises(ParameterError, match="invalid target"):
        check_targets([target])
