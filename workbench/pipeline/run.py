"""Run a pipeline: skip what is done, run what is not, and report how it ended.

All decisions are made in the thread that calls `run_pipeline`; steps run in threads of their own
and only wait for their processes.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from enum import IntEnum
from types import FrameType
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from workbench.core.errors import ContractError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline.environment import cached_module_digests
from workbench.pipeline.execution import (
    ExternalServices,
    RunDisplay,
    StepExecution,
    StepOutcome,
    StepReport,
)
from workbench.pipeline.executors import Executor
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.graph import Pipeline, PipelineStep
from workbench.pipeline.plan import (
    ALL_STEPS,
    PlannedStep,
    StepSelection,
    plan_pipeline,
    plan_step,
)
from workbench.pipeline.runs import CANCEL_FILE, RunJournal, new_run_id
from workbench.pipeline.spec import ExitStatus, StepResult
from workbench.records.base import GateReport, Ref, Verdict, digest_of, kind_of
from workbench.records.model_types import Release
from workbench.records.releases import REGISTRY, release_folder
from workbench.records.store import Store

__all__ = ["RunReport", "run_pipeline"]

RunStatus = Literal["succeeded", "refused", "waiting", "failed", "cancelled"]

_WAIT_TIMEOUT_S = 1.0
_GIB = 2**30
_MIN_DISK_GIB = 1
"""Less is used up within a run, and a full disk stops the servers, too."""


class _RunExit(IntEnum):
    """Exit status of ``workbench run``."""

    SUCCEEDED = 0
    FAILED = 1
    REFUSED = 3
    WAITING = 4
    CANCELLED = 130


class _ReportPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _ModelReport(_ReportPart):
    """The release that a run registered."""

    name: str
    version: int | None
    digest: str


class GateSummary(_ReportPart):
    """One gate of a run's last gate report."""

    name: str
    verdict: Verdict
    n: int
    value: float | None
    bound: float


class RunReport(_ReportPart):
    """How a run ended, as ``workbench run --json`` prints it.

    Attributes:
        outputs: ``step.output`` to a reference.
        bundle: The signed folder of the released model.
        gates: Of the last gate report.
    """

    pipeline: str
    run_id: str
    status: RunStatus
    steps: tuple[StepReport, ...]
    outputs: dict[str, Ref]
    model: _ModelReport | None = None
    bundle: str | None = None
    gates: tuple[GateSummary, ...] = ()

    @property
    def exit_status(self) -> _RunExit:
        """Exit status of ``workbench run``."""
        return _RunExit[self.status.upper()]

    @property
    def reason(self) -> str:
        """Why the run stopped where it did, in one line."""
        stopped = [s for s in self.steps if s.status in ("waiting", "failed", "cancelled")]
        return f"{stopped[0].name}: {stopped[0].reason}" if stopped else ""


def run_pipeline(
    workspace: Workspace,
    pipeline: Pipeline,
    display: RunDisplay,
    *,
    choice: StepSelection = ALL_STEPS,
    executor: Callable[[], Executor] = LocalExecutor,
    run_id: str | None = None,
) -> RunReport:
    """Run ``pipeline`` until it ends or cannot continue.

    Several runs may be active at once, also of one pipeline: the lock of a step's key prevents them
    from doing the same work twice.

    Args:
        workspace: Where records are read and written.
        pipeline: A checked pipeline.
        display: Is told what happens.
        choice: Which steps to run, and which of them even if nothing changed.
        executor: Creates the executor, called only if a step has to run.
        run_id: From `new_run_id`, for a caller who shows it first.

    Raises:
        ContractError: A selected step reads an output that does not exist.
        WorkbenchError: The disk is nearly full, and a step has to run.
    """
    _check_selection(workspace, pipeline, choice)
    run_id = run_id or new_run_id(workspace)
    session = _RunSession(workspace, pipeline, display, executor, choice, run_id)
    with _terminated_is_cancelled():
        try:
            cancelled = session.go()
        except BaseException:
            session.journal.end("failed")
            raise
        finally:
            session.close()
    report = _make_report(workspace, pipeline.name, session, cancelled=cancelled)
    session.journal.end(report.status)
    (session.folder / "report.json").write_text(report.model_dump_json(indent=1))
    return report


class _RunSession:
    """State of one run. ``steps`` and ``outputs`` tell how far it has come."""

    def __init__(
        self,
        workspace: Workspace,
        pipeline: Pipeline,
        display: RunDisplay,
        executor: Callable[[], Executor],
        choice: StepSelection,
        run_id: str,
    ) -> None:
        self.workspace = workspace
        self.pipeline = pipeline
        self.display = display
        self.choice = choice
        self.run_id = run_id
        self.folder = workspace.runs / self.run_id
        self.outputs: dict[str, Ref] = {}
        self.journal = RunJournal(workspace, self.run_id, pipeline)
        self.external = ExternalServices(workspace, pipeline, self.run_id)
        self._reports: dict[str, StepReport] = {}
        self._outputs_of: dict[str, dict[str, Ref]] = {}
        self._undecided = dict(pipeline.steps)
        self._ready: dict[str, PlannedStep] = {}
        self._running: dict[Future[StepOutcome], PlannedStep] = {}
        self._make_executor = executor
        self._executor: Executor | None = None
        self._execution: StepExecution | None = None
        self._pool = ThreadPoolExecutor(max_workers=max(4, len(pipeline.steps)))

    @property
    def steps(self) -> list[StepReport]:
        """A report for each step, in the order of the pipeline."""
        reason = "the run ended before it"
        return [
            self._reports.get(name) or StepReport(name=name, status="not-reached", reason=reason)
            for name in self.pipeline.steps
        ]

    def go(self) -> bool:
        """Run all that can be run; returns whether the run was cancelled."""
        try:
            while True:
                if not any(report.status == "failed" for report in self._reports.values()):
                    self._start_ready()
                if not self._running:
                    return False
                done, _ = wait(self._running, timeout=_WAIT_TIMEOUT_S, return_when=FIRST_COMPLETED)
                if (self.folder / CANCEL_FILE).exists():
                    raise KeyboardInterrupt  # requested from another machine
                for future in done:
                    if self._finish(self._running.pop(future), future.result()):
                        raise KeyboardInterrupt  # the step's process was asked to stop
        except KeyboardInterrupt:
            self._cancel()
            return True

    def close(self) -> None:
        """End the executor and the MLflow run."""
        if self._execution is not None:
            self._execution.stop.set()
        if self._executor is not None:
            self._executor.close()
        statuses = {step.status for step in self.steps}
        status = "FAILED" if "failed" in statuses else "FINISHED"
        if "cancelled" in statuses:
            status = "KILLED"
        gates_ref = _last_ref(self.outputs, GateReport.KIND)
        gates = Store(self.workspace).get(gates_ref, GateReport) if gates_ref else None
        error = self.external.close(
            status,
            {"workbench.waiting": str("waiting" in statuses)},
            _run_status(self.steps, gates, cancelled="cancelled" in statuses),
            self.outputs,
        )
        if error is not None:
            self.display.note(
                f"MLflow could not be written: {error}. The records are complete; "
                "the next run writes what is missing there"
            )
        for problem in self.external.registry_problems:
            self.display.note(f"{problem}. `workbench doctor --rebuild-registry` puts it right")
        self._pool.shutdown(wait=False)

    def _start_ready(self) -> None:
        """Plan every step whose needs are decided; start those that fit the machine."""
        with cached_module_digests():
            for step in list(self._undecided.values()):
                if all(name in self._reports for name in step.needs):
                    self._plan(step)
        for planned in list(self._ready.values()):
            if self._fits(planned.step):
                del self._ready[planned.name]
                self._start(planned)

    def _plan(self, step: PipelineStep) -> None:
        upstream = [self._reports[name] for name in step.needs]
        blocked = [
            report for report in upstream if report.status in ("waiting", "failed", "cancelled")
        ]
        if blocked:
            self._decide(step, "not-reached", f"{blocked[0].name} is {blocked[0].status}")
            return
        omitted = frozenset(n for n, r in self._reports.items() if r.status == "not-reached")
        planned = plan_step(
            self.pipeline, step, self._outputs_of, omitted, self.workspace, self.choice
        )
        if planned.action == "omit":
            self._decide(step, "not-reached", "; ".join(planned.reasons))
        elif planned.action == "skip":
            self._skip(planned)
        else:
            self._ready[step.name] = planned
            del self._undecided[step.name]

    def _fits(self, step: PipelineStep) -> bool:
        """Whether CPU threads and memory are free; a step larger than the machine runs alone."""
        if not self._running or self._executor is None:
            return True
        used = [planned.step.resources for planned in self._running.values()]
        threads = sum(resources.threads for resources in used) + step.resources.threads
        memory = sum(resources.memory_gib for resources in used) + step.resources.memory_gib
        return threads <= self._executor.threads and memory <= self._executor.memory_gib

    def _start(self, planned: PlannedStep) -> None:
        wanted, free = planned.step.resources.memory_gib, psutil.virtual_memory().available / _GIB
        if wanted > free:
            self.display.note(
                f"{planned.name} declares {wanted:g} GiB of memory, {free:.1f} GiB are free"
            )
        if self._execution is None:
            _check_disk(self.workspace)
            self._executor = self._make_executor()
            self._execution = StepExecution(
                self.workspace, self.pipeline.name, self._executor, self.display, self.external
            )
        folder = self.folder / planned.name
        self.display.step_started(planned.name, planned.reasons)
        self.journal.step(planned.name, "running", folder=str(folder))
        self.external.step_started(planned, folder)
        force = planned.name in self.choice.fresh or planned.step.definition.cache == "never"
        self._running[self._pool.submit(self._execution.run, planned, folder, force=force)] = (
            planned
        )

    def _finish(self, planned: PlannedStep, outcome: StepOutcome) -> bool:
        """Record how a step ended; returns whether it was cancelled."""
        result, folder = outcome.result, self.folder / planned.name
        if result.status is ExitStatus.OK:
            self.external.step_ended(planned, folder, "FINISHED", _cost_tags(result), outcome.run)
            self._add_outputs(planned, result.outputs)
            self.external.register(planned.name, result.outputs)
            status, reason = "ran", "; ".join(planned.reasons)
            if outcome.elsewhere:
                status, reason = "skipped", "another run did it meanwhile"
            self._decide(planned.step, status, reason, result.seconds)
            return False
        reason = str(result.failure) if result.failure else result.status.name.lower()
        status, mlflow_status = {
            ExitStatus.WAITING: ("waiting", "FINISHED"),
            ExitStatus.CANCELLED: ("cancelled", "KILLED"),
        }.get(result.status, ("failed", "FAILED"))
        tags = {**_cost_tags(result), "workbench.failure": reason[:500]}
        self.external.step_ended(planned, folder, mlflow_status, tags, None)
        self._decide(planned.step, status, reason, result.seconds)
        return result.status is ExitStatus.CANCELLED

    def _skip(self, planned: PlannedStep) -> None:
        assert planned.cached is not None and planned.key is not None  # noqa: S101 - for mypy
        self._add_outputs(planned, planned.cached.outputs)
        self.external.write_missing(planned, planned.key, planned.cached.outputs)
        self._decide(planned.step, "skipped", "; ".join(planned.reasons))

    def _cancel(self) -> None:
        if self._execution is not None:
            self._execution.stop.set()
        for future, planned in self._running.items():
            outcome = future.result()
            if outcome.result.status is ExitStatus.OK:
                self._finish(planned, outcome)  # it ended before the cancel
                continue
            folder, tags = self.folder / planned.name, _cost_tags(outcome.result)
            self.external.step_ended(planned, folder, "KILLED", tags, None)
            self._decide(planned.step, "cancelled", "cancelled", outcome.result.seconds)
        self._running.clear()

    def _decide(self, step: PipelineStep, status: Any, reason: str, seconds: float = 0.0) -> None:
        report = StepReport(name=step.name, status=status, seconds=seconds, reason=reason)
        self._reports[step.name] = report
        self._undecided.pop(step.name, None)
        self.journal.step(step.name, status, seconds=seconds, reason=reason)
        self.display.step_ended(report)

    def _add_outputs(self, planned: PlannedStep, outputs: dict[str, Ref]) -> None:
        self._outputs_of[planned.name] = outputs
        self.outputs.update({f"{planned.name}.{name}": ref for name, ref in outputs.items()})


def _check_disk(workspace: Workspace) -> None:
    workspace.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(workspace.root).free / _GIB
    if free < _MIN_DISK_GIB:
        raise WorkbenchError(
            f"the disk is nearly full: {free:.1f} GiB are free, a run needs {_MIN_DISK_GIB}",
            where=workspace.root,
            hint="Free some space, or set WORKBENCH_HOME to a folder on a larger disk. The next "
            "run continues here",
        )


def _make_report(
    workspace: Workspace, pipeline: str, session: _RunSession, *, cancelled: bool
) -> RunReport:
    """Read the results from the records, so that a skipped run reports the same as the first."""
    store, outputs = Store(workspace), session.outputs
    gates_ref, release_ref = _last_ref(outputs, GateReport.KIND), _last_ref(outputs, Release.KIND)
    gates = store.get(gates_ref, GateReport) if gates_ref else None
    model, bundle = None, None
    if release_ref:
        release = store.get(release_ref, Release)
        version = release.version or (store.side(release_ref, REGISTRY) or {}).get("version")
        model = _ModelReport(name=release.model, version=version, digest=digest_of(release.bundle))
        bundle = str(release_folder(workspace, release))
    return RunReport(
        pipeline=pipeline,
        run_id=session.run_id,
        status=_run_status(session.steps, gates, cancelled=cancelled),
        steps=tuple(session.steps),
        outputs=outputs,
        model=model,
        bundle=bundle,
        gates=tuple(
            GateSummary(name=g.name, verdict=g.verdict, n=g.n, value=g.value, bound=g.bound)
            for g in (gates.gates if gates else ())
        ),
    )


def _run_status(steps: list[StepReport], gates: GateReport | None, *, cancelled: bool) -> RunStatus:
    statuses = {step.status for step in steps}
    if cancelled:
        return "cancelled"
    if "failed" in statuses:
        return "failed"
    if "waiting" in statuses:
        return "waiting"
    return "refused" if gates and gates.verdict is not Verdict.PASS else "succeeded"


def _last_ref(outputs: dict[str, Ref], kind: str) -> Ref | None:
    return next((ref for ref in reversed(outputs.values()) if kind_of(ref) == kind), None)


def _cost_tags(result: StepResult) -> dict[str, str]:
    """What a step cost, as tags of MLflow."""
    return {f"workbench.{name}": str(value) for name, value in result.cost.items()}


def _check_selection(workspace: Workspace, pipeline: Pipeline, choice: StepSelection) -> None:
    """Raise `ContractError` if a step selected by name cannot run."""
    if choice.only is None:
        return
    steps = {planned.name: planned for planned in plan_pipeline(pipeline, workspace, choice)}
    for name in sorted(choice.only):
        for need in pipeline.steps[name].needs:
            if steps[need].action == "omit" and need not in choice.only:
                damage = "; ".join(
                    steps[need].reasons[1:]
                )  # the first says that it is not selected
                raise ContractError(
                    f"step {name!r} needs the outputs of {need!r}: "
                    f"{damage or 'they are missing or outdated'}",
                    where=pipeline.file.name,
                    hint=f"Run it too (--only {need} --only {name}), or omit --only",
                )


@contextlib.contextmanager
def _terminated_is_cancelled() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that `workbench cancel` and schedulers end a run cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the end
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
