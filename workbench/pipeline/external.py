"""The servers and the MLflow run of a pipeline run, each started only when needed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench import services
from workbench.core import digest, secret_scan
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import redaction
from workbench.pipeline.cache import KeyIndex, StepKey
from workbench.pipeline.graph import Pipeline
from workbench.pipeline.plan import PlannedStep
from workbench.pipeline.recorder import TRACKED_MARK, RunRecorder, StepStart
from workbench.records.base import Ref, digest_of, kind_of
from workbench.records.model_types import Release
from workbench.records.releases import REGISTRY, release_folder
from workbench.records.store import Store
from workbench.tracking import MetricPoint, Tracker

__all__ = ()

EXPERIMENT = "workbench"
"""MLflow experiment of all runs."""


class ExternalServices:
    """A run's servers and its MLflow run. Thread-safe once `start` was called."""

    def __init__(self, workspace: Workspace, pipeline: Pipeline, run_id: str) -> None:
        self.workspace = workspace
        self.pipeline = pipeline
        self.run_id = run_id
        self._store = Store(workspace)
        self._recorder: RunRecorder | None = None
        self.registry_problems: list[str] = []
        self._starter = ThreadPoolExecutor(max_workers=1)
        self._servers: Future[Any] | None = None
        self._lock = threading.Lock()
        self._known: dict[str, str] | None = None

    def start(self) -> RunRecorder:
        """Start servers and MLflow in the background, unless that has been done."""
        if self._recorder is None:
            needed = {"mlflow"}
            for step in self.pipeline.steps.values():
                needed.update(step.contract.declaration.services)
            names = tuple(name for name in services.SERVICE_NAMES if name in needed)
            self._servers = self._starter.submit(services.up, self.workspace, names)
            tags = {
                "workbench.pipeline": self.pipeline.name,
                "workbench.run": self.run_id,
                "workbench.workspace": digest.of_bytes(str(self.workspace.root).encode())[:16],
            }
            self._recorder = RunRecorder(
                self._connect,
                self._store,
                tags,
                project=self.pipeline.file.parent.parent,
                secrets=self._secrets(),
            )
            self._recorder.start(f"{self.pipeline.name} {self.run_id}", self.pipeline.parameters)
        return self._recorder

    def environment(self, names: tuple[str, ...]) -> dict[str, str]:
        """Environment variables with the addresses of these servers, which are then running.

        An address with a password, which only the environment can have set, is a reference.
        """
        if not names:
            return {}
        if self._servers is not None:
            self._servers.result()
        with self._lock:
            services.up(self.workspace, names)  # one may have died since
            variables = services.environment(self.workspace, names)
        return {
            name: f"${{env:{name}}}" if secret_scan.mask(value) != value else value
            for name, value in variables.items()
        }

    def step_started(self, planned: PlannedStep, folder: Path) -> None:
        """Start the step's MLflow run."""
        self.start().step_started(_step_start(planned, folder))

    def log_points(self, step: str, points: list[MetricPoint]) -> None:
        """Log metrics of a running step, whose names are a notebook's text."""
        known = self._secrets()
        clean = [replace(point, name=secret_scan.mask(point.name, known)) for point in points]
        self.start().log_points(step, clean)

    def step_ended(
        self,
        planned: PlannedStep,
        folder: Path,
        status: str,
        tags: Mapping[str, str],
        run: Ref | None,
    ) -> None:
        """End the step's MLflow run.

        Args:
            planned: The step.
            folder: Its files.
            status: MLflow's: FINISHED, FAILED or KILLED.
            tags: Tags to set.
            run: Its run record, if it succeeded.
        """
        self.start().step_ended(_step_start(planned, folder), status, tags, run)

    def write_missing(self, planned: PlannedStep, key: StepKey, outputs: Mapping[str, Ref]) -> None:
        """Write a skipped step to MLflow if an earlier run could not."""
        ref = KeyIndex(self.workspace).run_ref(key)
        releases = [out for out in outputs.values() if kind_of(out) == Release.KIND]
        unregistered = [out for out in releases if self._store.side(out, REGISTRY) is None]
        if ref and (unregistered or self._store.side(ref, TRACKED_MARK) is None):
            folder = Path((self._store.side(ref, "place") or {}).get("folder", ""))
            self.start().write_missing(_step_start(planned, folder), ref)
            self.register(planned.name, outputs)

    def register(self, step: str, outputs: Mapping[str, Ref]) -> None:
        """Register the releases among a step's outputs."""
        for ref in outputs.values():
            if kind_of(ref) == Release.KIND:
                release = self._store.get(ref, Release)
                folder = release_folder(self.workspace, release)
                digest_tag = {"workbench.digest": digest_of(release.bundle)}
                self.start().register(step, ref, folder, digest_tag)

    def close(self, status: str, tags: Mapping[str, str]) -> Exception | None:
        """End the MLflow run; returns the error if it could not be written."""
        self._starter.shutdown(wait=False)
        if self._recorder is None:
            return None
        self._recorder.end(status, tags)
        error = self._recorder.close()
        self.registry_problems = self._recorder.problems
        return error

    def _secrets(self) -> dict[str, str]:
        """Secret values, which must not be written to MLflow."""
        if self._known is None:
            steps = self.pipeline.steps.values()
            names = {name for step in steps for name in step.contract.declaration.secrets}
            project = self.pipeline.file.parent.parent
            self._known = redaction.known_secrets(self.workspace, names, project)
        return self._known

    def _connect(self) -> Tracker:
        if self._servers is not None:
            with contextlib.suppress(WorkbenchError):
                self._servers.result()  # a server that MLflow does not need may have failed
        with self._lock:
            services.up(self.workspace, ("mlflow",))
            uri = services.tracking_address(self.workspace)
        return Tracker(uri, EXPERIMENT)


def _step_start(planned: PlannedStep, folder: Path) -> StepStart:
    assert planned.key is not None  # noqa: S101 - for mypy: its inputs are known by now
    return StepStart(
        step=planned.name,
        parameters=planned.step.parameters,
        inputs={name: given for name, given in planned.inputs.items() if given},
        tags={
            "workbench.key": planned.key.digest,
            "workbench.notebook": planned.step.contract.name,
        },
        folder=folder,
    )
