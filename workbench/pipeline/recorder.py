"""Writes a run into MLflow while it happens, from a thread of its own.

MLflow takes seconds to import and can be slow to answer; the steps do not wait for it. What could
not be written is not lost: every finished step carries a mark once MLflow has all of it, and the
next run writes what is missing from the step's folder.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.pipeline.live import StepFiles
from workbench.pipeline.runner import EXECUTED
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import Release, StepRun
from workbench.tracking import Point, Tracker

MARK = "mlflow"
"""Side file of a step's run record once MLflow has it."""


@dataclass(frozen=True)
class Begun:
    """What is known when a step starts."""

    step: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Ref]
    tags: Mapping[str, str]
    folder: Path


class Recorder:
    """One pipeline run in MLflow. All methods return at once, except `close`."""

    def __init__(
        self, connect: Callable[[], Tracker], store: Store, tags: Mapping[str, str]
    ) -> None:
        self._store = store
        self._tags = dict(tags)
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._children: dict[str, str] = {}
        self._parent = ""
        self._error: Exception | None = None
        self._connect = connect
        self._tracker: Tracker | None = None
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Begin the parent run, and end those that a killed runner left running."""

        def work() -> None:
            pipeline = {"workbench.pipeline": self._tags["workbench.pipeline"]}
            self._mlflow.end_abandoned(
                {**pipeline, "workbench.workspace": self._tags["workbench.workspace"]}
            )
            self._parent = self._mlflow.start(name, tags=self._tags, parameters=parameters)

        self._work.put(work)

    def step_begun(self, begun: Begun) -> None:
        def work() -> None:
            self._children[begun.step] = self._mlflow.start(
                begun.step,
                tags={**self._tags, **begun.tags, "workbench.step": begun.step},
                parameters=begun.parameters,
                parent=self._parent,
            )
            run_id = self._children[begun.step]
            self._mlflow.log_records(run_id, begun.inputs, context="input")

        self._work.put(work)

    def points(self, step: str, points: list[Point]) -> None:
        if points:
            self._work.put(lambda: self._mlflow.log_points(self._children[step], points))

    def step_ended(
        self, begun: Begun, status: str, tags: Mapping[str, str], run: Ref | None
    ) -> None:
        """End a step's run with its files; ``run`` is its record when it finished well."""

        def work() -> None:
            run_id = self._children[begun.step]
            executed, figures = begun.folder / EXECUTED, begun.folder / "figures"
            files = [path for path in (executed, begun.folder / "result.json") if path.exists()]
            self._mlflow.log_files(run_id, files)
            if figures.exists():
                self._mlflow.log_files(run_id, [figures], "figures")
            if run is not None:
                self._mark(run, run_id)
            self._mlflow.end(run_id, status, tags)

        self._work.put(work)

    def register(self, step: str, release_ref: Ref, bundle: Path, notes: Mapping[str, str]) -> None:
        """Register a release as ``candidate``, and as ``champion`` when its gates passed."""

        def work() -> None:
            release = self._store.get(release_ref, Release)
            run_id = self._children[step]
            self._mlflow.log_files(run_id, [bundle], "bundle")
            aliases = ["candidate", *(["champion"] if release.promoted else [])]
            tags = {
                **notes,
                "workbench.release": release_ref,
                "workbench.bundle": release.bundle,
                "workbench.gates": release.gates,
                "workbench.verdict": release.verdict.value,
            }
            version = self._mlflow.register(
                release.model, run_id, source="bundle", tags=tags, aliases=aliases
            )
            self._store.write_side(release_ref, "registry", {"version": version, "run": run_id})

        self._work.put(work)

    def write_missing(self, begun: Begun, run: Ref) -> None:
        """Write a step that finished earlier but never reached MLflow."""
        self.step_begun(begun)
        self.points(begun.step, StepFiles(begun.folder).points())
        self.step_ended(begun, "FINISHED", {"workbench.written": "later"}, run)

    def end(self, status: str, tags: Mapping[str, str]) -> None:
        self._work.put(lambda: self._mlflow.end(self._parent, status, tags))

    def url(self) -> str | None:
        return self._tracker.run_url(self._parent) if self._tracker and self._parent else None

    def close(self) -> Exception | None:
        """Wait until all is written; returns what kept it from being, if anything did."""
        self._work.put(None)
        self._thread.join()
        return self._error

    @property
    def _mlflow(self) -> Tracker:
        if self._tracker is None:
            self._tracker = self._connect()
        return self._tracker

    def _drain(self) -> None:
        while (work := self._work.get()) is not None:
            if self._error is None:
                self._attempt(work)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except WorkbenchError:
            try:
                self._tracker = self._connect()  # it may have been restarted elsewhere
                work()
            except Exception as error:
                self._error = error
        except Exception as error:
            self._error = error

    def _mark(self, run: Ref, run_id: str) -> None:
        record = self._store.get(run, StepRun)
        self._mlflow.log_records(run_id, record.outputs, context="output")
        self._store.write_side(run, MARK, {"run": run_id})
