"""One run of a pipeline: which step is next, what may run beside it, what is told to whom.

All decisions are taken in the thread that calls `Session.go`; steps run in threads of their own
and only wait for their processes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any, Protocol

from workbench.pipeline.definition.graph import Pipeline, Step
from workbench.pipeline.planning import modules, plan
from workbench.pipeline.planning.plan import Choice, PlannedStep
from workbench.pipeline.running import history
from workbench.pipeline.running.executors import Executor
from workbench.pipeline.running.journal import Journal
from workbench.pipeline.running.outside import Outside, figures
from workbench.pipeline.running.report import StepReport
from workbench.pipeline.running.work import Done, Worker
from workbench.pipeline.steps.spec import ExitStatus
from workbench.records.base import Ref
from workbench.tracking import Point
from workbench.workspace import Workspace

_WAKE_S = 1.0


class Display(Protocol):
    """Whoever watches a run. ``note`` and ``step_progress`` are called from several threads."""

    def note(self, message: str) -> None: ...
    def step_started(self, name: str, reasons: tuple[str, ...]) -> None: ...
    def step_progress(self, name: str, done: int, total: int) -> None: ...
    def step_ended(self, step: StepReport) -> None: ...


class Session:
    """State of one run. ``steps`` and ``outputs`` tell how far it came."""

    def __init__(
        self,
        place: Workspace,
        pipeline: Pipeline,
        display: Display,
        executor: Callable[[], Executor],
        choice: Choice,
    ) -> None:
        self.place = place
        self.pipeline = pipeline
        self.display = display
        self.choice = choice
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.run_id = f"{stamp}-{secrets.token_hex(2)}"
        self.folder = place.runs / self.run_id
        self.outputs: dict[str, Ref] = {}
        self.journal = Journal(place, self.run_id, pipeline)
        self.outside = Outside(place, pipeline, self.run_id)
        self._reports: dict[str, StepReport] = {}
        self._made: dict[str, dict[str, Ref]] = {}
        self._open = dict(pipeline.steps)
        self._ready: dict[str, PlannedStep] = {}
        self._running: dict[Future[Done], PlannedStep] = {}
        self._make_executor = executor
        self._executor: Executor | None = None
        self._worker: Worker | None = None
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
                done, _ = wait(self._running, timeout=_WAKE_S, return_when=FIRST_COMPLETED)
                if (self.folder / history.CANCEL).exists():
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
        with modules.looked_at_once():
            for step in list(self._open.values()):
                if all(name in self._reports for name in step.needs):
                    self._consider(step)
        for planned in list(self._ready.values()):
            if self._fits(planned.step):
                del self._ready[planned.name]
                self._start(planned)

    def _consider(self, step: Step) -> None:
        above = [self._reports[name] for name in step.needs]
        blocked = [one for one in above if one.status in ("waiting", "failed")]
        if blocked:
            self._decide(step, "not-reached", f"{blocked[0].name} is {blocked[0].status}")
            return
        omitted = frozenset(n for n, r in self._reports.items() if r.status == "not-reached")
        planned = plan.resolve(self.pipeline, step, self._made, omitted, self.place, self.choice)
        if planned.action == "omit":
            self._decide(step, "not-reached", "; ".join(planned.reasons))
        elif planned.action == "skip":
            self._skip(planned)
        else:
            self._ready[step.name] = planned
            del self._open[step.name]

    def _fits(self, step: Step) -> bool:
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
            self._worker = Worker(
                self.place, self.pipeline.name, self._executor, self, self.outside.environment
            )
        folder = self.folder / planned.name
        self.display.step_started(planned.name, planned.reasons)
        self.journal.step(planned.name, "running", folder=str(folder))
        self.outside.step_begun(planned, folder)
        anew = planned.name in self.choice.fresh or planned.step.definition.cache == "never"
        self._running[self._pool.submit(self._worker.do, planned, folder, anew=anew)] = planned

    def _finish(self, planned: PlannedStep, done: Done) -> bool:
        """Take in a step that ended; returns whether it was cancelled."""
        result, folder = done.result, self.folder / planned.name
        if result.status is ExitStatus.OK:
            self.outside.step_ended(planned, folder, "FINISHED", figures(result), done.run)
            self._take(planned, result.outputs)
            self.outside.register(planned.name, result.outputs)
            status, reason = "ran", "; ".join(planned.reasons)
            if done.elsewhere:
                status, reason = "skipped", "another run made it meanwhile"
            self._decide(planned.step, status, reason, result.seconds)
            return False
        reason = str(result.failure) if result.failure else result.status.name.lower()
        waiting = result.status is ExitStatus.WAITING
        tags = {**figures(result), "workbench.failure": reason[:500]}
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
            self.outside.step_ended(planned, folder, "KILLED", figures(done.result), None)
            self._decide(planned.step, "failed", "cancelled", done.result.seconds)
        self._running.clear()

    def _decide(self, step: Step, status: Any, reason: str, seconds: float = 0.0) -> None:
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

    def points(self, step: str, points: list[Point]) -> None:
        self.outside.points(step, points)
