"""Run a pipeline: skip what is done, run what is not, stop cleanly where it cannot go on."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from workbench import digest, services
from workbench.errors import WorkbenchError
from workbench.pipeline import contract as contracts
from workbench.pipeline import environment, executor, live, modules, plan, report
from workbench.pipeline.keys import KeyIndex
from workbench.pipeline.plan import Pipeline, PlannedStep
from workbench.pipeline.recorder import MARK, Begun, Recorder
from workbench.pipeline.report import RunReport, StepReport
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.records.base import Ref, digest_of, kind_of
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, NotebookSource, Release, StepRun
from workbench.tracking import Tracker
from workbench.workspace import Workspace

EXPERIMENT = "workbench"

_METRICS_EVERY_S = 3.0  # MLflow needs the cores that the step is working on


class Display(Protocol):
    """Whoever watches a run."""

    def note(self, message: str) -> None: ...
    def step_started(self, name: str, reasons: tuple[str, ...]) -> None: ...
    def step_progress(self, name: str, done: int, total: int) -> None: ...
    def step_ended(self, step: StepReport) -> None: ...


def run(
    place: Workspace, pipeline: Pipeline, display: Display, *, fresh: bool = False
) -> RunReport:
    """Run ``pipeline`` to its end or to where it has to stop.

    Args:
        fresh: Run every step, even those with nothing changed.

    Raises:
        WorkbenchError: Another run of this pipeline is under way, or a server cannot be started.
    """
    with _alone(place, pipeline.name):
        session = _Session(place, pipeline, display)
        try:
            cancelled = session.go(fresh=fresh)
        finally:
            session.close()
        made = report.make(
            place,
            pipeline.name,
            session.run_id,
            session.steps,
            session.outputs,
            cancelled=cancelled,
        )
        session.conclude(made)
        return made


class _Session:
    """One run. Servers and MLflow are touched only once something really has to run."""

    def __init__(self, place: Workspace, pipeline: Pipeline, display: Display) -> None:
        self.place = place
        self.pipeline = pipeline
        self.display = display
        self.store = Store(place)
        self.index = KeyIndex(place)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.run_id = f"{stamp}-{secrets.token_hex(2)}"
        self.steps: list[StepReport] = []
        self.outputs: dict[str, Ref] = {}
        self._made: dict[str, dict[str, Ref]] = {}
        self._recorder: Recorder | None = None
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._servers: Future[Any] | None = None

    def go(self, *, fresh: bool) -> bool:
        """Walk the steps in order; returns whether a person cancelled."""
        stopped = cancelled = False
        for name in self.pipeline.definition.steps:
            if stopped:
                self.steps.append(StepReport(name=name, status="not-reached"))
                continue
            step = plan.resolve(self.pipeline, name, self._made, self.place)
            try:
                done = self._skip(step) if step.cached and not fresh else self._run(step)
            except KeyboardInterrupt:
                done = StepReport(name=name, status="failed", reason="cancelled")
                cancelled = True
            self.steps.append(done)
            self.display.step_ended(done)
            stopped = done.status in ("waiting", "failed")
        return cancelled

    def conclude(self, made: RunReport) -> None:
        """Keep the report beside the run's files."""
        folder = self.place.runs / self.run_id
        if folder.exists():
            (folder / "report.json").write_text(made.model_dump_json(indent=1))

    def close(self) -> None:
        """End the run in MLflow and say so if it could not be written there."""
        if self._recorder is not None:
            statuses = {step.status for step in self.steps}
            status = "FAILED" if "failed" in statuses else "FINISHED"
            self._recorder.end(status, {"workbench.waiting": str("waiting" in statuses)})
            error = self._recorder.close()
            if error is not None:
                self.display.note(
                    f"MLflow could not be written: {error}. The records are whole; "
                    "the next run writes what is missing there"
                )
        self._pool.shutdown(wait=False)

    def _skip(self, step: PlannedStep) -> StepReport:
        assert step.cached is not None and step.key is not None  # noqa: S101 - for mypy
        self._take(step.name, step.cached.outputs)
        ref = self.index.run_ref(step.key)
        releases = [out for out in step.cached.outputs.values() if kind_of(out) == Release.KIND]
        unwritten = [out for out in releases if self.store.side(out, "registry") is None]
        if ref and (unwritten or self.store.side(ref, MARK) is None):
            folder = Path((self.store.side(ref, "place") or {}).get("folder", ""))
            self._begin().write_missing(self._begun(step, folder), ref)
            self._register(step)
        return StepReport(name=step.name, status="skipped", reason="; ".join(step.reasons))

    def _run(self, step: PlannedStep) -> StepReport:
        recorder = self._begin()
        folder = self.place.runs / self.run_id / step.name
        begun = self._begun(step, folder)
        self.display.step_started(step.name, step.reasons)
        recorder.step_begun(begun)
        result = self._execute(step, folder)
        if result.status is ExitStatus.OK:
            run = self._keep(step, result, folder)
            recorder.step_ended(begun, "FINISHED", _figures(result), run)
            self._take(step.name, result.outputs)
            self._register(step)
            return StepReport(
                name=step.name, status="ran", seconds=result.seconds, reason="; ".join(step.reasons)
            )
        reason = str(result.failure) if result.failure else result.status.name.lower()
        waiting = result.status is ExitStatus.WAITING
        tags = {**_figures(result), "workbench.failure": reason[:500]}
        recorder.step_ended(begun, "FINISHED" if waiting else "FAILED", tags, None)
        status = "waiting" if waiting else "failed"
        if result.status is ExitStatus.CANCELLED:
            raise KeyboardInterrupt
        return StepReport(
            name=step.name,
            status=status,  # type: ignore[arg-type]
            seconds=result.seconds,
            reason=reason,
        )

    def _execute(self, step: PlannedStep, folder: Path) -> StepResult:
        """Run a step's process; when a server was away, bring it up and try once more."""
        result = self._execute_once(step, folder)
        if result.status is ExitStatus.SERVICE and step.contract.declaration.services:
            self.display.note(f"{result.failure}; trying once more")
            result = self._execute_once(step, folder)
        return result

    def _execute_once(self, step: PlannedStep, folder: Path) -> StepResult:
        spec = self._spec(step, folder)
        files = live.StepFiles(folder)
        recorder = self._begin()
        due = 0.0

        def watch() -> None:
            nonlocal due
            told = files.progress()
            if told:
                self.display.step_progress(step.name, *told)
            if time.monotonic() >= due:
                recorder.points(step.name, files.points())
                due = time.monotonic() + _METRICS_EVERY_S

        result = executor.execute(spec, watch)
        recorder.points(step.name, files.points())
        return result

    def _spec(self, step: PlannedStep, folder: Path) -> StepSpec:
        assert step.key is not None  # noqa: S101 - for mypy: its inputs are known by now
        declaration = step.contract.declaration
        return StepSpec(
            step=step.name,
            notebook=str(step.contract.notebook),
            home=str(self.place.root),
            folder=str(folder),
            cache=str(self.place.scratch / "steps" / step.key.digest[:16]),
            parameters=step.parameters,
            inputs=step.inputs,
            declared_inputs={n: d.model_dump() for n, d in declaration.inputs.items()},
            declared_outputs={n: d.model_dump() for n, d in declaration.outputs.items()},
            threads=declaration.resources.threads,
            timeout_s=step.timeout_s,
            memory_gib=declaration.resources.memory_gib,
            environment=self._environment(declaration.services),
        )

    def _environment(self, names: tuple[str, ...]) -> dict[str, str]:
        if not names:
            return {}
        if self._servers is not None:
            self._servers.result()
        services.up(self.place, names)  # one may have died since
        return services.environment(self.place, names)

    def _begin(self) -> Recorder:
        """The first step that has to run starts servers and MLflow in the background."""
        if self._recorder is None:
            needed = {"mlflow"}
            for contract in self.pipeline.contracts.values():
                needed.update(contract.declaration.services)
            names = tuple(name for name in services.NAMES if name in needed)
            self._servers = self._pool.submit(services.up, self.place, names)
            tags = {
                "workbench.pipeline": self.pipeline.name,
                "workbench.run": self.run_id,
                "workbench.workspace": digest.of_bytes(str(self.place.root).encode())[:16],
            }
            self._recorder = Recorder(self._connect, self.store, tags)
            name = f"{self.pipeline.name} {self.run_id}"
            self._recorder.begin(name, self.pipeline.parameters)
        return self._recorder

    def _connect(self) -> Tracker:
        if self._servers is not None:
            with contextlib.suppress(WorkbenchError):
                self._servers.result()  # a server that MLflow does not need may have failed
        services.up(self.place, ("mlflow",))
        uri = services.environment(self.place, ("mlflow",))["MLFLOW_TRACKING_URI"]
        return Tracker(uri, EXPERIMENT)

    def _begun(self, step: PlannedStep, folder: Path) -> Begun:
        assert step.key is not None  # noqa: S101 - for mypy: its inputs are known by now
        return Begun(
            step=step.name,
            parameters=step.parameters,
            inputs={name: ref for name, ref in step.inputs.items() if ref},
            tags={"workbench.key": step.key.digest, "workbench.notebook": step.contract.name},
            folder=folder,
        )

    def _keep(self, step: PlannedStep, result: StepResult, folder: Path) -> Ref:
        """Write the run's record, and only then tell the index that this key is answered."""
        assert step.key is not None  # noqa: S101 - for mypy: it has just run
        notebook = self.store.put(
            NotebookSource(name=step.contract.name, code=step.contract.code),
            {"notebook.ipynb": contracts.without_outputs(step.contract.notebook)},
        )
        ref = self.store.put(
            StepRun(
                step=step.name,
                key=step.key.digest,
                notebook=notebook,
                environment=self.store.put(environment.current()),
                modules=modules.digest_of(step.contract.sources),
                parameters=step.parameters,
                inputs={name: ref for name, ref in step.inputs.items() if ref},
                outputs=result.outputs,
                metrics=live.last_values(folder),
            ),
            side={"place": {"folder": str(folder)}, "cost": _cost(result)},
        )
        for output in result.outputs.values():
            if kind_of(output) == DatasetVersion.KIND:
                from workbench.data import versions

                versions.register(self.place, output)
        self.index.add(step.key, ref)
        self.index.set_latest(self.pipeline.name, step.name, step.key)
        return ref

    def _take(self, step: str, outputs: dict[str, Ref]) -> None:
        self._made[step] = outputs
        self.outputs.update({f"{step}.{name}": ref for name, ref in outputs.items()})

    def _register(self, step: PlannedStep) -> None:
        for ref in self._made[step.name].values():
            if kind_of(ref) != Release.KIND:
                continue
            release = self.store.get(ref, Release)
            recorder = self._begin()
            bundle = digest_of(release.bundle)
            folder = self.place.release_folder(release.model, bundle)
            recorder.register(step.name, ref, folder, {"workbench.digest": bundle})


@contextlib.contextmanager
def _alone(place: Workspace, pipeline: str) -> Iterator[None]:
    """Hold the pipeline's lock; it goes with the process, however that ends."""
    path = place.root / "locks" / f"run-{pipeline}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise WorkbenchError(
            f"pipeline {pipeline!r} is already running in this workspace",
            where=place.root,
            hint="Wait for it to end, or stop it with Ctrl-C where it runs",
        ) from error


def _cost(result: StepResult) -> dict[str, float]:
    return {"seconds": result.seconds, "peak_memory_mib": result.peak_memory_mib}


def _figures(result: StepResult) -> dict[str, str]:
    return {f"workbench.{name}": str(value) for name, value in _cost(result).items()}
