"""One step of a run, from its lock to its record, and the servers that a run starts on demand."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from workbench import services
from workbench.core import secret_scan
from workbench.core.errors import RecordError, WorkbenchError, system_error
from workbench.core.workspace import Workspace
from workbench.evaluation.gates import load_metrics
from workbench.evaluation.results import Estimate
from workbench.pipeline import cache, environment, redaction
from workbench.pipeline.cache import KeyIndex, StepKey
from workbench.pipeline.executors import Executor
from workbench.pipeline.graph import Pipeline
from workbench.pipeline.plan import PlannedStep
from workbench.pipeline.recorder import TRACKED_MARK, RunRecorder, StepStart
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.pipeline.step_output import StepFiles, last_metric_values
from workbench.records import integrity
from workbench.records.base import GateReport, Ref, digest_of, kind_of, short_ref
from workbench.records.model_types import NotebookSource, Release, StepRun
from workbench.records.references import register_dataset
from workbench.records.releases import REGISTRY, release_folder
from workbench.records.store import Store
from workbench.records.types import DatasetVersion
from workbench.services.lifecycle import workspace_id
from workbench.tracking import TRAINING_VIEW, MetricPoint, Tracker

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
                # Not its path: containers have the same one, and would end each other's runs.
                "workbench.workspace": workspace_id(self.workspace),
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
                notes = {"workbench.digest": digest_of(release.bundle)}
                metrics = self._judged(release.gates)
                notes |= {f"workbench.{name}": str(value) for name, value in metrics.items()}
                text = self._description({"gates": release.gates, "release": ref}, metrics)
                self.start().register(step, ref, folder, notes, text)

    def close(
        self, status: str, tags: Mapping[str, str], result: str, outputs: Mapping[str, Ref]
    ) -> Exception | None:
        """End the MLflow run; returns the error if it could not be written.

        Args:
            status: MLflow's.
            tags: Last tags.
            result: How the run ended, in the workbench's words: MLflow has none for ``waiting``
                and ``refused``.
            outputs: Outputs of its steps.
        """
        self._starter.shutdown(wait=False)
        if self._recorder is None:
            return None
        by_kind = {kind_of(ref): ref for ref in outputs.values()}
        metrics = self._judged(by_kind.get(GateReport.KIND))
        now = time.time()
        self._recorder.end(
            status,
            {**tags, "workbench.status": result},
            name=self._run_name(result, by_kind),
            description=self._description(by_kind, metrics),
            points=[
                MetricPoint(name, one.value, 0, now)
                for name, one in metrics.items()
                if one.value is not None
            ],
        )
        error = self._recorder.close()
        self.registry_problems = self._recorder.problems
        return error

    def _run_name(self, result: str, by_kind: Mapping[str, Ref]) -> str:
        """``REFUSED builtin → front-camera-builtin 3 · RUN``, as far as the run has come."""
        dataset, release = by_kind.get(DatasetVersion.KIND), by_kind.get(Release.KIND)
        parts = [result.upper() if result != "succeeded" else result]
        parts.append(self._store.get(dataset, DatasetVersion).name if dataset else "")
        if release:
            record = self._store.get(release, Release)
            parts.append(f"→ {record.model} {record.version or ''}".rstrip())
        return " ".join(filter(None, [self.pipeline.name, *parts, "·", self.run_id]))

    def _judged(self, gates: Ref | None) -> dict[str, Estimate]:
        """Metrics of the judged model on all its frames; none where nothing was judged."""
        # A step of somebody's own may gate something else than metrics of detections.
        measured = gates and "metrics.json" in self._store.payload_digests(gates)
        models = load_metrics(self._store, gates) if gates and measured else {}
        if "candidate" not in models:
            return {}
        row = models["candidate"].at()
        return {name: getattr(row, name) for name in ("ap", "ap50", "precision", "recall")}

    def _description(self, by_kind: Mapping[str, Ref], metrics: Mapping[str, Estimate]) -> str:
        """Markdown: the gates, the metrics with their intervals, and where to go on."""
        lines = []
        if gates := by_kind.get(GateReport.KIND):
            report = self._store.get(gates, GateReport)
            simulated = ", on simulated data" if report.simulated else ""
            lines.append(f"**{report.verdict.value}**{simulated}\n")
            lines += [f"* {one.name}: {one.verdict.value}. {one.why}" for one in report.gates]
        if metrics:
            lines += ["", *(f"* {name} {value}" for name, value in metrics.items())]
        for ref in by_kind.values():
            if kind_of(ref) == Release.KIND:
                release = self._store.get(ref, Release)
                link = f"[{release.model}](#/models/{release.model}?{TRAINING_VIEW})"
                lines += ["", f"Model {link}, dataset {short_ref(report.dataset)}"] if gates else []
                lines.append(f"`workbench lineage {short_ref(ref)}`")
        return secret_scan.mask("\n".join(lines), self._secrets())

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


_METRICS_INTERVAL_S = 3.0  # logging takes CPU time from the step
_LOCK_POLL_S = 0.25
_NOT_RETRIED = (ExitStatus.OK, ExitStatus.WAITING, ExitStatus.CANCELLED)


class StepReport(BaseModel):
    """How a step of a run ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    status: Literal["ran", "skipped", "waiting", "failed", "cancelled", "not-reached"]
    seconds: float = 0.0
    reason: str = ""


class RunDisplay(Protocol):
    """Shows a run to the user. ``note`` and ``step_progress`` are called from several threads."""

    def note(self, message: str) -> None:
        """Show a message, such as a retry."""
        ...

    def step_started(self, name: str, reasons: tuple[str, ...]) -> None:
        """A step has started, for these reasons."""
        ...

    def step_progress(self, name: str, done: int, total: int) -> None:
        """A step has done some of its items."""
        ...

    def step_ended(self, step: StepReport) -> None:
        """A step has ended, was skipped or cannot be reached."""
        ...


@dataclass(frozen=True)
class StepOutcome:
    """How a step ended.

    Attributes:
        result: The result of its last attempt.
        run: Its run record, if it succeeded.
        elsewhere: Another run did the work while this one waited for the step's lock.
    """

    result: StepResult
    run: Ref | None = None
    elsewhere: bool = False


class StepExecution:
    """Executes the planned steps of one run. Thread-safe; `stop` ends all of them."""

    def __init__(
        self,
        workspace: Workspace,
        pipeline: str,
        executor: Executor,
        display: RunDisplay,
        external: ExternalServices,
    ) -> None:
        self.workspace = workspace
        self.stop = threading.Event()
        self._pipeline = pipeline
        self._executor = executor
        self._display = display
        self._external = external
        self._index = KeyIndex(workspace)

    def run(self, planned: PlannedStep, folder: Path, *, force: bool) -> StepOutcome:
        """Run one step, with retries, unless another run has just done the work.

        Args:
            planned: The step, with its key.
            folder: Where its files go.
            force: Run it even if another run has done the work.
        """
        assert planned.key is not None  # noqa: S101 - for mypy: its inputs are known by now
        key = planned.key
        with self._lock(planned.name, key):
            if self.stop.is_set():
                cancelled = StepResult.failed(ExitStatus.CANCELLED, "cancelled", "cancelled")
                return StepOutcome(cancelled)
            cached = None if force else self._index.find(key)
            if cached is not None:
                result = StepResult(
                    status=ExitStatus.OK, seconds=0, peak_memory_mib=0, outputs=cached.outputs
                )
                return StepOutcome(result, self._index.run_ref(key), elsewhere=True)
            result = self._run_with_retries(planned, key, folder)
            if result.status is not ExitStatus.OK:
                return StepOutcome(result)
            damage = self._index.output_damage(result.outputs)
            if damage:  # by something that this step does not write: running it again is no help
                error = RecordError("; ".join(damage), hint=integrity.REPAIR_HINT)
                return StepOutcome(StepResult.from_error(ExitStatus.CONTRACT, error))
            return StepOutcome(result, self._write_record(planned, key, result, folder))

    def _run_with_retries(self, planned: PlannedStep, key: StepKey, folder: Path) -> StepResult:
        definition = planned.step.definition
        retries: Counter[str] = Counter()
        while True:
            result = self._run_once(planned, key, folder)
            kind = result.failure.kind if result.failure else "crashed"
            allowed = definition.retries.get(kind, 1 if kind == "service" else 0)  # type: ignore[call-overload]
            if result.status in _NOT_RETRIED or retries[kind] >= allowed or self.stop.is_set():
                return result
            pause_s = definition.backoff_s * 2 ** retries.total()
            retries[kind] += 1
            self._display.note(
                f"{planned.name}: {result.failure}; again in {pause_s:g} s "
                f"(retry {retries[kind]} of {allowed} after {kind})"
            )
            _keep_failed_attempt(folder, retries.total())
            self.stop.wait(pause_s)

    def _run_once(self, planned: PlannedStep, key: StepKey, folder: Path) -> StepResult:
        try:
            spec = self._spec(planned, key, folder)
        except WorkbenchError as error:  # a server that the step needs cannot be started
            return StepResult.from_error(ExitStatus.SERVICE, error)
        files = StepFiles(folder)
        due = 0.0

        def watch() -> None:
            nonlocal due
            progress = files.progress()
            if progress:
                self._display.step_progress(planned.name, *progress)
            if time.monotonic() >= due:
                self._external.log_points(planned.name, files.points())
                due = time.monotonic() + _METRICS_INTERVAL_S

        try:
            result = self._executor.execute(spec, watch, self.stop)
        except OSError as error:  # such as a full disk
            return StepResult.from_error(ExitStatus.CRASHED, system_error(error))
        self._external.log_points(planned.name, files.points())
        return result

    def _spec(self, planned: PlannedStep, key: StepKey, folder: Path) -> StepSpec:
        step = planned.step
        return step.contract.spec(
            self.workspace,
            folder,
            self.workspace.scratch / "steps" / key.digest[:16],
            parameters=step.parameters,
            inputs=planned.inputs,
            step=step.name,
            environment=self._external.environment(step.contract.declaration.services),
            **step.resources.model_dump(),
        )

    def _write_record(
        self, planned: PlannedStep, key: StepKey, result: StepResult, folder: Path
    ) -> Ref:
        """Write the run's record, and after it the entry in the index."""
        store, contract = Store(self.workspace), planned.step.contract
        self._index.about_to_add(key)
        notebook = store.put(
            NotebookSource(name=contract.name, code=contract.code),
            {"notebook.ipynb": contract.content},
        )
        ref = store.put(
            StepRun(
                step=planned.name,
                key=key.digest,
                notebook=notebook,
                environment=store.put(environment.current_environment()),
                modules=environment.modules_digest(contract.import_sources),
                parameters=planned.step.parameters,
                inputs={name: ref for name, ref in planned.inputs.items() if ref},
                outputs=result.outputs,
                metrics=last_metric_values(folder),
                threads=planned.step.resources.threads,
            ),
            cache.collect_small_files(planned.step.parameters, key.parts["sources"]),
            side={"place": {"folder": str(folder)}, "cost": result.cost},
        )
        for output in result.outputs.values():
            if kind_of(output) == DatasetVersion.KIND:
                register_dataset(self.workspace, output)
        self._index.add(key, ref)
        self._index.set_latest(self._pipeline, planned.name, key, ref)
        return ref

    @contextlib.contextmanager
    def _lock(self, name: str, key: StepKey) -> Iterator[None]:
        """Hold the lock of a step's key, so that two runs never do the same work at once."""
        path = self.workspace.root / "locks" / f"step-{key.digest[:32]}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, noted = FileLock(path), False
        while not self.stop.is_set():
            try:
                lock.acquire(timeout=_LOCK_POLL_S)
                break
            except Timeout:
                if not noted:
                    self._display.note(f"{name}: waiting for another run of the same step")
                    noted = True
        try:
            yield
        finally:
            lock.release()


def _keep_failed_attempt(folder: Path, attempt: int) -> None:
    """Rename the folder of a failed attempt."""
    target = folder.with_name(f"{folder.name}.attempt{attempt}")
    shutil.rmtree(target, ignore_errors=True)
    if folder.exists():
        folder.rename(target)
