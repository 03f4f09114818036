"""OpenLineage events: valid by the standard, complete, and never blocking a run."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.pipeline.test_recorder import TAGS, record_step, step_start
from tests.pipeline.test_runs import save
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline.openlineage import API_KEY_VARIABLE, LineageEvents
from workbench.pipeline.recorder import EVENTS_VARIABLE, RunRecorder
from workbench.records.store import Store
from workbench.tracking import Tracker

# What the standard (2-0-2) requires of a RunEvent and of each facet, in short.
FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {"_producer": {"format": "uri"}, "_schemaURL": {"format": "uri"}},
    },
}
JOB = {"type": "object", "required": ["namespace", "name"], "properties": {"facets": FACETS}}
EVENT = {
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "eventTime": {"type": "string", "format": "date-time"},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"format": "uuid"}, "facets": FACETS},
        },
        "job": JOB,
        "inputs": {"type": "array", "items": JOB},
        "outputs": {"type": "array", "items": JOB},
    },
}


def checked(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for event in events:
        jsonschema.validate(event, EVENT, format_checker=jsonschema.FormatChecker())
        uuid.UUID(event["run"]["runId"])
    return events


def read_events(path: Path) -> list[dict[str, Any]]:
    return checked([json.loads(line) for line in path.read_text().splitlines()])


def send_events(events: LineageEvents) -> None:
    events.run_started({"n": 1})
    events.step_started("a", {"n": 1}, ["dataset/" + "0" * 64], "a.ipynb")
    events.step_ended("a", "FAILED", reason="KeyError: 'gone'")
    events.run_ended("FAILED", "a: KeyError")
    events.close()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A server that accepts events; yields its address and the requests."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def test_the_recorder_sends_events_without_mlflow(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(path))

    def away() -> Tracker:
        raise WorkbenchError("MLflow is away")

    recorder = RunRecorder(away, store, TAGS, project=tmp_path)
    first, run = record_step(store, "a", {}, 1)
    one, two = step_start(tmp_path, "a"), step_start(tmp_path, "b", {"all": (first, first)})
    recorder.start("trial r1", {"n": 1})
    recorder.step_started(one)
    recorder.step_ended(one, "FINISHED", {}, run)
    recorder.step_started(two)
    recorder.step_ended(two, "FINISHED", {"workbench.failure": "0 of 3 done"}, None)
    recorder.end("FINISHED", {"workbench.waiting": "True"})
    assert recorder.close() is not None
    events = read_events(path)
    assert [(one["job"]["name"], one["eventType"]) for one in events] == [
        ("trial", "START"),
        ("trial.a", "START"),
        ("trial.a", "COMPLETE"),
        ("trial.b", "START"),
        ("trial.b", "ABORT"),
        ("trial", "ABORT"),
    ]
    assert [one["name"] for one in events[2]["outputs"]] == [first]
    assert [one["name"] for one in events[3]["inputs"]] == [first, first]
    assert events[2]["outputs"][0]["facets"]["version"]["datasetVersion"] == first.split("/")[1]
    parent = events[1]["run"]["facets"]["parent"]
    assert parent["run"]["runId"] == events[0]["run"]["runId"] == events[-1]["run"]["runId"]
    assert events[1]["run"]["runId"] == events[2]["run"]["runId"] != events[3]["run"]["runId"]
    assert events[4]["run"]["facets"]["workbench_waiting"]["reason"] == "0 of 3 done"


def test_events_are_posted_to_an_address(
    collector: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, requests = collector
    monkeypatch.setenv(API_KEY_VARIABLE, "k1")
    send_events(LineageEvents(address, pipeline="trial", run_id="r1", workspace="w"))
    send_events(LineageEvents(f"{address}/own/path", pipeline="trial", run_id="r2", workspace="w"))
    assert {(path, key) for path, key, _ in requests[:4]} == {("/api/v1/lineage", "Bearer k1")}
    assert {path for path, _, _ in requests[4:]} == {"/own/path"}
    events = checked([body for _, _, body in requests])
    assert [one["eventType"] for one in events[:4]] == ["START", "START", "FAIL", "FAIL"]
    assert events[2]["run"]["facets"]["errorMessage"]["message"] == "KeyError: 'gone'"
    assert events[0]["run"]["runId"] != events[4]["run"]["runId"]


@pytest.mark.parametrize("target", ["http://127.0.0.1:9", "/proc/nothing/here.jsonl"])
def test_an_unreachable_target_is_one_warning_and_no_delay(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        send_events(LineageEvents(target, pipeline="trial", run_id="r1", workspace="w"))
    assert time.monotonic() - started < 5
    assert len([one for one in caplog.records if "OpenLineage" in one.message]) == 1


def test_a_killed_run_is_ended_once_by_the_next_run(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    steps = ({"name": "a", "status": "ran"}, {"name": "b", "status": "running"})
    save(workspace, "r1", status="running", pid=2**22 + 1, steps=steps)
    save(workspace, "r2", status="succeeded")
    for _ in range(2):
        events = LineageEvents(str(path), pipeline="trial", run_id="r3", workspace="w")
        events.end_abandoned(workspace)
        events.close()
    ended = read_events(path)
    assert [(one["job"]["name"], one["eventType"]) for one in ended] == [
        ("trial.b", "ABORT"),
        ("trial", "ABORT"),
    ]
    before = LineageEvents(str(path), pipeline="trial", run_id="r1", workspace="w")
    before.run_started({})
    before.close()
    assert read_events(path)[-1]["run"]["runId"] == ended[1]["run"]["runId"]


def test_concurrent_runs_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    some = [LineageEvents(str(path), pipeline="p", run_id=str(n), workspace="w") for n in range(8)]
    threads = [threading.Thread(target=send_events, args=(one,)) for one in some]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_events(path)) == 32
