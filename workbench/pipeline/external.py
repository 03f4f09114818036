"""The servers and the MLflow run of a pipeline run, each started only when needed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from workbench import services
from workbench.core import digest
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline.cache import KeyIndex, StepKey
from workbench.pipeline.graph import Pipeline
from workbench.pipeline.plan import PlannedStep
from workbench.pipeline.recorder import TRACKED_MARK, RunRecorder, StepStart
from workbench.pipeline.spec import StepResult
from workbench.records.base import Ref, digest_of, kind_of
from workbench.records.model_types import Release
from workbench.records.store import Store
from workbench.tracking import MetricPoint, Tracker

EXPERIMENT = "workbench"


class ExternalServices:
    """A run's servers and its record in MLflow. Safe to use from several threads once begun."""

    def __init__(self, place: Workspace, pipeline: Pipeline, run_id: str) -> None:
        self.place = place
        self.pipeline = pipeline
        self.run_id = run_id
        self._store = Store(place)
        self._recorder: RunRecorder | None = None
        self._starter = ThreadPoolExecutor(max_workers=1)
        self._servers: Future[Any] | None = None
        self._lock = threading.Lock()

    def begin(self) -> RunRecorder:
        """The first step that has to run starts servers and MLflow in the background."""
        if self._recorder is None:
            needed = {"mlflow"}
            for step in self.pipeline.steps.values():
                needed.update(step.contract.declaration.services)
            names = tuple(name for name in services.SERVICE_NAMES if name in needed)
            self._servers = self._starter.submit(services.up, self.place, names)
            tags = {
                "workbench.pipeline": self.pipeline.name,
                "workbench.run": self.run_id,
                "workbench.workspace": digest.of_bytes(str(self.place.root).encode())[:16],
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
        """Variables that lead a step to these servers, which run when this returns."""
        if not names:
            return {}
        if self._servers is not None:
            self._servers.result()
        with self._lock:
            services.up(self.place, names)  # one may have died since
            return services.environment(self.place, names)

    def step_begun(self, planned: PlannedStep, folder: Path) -> None:
        self.begin().step_started(step_started_info(planned, folder))

    def points(self, step: str, points: list[MetricPoint]) -> None:
        self.begin().log_points(step, points)

    def step_ended(
        self,
        planned: PlannedStep,
        folder: Path,
        status: str,
        tags: Mapping[str, str],
        run: Ref | None,
    ) -> None:
        self.begin().step_ended(step_started_info(planned, folder), status, tags, run)

    def write_missing(self, planned: PlannedStep, key: StepKey, made: Mapping[str, Ref]) -> None:
        """Tell MLflow about a skipped step if it has never heard of it."""
        ref = KeyIndex(self.place).run_ref(key)
        releases = [out for out in made.values() if kind_of(out) == Release.KIND]
        unwritten = [out for out in releases if self._store.side(out, "registry") is None]
        if ref and (unwritten or self._store.side(ref, TRACKED_MARK) is None):
            folder = Path((self._store.side(ref, "place") or {}).get("folder", ""))
            self.begin().write_missing(step_started_info(planned, folder), ref)
            self.register(planned.name, made)

    def register(self, step: str, made: Mapping[str, Ref]) -> None:
        """Register the releases among a step's outputs."""
        for ref in made.values():
            if kind_of(ref) == Release.KIND:
                release = self._store.get(ref, Release)
                bundle = digest_of(release.bundle)
                folder = self.place.release_folder(release.model, bundle)
                self.begin().register(step, ref, folder, {"workbench.digest": bundle})

    def close(self, status: str, tags: Mapping[str, str]) -> Exception | None:
        """End the run in MLflow; returns what kept it from being written, if anything did."""
        self._starter.shutdown(wait=False)
        if self._recorder is None:
            return None
        self._recorder.end(status, tags)
        return self._recorder.close()

    def _secrets(self) -> dict[str, str]:
        """Values of the secrets that steps may ask for, which must not leave with the record."""
        steps = self.pipeline.steps.values()
        names = {name for step in steps for name in step.contract.declaration.secrets}
        return {name: os.environ[name] for name in names if os.environ.get(name)}

    def _connect(self) -> Tracker:
        if self._servers is not None:
            with contextlib.suppress(WorkbenchError):
                self._servers.result()  # a server that MLflow does not need may have failed
        with self._lock:
            services.up(self.place, ("mlflow",))
            uri = services.environment(self.place, ("mlflow",))["MLFLOW_TRACKING_URI"]
        return Tracker(uri, EXPERIMENT)


def step_started_info(planned: PlannedStep, folder: Path) -> StepStart:
    """What is known when a step starts, as the recorder wants it."""
    assert planned.key is not None  # noqa: S101 - for mypy: its inputs are known by now
    contract = planned.step.contract
    return StepStart(
        step=planned.name,
        parameters=planned.step.parameters,
        inputs={name: given for name, given in planned.inputs.items() if given},
        tags={"workbench.key": planned.key.digest, "workbench.notebook": contract.name},
        folder=folder,
    )


def cost_tags(result: StepResult) -> dict[str, str]:
    """What a step cost, as tags."""
    return {f"workbench.{name}": str(value) for name, value in result.cost.items()}
