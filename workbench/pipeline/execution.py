"""One step of a run, from its lock to its record. Each runs in a thread of its own."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from workbench.core.errors import WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import cache, environment, step_output
from workbench.pipeline import contract as contracts
from workbench.pipeline.cache import KeyIndex, StepKey
from workbench.pipeline.executors import Executor
from workbench.pipeline.plan import PlannedStep
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.pipeline.step_output import StepFiles
from workbench.records.base import Ref, kind_of
from workbench.records.model_types import NotebookSource, StepRun
from workbench.records.store import Store
from workbench.records.types import DatasetVersion
from workbench.tracking import MetricPoint

_METRICS_INTERVAL_S = 3.0  # MLflow needs the cores that the step is working on
_LOCK_POLL_S = 0.25
_FINAL_STATUSES = (ExitStatus.OK, ExitStatus.WAITING, ExitStatus.CANCELLED)


class StepObserver(Protocol):
    """Whoever is told while a step runs, from the step's thread."""

    def note(self, message: str) -> None: ...
    def step_progress(self, name: str, done: int, total: int) -> None: ...
    def points(self, step: str, points: list[MetricPoint]) -> None: ...


@dataclass(frozen=True)
class StepOutcome:
    """How a step came out: its run record when it ended well.

    ``elsewhere`` means that another run made it while this one waited for the step's lock.
    """

    result: StepResult
    run: Ref | None = None
    elsewhere: bool = False


class StepExecution:
    """Runs planned steps of one run. Methods may be called from several threads at once."""

    def __init__(
        self,
        place: Workspace,
        pipeline: str,
        executor: Executor,
        watcher: StepObserver,
        servers: Callable[[tuple[str, ...]], dict[str, str]],
    ) -> None:
        self.place = place
        self.stop = threading.Event()
        self._pipeline = pipeline
        self._executor = executor
        self._watcher = watcher
        self._servers = servers
        self._index = KeyIndex(place)

    def do(self, planned: PlannedStep, folder: Path, *, anew: bool) -> StepOutcome:
        """Run one step unless another run has just made it; retry as the pipeline says."""
        key = _planned_key(planned)
        with self._sole(planned.name, key):
            if self.stop.is_set():
                return StepOutcome(_cancelled_result())
            cached = None if anew else self._index.find(key)
            if cached is not None:
                result = StepResult(
                    status=ExitStatus.OK, seconds=0, peak_memory_mib=0, outputs=cached.outputs
                )
                return StepOutcome(result, self._index.run_ref(key), elsewhere=True)
            result = self._attempts(planned, folder)
            if result.status is not ExitStatus.OK:
                return StepOutcome(result)
            return StepOutcome(result, self._keep(planned, key, result, folder))

    def _attempts(self, planned: PlannedStep, folder: Path) -> StepResult:
        definition = planned.step.definition
        used: Counter[str] = Counter()
        while True:
            result = self._once(planned, folder)
            kind = result.failure.kind if result.failure else "crashed"
            allowed = definition.retries.get(kind, 1 if kind == "service" else 0)  # type: ignore[call-overload]
            if result.status in _FINAL_STATUSES or used[kind] >= allowed or self.stop.is_set():
                return result
            pause = definition.backoff_s * 2 ** used.total()
            used[kind] += 1
            self._watcher.note(
                f"{planned.name}: {result.failure}; again in {pause:g} s "
                f"(retry {used[kind]} of {allowed} after {kind})"
            )
            _keep_failed_attempt(folder, used.total())
            self.stop.wait(pause)

    def _once(self, planned: PlannedStep, folder: Path) -> StepResult:
        try:
            spec = self._spec(planned, folder)
        except WorkbenchError as error:  # a server that the step needs cannot be started
            return StepResult.from_error(ExitStatus.SERVICE, error)
        files = StepFiles(folder)
        due = 0.0

        def watch() -> None:
            nonlocal due
            told = files.progress()
            if told:
                self._watcher.step_progress(planned.name, *told)
            if time.monotonic() >= due:
                self._watcher.points(planned.name, files.points())
                due = time.monotonic() + _METRICS_INTERVAL_S

        result = self._executor.execute(spec, watch, self.stop)
        self._watcher.points(planned.name, files.points())
        return result

    def _spec(self, planned: PlannedStep, folder: Path) -> StepSpec:
        step = planned.step
        return step.contract.spec(
            self.place,
            folder,
            self.place.scratch / "steps" / _planned_key(planned).digest[:16],
            parameters=step.parameters,
            inputs=planned.inputs,
            step=step.name,
            environment=self._servers(step.contract.declaration.services),
            **step.resources.model_dump(),
        )

    def _keep(self, planned: PlannedStep, key: StepKey, result: StepResult, folder: Path) -> Ref:
        """Write the run's record, and only then tell the index that this key is answered."""
        store, contract = Store(self.place), planned.step.contract
        self._index.about_to_add(key)
        notebook = store.put(
            NotebookSource(name=contract.name, code=contract.code),
            {"notebook.ipynb": contracts.notebook_without_outputs(contract.notebook)},
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
                metrics=step_output.last_metric_values(folder),
                threads=planned.step.resources.threads,
            ),
            cache.collect_small_files(planned.step.parameters, key.parts["sources"]),
            side={"place": {"folder": str(folder)}, "cost": result.cost},
        )
        for output in result.outputs.values():
            if kind_of(output) == DatasetVersion.KIND:
                from workbench.records import references

                references.register_dataset(self.place, output)
        self._index.add(key, ref)
        self._index.set_latest(self._pipeline, planned.name, key, ref)
        return ref

    @contextlib.contextmanager
    def _sole(self, name: str, key: StepKey) -> Iterator[None]:
        """Hold the lock of a step's key, so that two runs never do the same work at once."""
        path = self.place.root / "locks" / f"step-{key.digest[:32]}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, told = FileLock(path), False
        while not self.stop.is_set():
            try:
                lock.acquire(timeout=_LOCK_POLL_S)
                break
            except Timeout:
                if not told:
                    self._watcher.note(f"{name}: another run is at this very step; waiting for it")
                    told = True
        try:
            yield
        finally:
            lock.release()


def _planned_key(planned: PlannedStep) -> StepKey:
    assert planned.key is not None  # noqa: S101 - for mypy: its inputs are known by now
    return planned.key


def _keep_failed_attempt(folder: Path, attempt: int) -> None:
    """Keep a failed attempt's files beside the step's folder."""
    target = folder.with_name(f"{folder.name}.attempt{attempt}")
    shutil.rmtree(target, ignore_errors=True)
    if folder.exists():
        folder.rename(target)


def _cancelled_result() -> StepResult:
    return StepResult.failed(ExitStatus.CANCELLED, "cancelled", "cancelled")
