"""Run a pipeline: skip what is done, run what is not, and report how it ended.

All decisions are taken in the thread that calls `RunSession.go`; steps run in threads of their own
and only wait for their processes.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from enum import IntEnum
from types import FrameType
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from workbench.core.errors import ContractError
from workbench.core.workspace import Workspace
from workbench.pipeline import environment, plan, runs
from workbench.pipeline.execution import StepExecution, StepOutcome
from workbench.pipeline.executors import Executor
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.external import ExternalServices, cost_tags
from workbench.pipeline.graph import Pipeline, PipelineStep
from workbench.pipeline.plan import ALL_STEPS, PlannedStep, StepSelection
from workbench.pipeline.runs import RunJournal
from workbench.pipeline.spec import ExitStatus
from workbench.records.base import GateReport, Ref, Verdict, digest_of, kind_of
from workbench.records.model_types import Release
from workbench.records.store import Store
from workbench.tracking import MetricPoint

RunStatus = Literal["succeeded", "refused", "waiting", "failed", "cancelled"]


class RunExit(IntEnum):
    """Exit status of ``workbench run``."""

    SUCCEEDED = 0
    FAILED = 1
    REFUSED = 3
    WAITING = 4
    CANCELLED = 130


class _ReportPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepReport(_ReportPart):
    name: str
    status: Literal["ran", "skipped", "waiting", "failed", "not-reached"]
    seconds: float = 0.0
    reason: str = ""


class ModelReport(_ReportPart):
    name: str
    version: int | None
    digest: str


class GateSummary(_ReportPart):
    name: str
    verdict: Verdict
    n: int
    value: float | None
    bound: float


class RunReport(_ReportPart):
    """``outputs`` maps ``step.output`` to a reference; ``bundle`` is the signed folder."""

    pipeline: str
    run_id: str
    status: RunStatus
    steps: tuple[StepReport, ...]
    outputs: dict[str, Ref]
    model: ModelReport | None = None
    bundle: str | None = None
    gates: tuple[GateSummary, ...] = ()

    @property
    def exit_status(self) -> RunExit:
        return RunExit[self.status.upper()]

    @property
    def reason(self) -> str:
        """Why the run stopped where it did, in one line."""
        stopped = [s for s in self.steps if s.status in ("waiting", "failed")]
        return f"{stopped[0].name}: {stopped[0].reason}" if stopped else ""


def make_report(
    place: Workspace,
    pipeline: str,
    run_id: str,
    steps: list[StepReport],
    outputs: dict[str, Ref],
    *,
    cancelled: bool = False,
) -> RunReport:
    """Read from the records what a run came to; a skipped run reads the same as the first."""
    store = Store(place)
    gates = _last_record(store, outputs, GateReport)
    release_ref = _last_ref(outputs, Release.KIND)
    release = store.get(release_ref, Release) if release_ref else None
    model, bundle = None, None
    if release and release_ref:
        registry = store.side(release_ref, "registry") or {}
        version = registry.get("version")
        model = ModelReport(name=release.model, version=version, digest=digest_of(release.bundle))
        bundle = str(place.release_folder(release.model, digest_of(release.bundle)))
    return RunReport(
        pipeline=pipeline,
        run_id=run_id,
        status=_run_status(steps, gates, cancelled=cancelled),
        steps=tuple(steps),
        outputs=outputs,
        model=model,
        bundle=bundle,
        gates=_gate_summaries(gates),
    )


def _run_status(steps: list[StepReport], gates: GateReport | None, *, cancelled: bool) -> RunStatus:
    if cancelled:
        return "cancelled"
    for status in ("failed", "waiting"):
        if any(step.status == status for step in steps):
            return status  # type: ignore[return-value]
    refused = gates is not None and gates.verdict is not Verdict.PASS
    return "refused" if refused else "succeeded"


def _gate_summaries(gates: GateReport | None) -> tuple[GateSummary, ...]:
    if gates is None:
        return ()
    return tuple(
        GateSummary(name=g.name, verdict=g.verdict, n=g.n, value=g.value, bound=g.bound)
        for g in gates.gates
    )


def _last_record(
    store: Store, outputs: dict[str, Ref], kind: type[GateReport]
) -> GateReport | None:
    ref = _last_ref(outputs, kind.KIND)
    return store.get(ref, kind) if ref else None


def _last_ref(outputs: dict[str, Ref], kind: str) -> Ref | None:
    found = [ref for ref in outputs.values() if kind_of(ref) == kind]
    return found[-1] if found else None


def report_as_json(report: RunReport) -> dict[str, Any]:
    return report.model_dump(mode="json")


# ---- One run of a pipeline: which step is next, what may run beside it, what is told to whom.
#
# All decisions are taken in the thread that calls `Session.go`; steps run in threads of their own
# and only wait for their processes.


_WAIT_TIMEOUT_S = 1.0


class RunDisplay(Protocol):
    """Whoever watches a run. ``note`` and ``step_progress`` are called from several threads."""

    def note(self, message: str) -> None: ...
    def step_started(self, name: str, reasons: tuple[str, ...]) -> None: ...
    def step_progress(self, name: str, done: int, total: int) -> None: ...
    def step_ended(self, step: StepReport) -> None: ...


class RunSession:
    """State of one run. ``steps`` and ``outputs`` tell how far it came."""

    def __init__(
        self,
        place: Workspace,
        pipeline: Pipeline,
        display: RunDisplay,
        executor: Callable[[], Executor],
        choice: StepSelection,
    ) -> None:
        self.place = place
        self.pipeline = pipeline
        self.display = display
        self.choice = choice
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.run_id = f"{stamp}-{secrets.token_hex(2)}"
        self.folder = place.runs / self.run_id
        self.outputs: dict[str, Ref] = {}
        self.journal = RunJournal(place, self.run_id, pipeline)
        self.outside = ExternalServices(place, pipeline, self.run_id)
        self._reports: dict[str, StepReport] = {}
        self._made: dict[str, dict[str, Ref]] = {}
        self._open = dict(pipeline.steps)
        self._ready: dict[str, PlannedStep] = {}
        self._running: dict[Future[StepOutcome], PlannedStep] = {}
        self._make_executor = executor
        self._executor: Executor | None = None
        self._worker: StepExecution | None = None
        self._pool = ThreadPoolExecutor(max_workers=max(4, len(pipeline.steps)))

    @property
    def steps(self) -> list[StepReport]:
        """A report for each step, in the order of the pipeline."""
        never = "the run ended before it"
        return [
            self._reports.get(name) or StepReport(name=name, status="not-reached", reason=never)
            for name in self.pipeline.steps
        ]

    def go(self) -> bool:
        """Run all that can be run; returns whether a person cancelled."""
        try:
            while True:
                if not self._failed():
                    self._start_ready()
                if not self._running:
                    return False
                done, _ = wait(self._running, timeout=_WAIT_TIMEOUT_S, return_when=FIRST_COMPLETED)
                if (self.folder / runs.CANCEL_FILE).exists():
                    raise KeyboardInterrupt  # asked from another machine, where no signal reaches
                for future in done:
                    if self._finish(self._running.pop(future), future.result()):
                        raise KeyboardInterrupt  # someone ended the step's process as a cancel
        except KeyboardInterrupt:
            self._cancel()
            return True

    def close(self) -> None:
        """End the run in MLflow and say so if it could not be written there."""
        if self._worker is not None:
            self._worker.stop.set()
        if self._executor is not None:
            self._executor.close()
        statuses = {step.status for step in self.steps}
        status = "FAILED" if "failed" in statuses else "FINISHED"
        error = self.outside.close(status, {"workbench.waiting": str("waiting" in statuses)})
        if error is not None:
            self.display.note(
                f"MLflow could not be written: {error}. The records are whole; "
                "the next run writes what is missing there"
            )
        self._pool.shutdown(wait=False)

    def _failed(self) -> bool:
        return any(report.status == "failed" for report in self._reports.values())

    def _start_ready(self) -> None:
        """Decide on every step whose needs are decided; start those that fit the machine."""
        with environment.cached_module_digests():
            for step in list(self._open.values()):
                if all(name in self._reports for name in step.needs):
                    self._consider(step)
        for planned in list(self._ready.values()):
            if self._fits(planned.step):
                del self._ready[planned.name]
                self._start(planned)

    def _consider(self, step: PipelineStep) -> None:
        above = [self._reports[name] for name in step.needs]
        blocked = [one for one in above if one.status in ("waiting", "failed")]
        if blocked:
            self._decide(step, "not-reached", f"{blocked[0].name} is {blocked[0].status}")
            return
        omitted = frozenset(n for n, r in self._reports.items() if r.status == "not-reached")
        planned = plan.plan_step(self.pipeline, step, self._made, omitted, self.place, self.choice)
        if planned.action == "omit":
            self._decide(step, "not-reached", "; ".join(planned.reasons))
        elif planned.action == "skip":
            self._skip(planned)
        else:
            self._ready[step.name] = planned
            del self._open[step.name]

    def _fits(self, step: PipelineStep) -> bool:
        """Whether cores and memory are free; a step larger than the machine runs alone."""
        if not self._running or self._executor is None:
            return True
        busy = [planned.step.resources for planned in self._running.values()]
        threads = sum(one.threads for one in busy) + step.resources.threads
        memory = sum(one.memory_gib for one in busy) + step.resources.memory_gib
        return threads <= self._executor.threads and memory <= self._executor.memory_gib

    def _start(self, planned: PlannedStep) -> None:
        if self._worker is None:
            self._executor = self._make_executor()
            self._worker = StepExecution(
                self.place, self.pipeline.name, self._executor, self, self.outside.environment
            )
        folder = self.folder / planned.name
        self.display.step_started(planned.name, planned.reasons)
        self.journal.step(planned.name, "running", folder=str(folder))
        self.outside.step_begun(planned, folder)
        anew = planned.name in self.choice.fresh or planned.step.definition.cache == "never"
        self._running[self._pool.submit(self._worker.do, planned, folder, anew=anew)] = planned

    def _finish(self, planned: PlannedStep, done: StepOutcome) -> bool:
        """Take in a step that ended; returns whether it was cancelled."""
        result, folder = done.result, self.folder / planned.name
        if result.status is ExitStatus.OK:
            self.outside.step_ended(planned, folder, "FINISHED", cost_tags(result), done.run)
            self._take(planned, result.outputs)
            self.outside.register(planned.name, result.outputs)
            status, reason = "ran", "; ".join(planned.reasons)
            if done.elsewhere:
                status, reason = "skipped", "another run made it meanwhile"
            self._decide(planned.step, status, reason, result.seconds)
            return False
        reason = str(result.failure) if result.failure else result.status.name.lower()
        waiting = result.status is ExitStatus.WAITING
        tags = {**cost_tags(result), "workbench.failure": reason[:500]}
        ended = "FINISHED" if waiting else "FAILED"
        self.outside.step_ended(planned, folder, ended, tags, None)
        self._decide(planned.step, "waiting" if waiting else "failed", reason, result.seconds)
        return result.status is ExitStatus.CANCELLED

    def _skip(self, planned: PlannedStep) -> None:
        assert planned.cached is not None and planned.key is not None  # noqa: S101 - for mypy
        self._take(planned, planned.cached.outputs)
        self.outside.write_missing(planned, planned.key, planned.cached.outputs)
        self._decide(planned.step, "skipped", "; ".join(planned.reasons))

    def _cancel(self) -> None:
        if self._worker is not None:
            self._worker.stop.set()
        for future, planned in self._running.items():
            done = future.result()
            if done.result.status is ExitStatus.OK:
                self._finish(planned, done)  # it was quicker than the cancel
                continue
            folder = self.folder / planned.name
            self.outside.step_ended(planned, folder, "KILLED", cost_tags(done.result), None)
            self._decide(planned.step, "failed", "cancelled", done.result.seconds)
        self._running.clear()

    def _decide(self, step: PipelineStep, status: Any, reason: str, seconds: float = 0.0) -> None:
        report = StepReport(name=step.name, status=status, seconds=seconds, reason=reason)
        self._reports[step.name] = report
        self._open.pop(step.name, None)
        self.journal.step(step.name, status, seconds=seconds, reason=reason)
        self.display.step_ended(report)

    def _take(self, planned: PlannedStep, made: dict[str, Ref]) -> None:
        self._made[planned.name] = made
        self.outputs.update({f"{planned.name}.{name}": ref for name, ref in made.items()})

    def note(self, message: str) -> None:
        self.display.note(message)

    def step_progress(self, name: str, done: int, total: int) -> None:
        self.display.step_progress(name, done, total)

    def points(self, step: str, points: list[MetricPoint]) -> None:
        self.outside.points(step, points)


# ---- Run a pipeline: skip what is done, run what is not, stop cleanly where it cannot go on.


def run_pipeline(
    place: Workspace,
    pipeline: Pipeline,
    display: RunDisplay,
    *,
    choice: StepSelection = ALL_STEPS,
    executor: Callable[[], Executor] = LocalExecutor,
) -> RunReport:
    """Run ``pipeline`` to its end or to where it has to stop.

    Several runs may be under way at once, also of one pipeline: the lock of a step's key keeps them
    from doing the same work twice.

    Args:
        choice: Which steps to run, and which of them although nothing changed.
        executor: Makes the executor, once a step really has to run.

    Raises:
        ContractError: A chosen step reads what has not been made.
    """
    _check_selection(place, pipeline, choice)
    session = RunSession(place, pipeline, display, executor, choice)
    with _terminated_is_cancelled():
        try:
            cancelled = session.go()
        except BaseException:
            session.journal.end("failed")
            raise
        finally:
            session.close()
    made = make_report(
        place, pipeline.name, session.run_id, session.steps, session.outputs, cancelled=cancelled
    )
    session.journal.end(made.status)
    (session.folder / "report.json").write_text(made.model_dump_json(indent=1))
    return made


def _check_selection(place: Workspace, pipeline: Pipeline, choice: StepSelection) -> None:
    """A step asked for by name must be able to run."""
    if choice.only is None:
        return
    steps = {planned.name: planned for planned in plan.plan_pipeline(pipeline, place, choice)}
    for name in sorted(choice.only):
        for need in pipeline.steps[name].needs:
            if steps[need].action == "omit" and need not in choice.only:
                raise ContractError(
                    f"step {name!r} reads what {need!r} makes, which is not made as it is now",
                    where=pipeline.file.name,
                    hint=f"Run it too (--only {need} --only {name}), or leave --only away",
                )


@contextlib.contextmanager
def _terminated_is_cancelled() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that `workbench cancel` and schedulers end a run in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the ending
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
