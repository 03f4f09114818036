"""Runs and steps as OpenLineage events."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from workbench import __version__
from workbench.core.workspace import Workspace
from workbench.pipeline import runs
from workbench.records.base import Ref, digest_of, kind_of

TARGET_VARIABLE = "WORKBENCH_OPENLINEAGE"
API_KEY_VARIABLE = "OPENLINEAGE_API_KEY"
_NAMESPACE = "workbench"

_ENDED_FILE = "openlineage-ended"
"""In the folder of a killed run once its end has been told."""

_SPEC = "https://openlineage.io/spec"
_PRODUCER = f"urn:workbench:{__version__}"
_TIMEOUT_S = (2.0, 5.0)
_CLOSE_WITHIN_S = 10.0
_FAILURES_UNTIL_SILENT = 3

Json = dict[str, Any]
EventType = Literal["START", "COMPLETE", "FAIL", "ABORT"]
_log = logging.getLogger(__name__)


class LineageEvents:
    """The events of one pipeline run. All methods return at once, except `close`.

    Args:
        target: A file or an http(s) address.
        pipeline: Its name, the job of the parent run.
        run_id: The run's id here; with the workspace it decides the ids that events carry.
        workspace: What tells this workspace's runs from another's.
    """

    def __init__(self, target: str, *, pipeline: str, run_id: str, workspace: str) -> None:
        self._send = _sender(target)
        self._pipeline, self._run_id, self._workspace = pipeline, run_id, workspace
        self._queue: queue.Queue[Json | None] = queue.Queue()
        self._failures = 0
        self._thread = threading.Thread(target=self._drain, name="openlineage", daemon=True)
        self._thread.start()

    def run_begun(self, parameters: Mapping[str, Any]) -> None:
        self._put("START", None, {"workbench_parameters": _facet(parameters=dict(parameters))})

    def run_ended(self, status: str, reason: str = "", *, waiting: bool = False) -> None:
        self._put(
            _event_type(status, waiting=waiting),
            None,
            _outcome_facets(status, reason, waiting=waiting),
        )

    def step_begun(
        self, step: str, parameters: Mapping[str, Any], inputs: Sequence[Ref], notebook: str
    ) -> None:
        facets = {"workbench_parameters": _facet(parameters=dict(parameters))}
        self._put("START", step, facets, inputs=inputs, notebook=notebook)

    def step_ended(
        self,
        step: str,
        status: str,
        *,
        inputs: Sequence[Ref] = (),
        outputs: Sequence[Ref] = (),
        reason: str = "",
        waiting: bool = False,
    ) -> None:
        """``status`` is MLflow's word: FINISHED, FAILED or KILLED."""
        facets = _outcome_facets(status, reason, waiting=waiting)
        kind = _event_type(status, waiting=waiting)
        self._put(kind, step, facets, inputs=inputs, outputs=outputs)

    def end_abandoned(self, place: Workspace) -> None:
        """End runs of this pipeline whose runner was killed, each once: it could not do so."""
        for run in runs.list_runs(place, self._pipeline):
            told = place.runs / run.run_id / _ENDED_FILE
            if run.state != "killed" or told.exists():
                continue
            facets = _outcome_facets("KILLED", "the runner was killed", waiting=False)
            for step in run.steps:
                if step.status == "running":
                    self._put("ABORT", step.name, facets, run_id=run.run_id)
            self._put("ABORT", None, facets, run_id=run.run_id)
            told.touch()

    def close(self) -> None:
        """Wait for what is on its way, but not for long."""
        self._queue.put(None)
        self._thread.join(_CLOSE_WITHIN_S)

    def _put(
        self,
        kind: EventType,
        step: str | None,
        run_facets: Json,
        *,
        inputs: Sequence[Ref] = (),
        outputs: Sequence[Ref] = (),
        notebook: str = "",
        run_id: str | None = None,
    ) -> None:
        run_id = run_id or self._run_id
        if step is not None:
            parent = {"run": {"runId": self._uuid(run_id, None)}, "job": self._job(None)}
            run_facets = {**run_facets, "parent": _facet("1-0-1/ParentRunFacet", **parent)}
        event = {
            "eventType": kind,
            "eventTime": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "producer": _PRODUCER,
            "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
            "run": {"runId": self._uuid(run_id, step), "facets": run_facets},
            "job": {**self._job(step), "facets": _job_facets(step, notebook)},
            "inputs": [_dataset(ref) for ref in inputs],
            "outputs": [_dataset(ref) for ref in outputs],
        }
        self._queue.put(event)

    def _job(self, step: str | None) -> Json:
        return {
            "namespace": _NAMESPACE,
            "name": f"{self._pipeline}.{step}" if step else self._pipeline,
        }

    def _uuid(self, run_id: str, step: str | None) -> str:
        """The same for the same run wherever it is asked, so that its end finds its start."""
        name = f"workbench:{self._workspace}:{run_id}{f'/{step}' if step else ''}"
        return str(uuid.uuid5(uuid.NAMESPACE_URL, name))

    def _drain(self) -> None:
        while (event := self._queue.get()) is not None:
            if self._failures >= _FAILURES_UNTIL_SILENT:
                continue
            try:
                self._send(event)
                self._failures = 0
            except Exception as error:
                self._failures += 1
                if self._failures == 1:
                    _log.warning("OpenLineage events do not arrive: %s", error)


def events_from_environment(*, pipeline: str, run_id: str, workspace: str) -> LineageEvents | None:
    """Events to where the environment says, or None where it says nothing."""
    target = os.environ.get(TARGET_VARIABLE, "").strip()
    if not target:
        return None
    return LineageEvents(target, pipeline=pipeline, run_id=run_id, workspace=workspace)


def _sender(target: str) -> Any:
    if target.startswith(("http://", "https://")):
        path = urlsplit(target).path.rstrip("/")
        address = target if path else f"{target.rstrip('/')}/api/v1/lineage"
        return lambda event: _post(address, event)
    return lambda event: _append_to_file(Path(target).expanduser(), event)


def _append_to_file(path: Path, event: Json) -> None:
    """One write to the end of the file: lines of runs side by side do not mix."""
    line = (json.dumps(event) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def _post(address: str, event: Json) -> None:
    import requests

    key = os.environ.get(API_KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = requests.post(
        address, json=event, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False
    )
    if not answer.ok or answer.is_redirect:
        raise requests.HTTPError(f"{urlsplit(address).netloc} answered {answer.status_code}")


def _event_type(status: str, *, waiting: bool) -> EventType:
    """Waiting is no failure, but nothing was made either: the run was left off."""
    if waiting or status == "KILLED":
        return "ABORT"
    return "COMPLETE" if status == "FINISHED" else "FAIL"


def _outcome_facets(status: str, reason: str, *, waiting: bool) -> Json:
    if waiting:
        return {"workbench_waiting": _facet(reason=reason)}
    if status == "FINISHED":
        return {}
    message = {"message": reason or status.lower(), "programmingLanguage": "PYTHON"}
    return {"errorMessage": _facet("facets/1-0-0/ErrorMessageRunFacet", **message)}


def _job_facets(step: str | None, notebook: str) -> Json:
    kind = {"processingType": "BATCH", "integration": "WORKBENCH"}
    facets = {
        "jobType": _facet("facets/2-0-3/JobTypeJobFacet", **kind, jobType="TASK" if step else "DAG")
    }
    if notebook:
        facets["workbench_notebook"] = _facet(name=notebook)
    return facets


def _dataset(ref: Ref) -> Json:
    version = {"datasetVersion": digest_of(ref)}
    facets = {
        "version": _facet("facets/1-0-0/DatasetVersionDatasetFacet", **version),
        "workbench_record": _facet(kind=kind_of(ref), sha256=digest_of(ref)),
    }
    return {"namespace": _NAMESPACE, "name": ref, "facets": facets}


def _facet(spec: str = "2-0-2/OpenLineage", **fields: Any) -> Json:
    """A facet of the standard, or one of our own, whose form is only the base facet's."""
    name = "BaseFacet" if spec.endswith("OpenLineage") else spec.rpartition("/")[2]
    return {
        "_producer": _PRODUCER,
        "_schemaURL": f"{_SPEC}/{spec}.json#/$defs/{name}",
        **fields,
    }
