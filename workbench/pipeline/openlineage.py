"""Runs and steps as OpenLineage events, for systems that collect lineage.

``WORKBENCH_OPENLINEAGE`` names the target: a file that gets one line per event, or an http(s)
address (the standard's own path is added to an address without one; ``OPENLINEAGE_API_KEY`` is sent
as a bearer token). Events are sent from a background thread, best effort: a failure to send never
delays or fails a run.

A job is ``PIPELINE`` or ``PIPELINE.STEP``; a dataset is a record, named by its reference.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from openlineage.client.event_v2 import (
    InputDataset,
    Job,
    OutputDataset,
    Run,
    RunEvent,
    RunState,
    set_producer,
)
from openlineage.client.facet_v2 import (
    DatasetFacet,
    JobFacet,
    RunFacet,
    dataset_version_dataset,
    error_message_run,
    job_type_job,
    parent_run,
)
from openlineage.client.serde import Serde

from workbench.core import secret_scan
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.pipeline import runs
from workbench.records.base import Ref, digest_of, kind_of

__all__ = ()

API_KEY_VARIABLE = "OPENLINEAGE_API_KEY"

_NAMESPACE = "workbench"
_ENDED_FILE = "openlineage-ended"
"""In the folder of a killed run, once its end has been reported."""

_TIMEOUT_S = (2.0, 5.0)
_CLOSE_TIMEOUT_S = 10.0
_MAX_FAILURES = 3
_log = logging.getLogger(__name__)

set_producer(f"urn:workbench:{version('workbench')}")


class LineageEvents:
    """The events of one pipeline run. All methods return at once, except `close`.

    Args:
        target: A file or an http(s) address.
        pipeline: Name of the pipeline, the job of the parent run.
        run_id: The run's id here; with the workspace it decides the ids in the events.
        workspace: Identifies this workspace among others.
    """

    def __init__(self, target: str, *, pipeline: str, run_id: str, workspace: str) -> None:
        self._target = target
        self._pipeline, self._run_id, self._workspace = pipeline, run_id, workspace
        self._queue: queue.Queue[Callable[[], RunEvent] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._drain, name="openlineage", daemon=True)
        self._thread.start()

    def run_started(self, parameters: Mapping[str, Any]) -> None:
        self._put(RunState.START, None, {"workbench_parameters": _run_facet(parameters=parameters)})

    def run_ended(self, status: str, reason: str = "", *, waiting: bool = False) -> None:
        """``status`` as in `step_ended`."""
        self._put(_end_state(status, waiting), None, _outcome_facets(status, reason, waiting))

    def step_started(
        self, step: str, parameters: Mapping[str, Any], inputs: Sequence[Ref], notebook: str
    ) -> None:
        facets = {"workbench_parameters": _run_facet(parameters=parameters)}
        self._put(RunState.START, step, facets, inputs=inputs, notebook=notebook)

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
        """Report the end of a step.

        Args:
            status: MLflow's status: FINISHED, FAILED or KILLED.
            reason: Why it failed or waits.
            waiting: The step waits for people.
        """
        facets = _outcome_facets(status, reason, waiting)
        self._put(_end_state(status, waiting), step, facets, inputs=inputs, outputs=outputs)

    def end_abandoned(self, workspace: Workspace) -> None:
        """Report the end of runs of this pipeline whose runner was killed, each once."""
        for run in runs.list_runs(workspace, self._pipeline):
            mark = workspace.runs / run.run_id / _ENDED_FILE
            if run.state != "killed" or mark.exists():
                continue
            facets = _outcome_facets("KILLED", "the runner was killed", waiting=False)
            for step in run.steps:
                if step.status == "running":
                    self._put(RunState.ABORT, step.name, facets, run_id=run.run_id)
            self._put(RunState.ABORT, None, facets, run_id=run.run_id)
            mark.touch()

    def close(self) -> None:
        """Wait until all events are sent, at most ten seconds."""
        self._queue.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _put(
        self,
        state: RunState,
        step: str | None,
        run_facets: Mapping[str, RunFacet],
        *,
        inputs: Sequence[Ref] = (),
        outputs: Sequence[Ref] = (),
        notebook: str = "",
        run_id: str | None = None,
    ) -> None:
        run = run_id or self._run_id
        job_name = f"{self._pipeline}.{step}" if step else self._pipeline
        time = datetime.now(UTC).isoformat(timespec="milliseconds")

        def event() -> RunEvent:
            facets = dict(run_facets)
            if step is not None:
                facets["parent"] = parent_run.ParentRunFacet(
                    run=parent_run.Run(self._uuid(run, None)),
                    job=parent_run.Job(_NAMESPACE, self._pipeline),
                )
            return RunEvent(
                eventType=state,
                eventTime=time,
                run=Run(self._uuid(run, step), facets=facets),
                job=Job(_NAMESPACE, job_name, facets=_job_facets(step, notebook)),
                inputs=[InputDataset(_NAMESPACE, r, facets=_record_facets(r)) for r in inputs],
                outputs=[OutputDataset(_NAMESPACE, r, facets=_record_facets(r)) for r in outputs],
            )

        self._queue.put(event)

    def _uuid(self, run_id: str, step: str | None) -> str:
        """Equal for the same run in every process, so that its end matches its start."""
        name = f"workbench:{self._workspace}:{run_id}{f'/{step}' if step else ''}"
        return str(uuid.uuid5(uuid.NAMESPACE_URL, name))

    def _drain(self) -> None:
        failures = 0
        while (event := self._queue.get()) is not None:
            if failures >= _MAX_FAILURES:
                continue
            try:
                _send(self._target, event())
                failures = 0
            except Exception as error:
                failures += 1
                if failures == 1:
                    message = secret_scan.mask(str(error))
                    _log.warning("OpenLineage events cannot be sent: %s", message)


def _send(target: str, event: RunEvent) -> None:
    if target.startswith(("http://", "https://")):
        path = urlsplit(target).path.rstrip("/")
        _post(target if path else f"{target.rstrip('/')}/api/v1/lineage", event)
    else:
        _append_to_file(Path(target).expanduser(), event)


def _append_to_file(path: Path, event: RunEvent) -> None:
    """One write to the end of the file, so that lines of concurrent runs do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, f"{Serde.to_json(event)}\n".encode())
    finally:
        os.close(handle)


def _post(address: str, event: RunEvent) -> None:
    import requests

    key = os.environ.get(API_KEY_VARIABLE)
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    response = requests.post(
        address,
        data=Serde.to_json(event).encode(),
        headers=headers,
        timeout=_TIMEOUT_S,
        allow_redirects=False,
    )
    if not response.ok or response.is_redirect:
        raise requests.HTTPError(f"{urlsplit(address).netloc}: status {response.status_code}")


def _end_state(status: str, waiting: bool) -> RunState:
    """Waiting is no failure, but there is no result either: ABORT."""
    if waiting or status == "KILLED":
        return RunState.ABORT
    return RunState.COMPLETE if status == "FINISHED" else RunState.FAIL


def _outcome_facets(status: str, reason: str, waiting: bool) -> dict[str, RunFacet]:
    if waiting:
        return {"workbench_waiting": _run_facet(reason=reason)}
    if status == "FINISHED":
        return {}
    message = reason or status.lower()
    return {"errorMessage": error_message_run.ErrorMessageRunFacet(message, "PYTHON")}


def _job_facets(step: str | None, notebook: str) -> dict[str, JobFacet]:
    kind = "TASK" if step else "DAG"
    facets: dict[str, JobFacet] = {
        "jobType": job_type_job.JobTypeJobFacet("BATCH", "WORKBENCH", jobType=kind)
    }
    if notebook:
        facet = JobFacet().with_additional_properties(name=notebook)
        facets["workbench_notebook"] = cast(JobFacet, facet)
    return facets


def _record_facets(ref: Ref) -> dict[str, DatasetFacet]:
    record: Json = {"kind": kind_of(ref), "sha256": digest_of(ref)}
    return {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(digest_of(ref)),
        "workbench_record": cast(DatasetFacet, DatasetFacet().with_additional_properties(**record)),
    }


def _run_facet(**fields: Any) -> RunFacet:
    """A facet of our own."""
    plain = {name: dict(v) if isinstance(v, Mapping) else v for name, v in fields.items()}
    return cast(RunFacet, RunFacet().with_additional_properties(**plain))
