"""Runs recorded steps again in a clean workspace, and compares each output's digest.

A step that was rebuilt leaves a mark, written last, that names all it depended on. So a killed
reproduction goes on where it stopped, and one whose code changed meanwhile does not.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout

from workbench import digest, workspace
from workbench.errors import WorkbenchError
from workbench.pipeline.planning import environment, modules
from workbench.pipeline.reproduction import compare, folders, leaves
from workbench.pipeline.reproduction.ancestry import NOTEBOOK, Ancestry, RecordedStep
from workbench.pipeline.reproduction.report import Compared, Difference, Report, StepOutcome
from workbench.pipeline.running.executors.local import LocalExecutor
from workbench.pipeline.running.live import StepFiles
from workbench.pipeline.steps.runner import EXECUTED
from workbench.pipeline.steps.spec import ExitStatus, StepResult, StepSpec
from workbench.records import dataset as datasets
from workbench.records.base import Ref, kind_of
from workbench.records.store import Store
from workbench.records.types import Agreement, DatasetVersion, Environment, LabelSet
from workbench.services.external import VARIABLES
from workbench.workspace import FOLDER, Workspace

Json = dict[str, Any]
Progress = Callable[[int, int], None]

_DONE = "done.json"
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
# What a step may need beyond what it took; its pipeline may have allowed more than its contract.
_SLOWER, _LARGER = 10, 2


class Display(Protocol):
    """Whoever watches."""

    def say(self, message: str) -> None: ...
    def following(self, step: str) -> AbstractContextManager[Progress]: ...


def reproduce(place: Workspace, ancestry: Ancestry, folder: Path, display: Display) -> Report:
    """Rebuild every step of ``ancestry`` below ``folder``; it ends at the first difference.

    No server is started or asked: steps see none, and what came from one is a leaf.

    Raises:
        WorkbenchError: Another process rebuilds in ``folder``, or a leaf is not whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / folders.LOCK, timeout=0)
        with lock, contextlib.closing(LocalExecutor()) as executor:
            return _Reproduction(place, ancestry, folder, display, executor).go()
    except Timeout as error:
        raise WorkbenchError(
            "another process is rebuilding here", where=folder, hint="Wait for it, or stop it"
        ) from error


class _Reproduction:
    def __init__(
        self,
        place: Workspace,
        ancestry: Ancestry,
        folder: Path,
        display: Display,
        executor: LocalExecutor,
    ) -> None:
        self.source = Store(place)
        self.target = Store(Workspace(folder / FOLDER))
        self.ancestry = ancestry
        self.folder = folder
        self.display = display
        self.executor = executor
        self.notes = list(ancestry.notes)
        self.difference: Difference | None = None

    def go(self) -> Report:
        changes = self._say_what_differs()
        folders.mark(self.folder, self.ancestry.target, finished=False)
        leaves.copy(self.source, self.target, self.ancestry.leaves)
        outcomes: list[StepOutcome] = []
        for number, step in enumerate(self.ancestry.steps, start=1):
            stopped = bool(outcomes) and outcomes[-1].status != "same"
            outcomes.append(self._not_reached(step) if stopped else self._rebuild(number, step))
        report = Report(
            target=self.ancestry.target,
            folder=str(self.folder),
            status=_status(outcomes),
            environment=tuple(changes),
            leaves=self.ancestry.leaves,
            steps=tuple(outcomes),
            difference=self.difference,
            notes=tuple(self.notes),
        )
        workspace.write_atomic(
            self.folder / "report.json", report.model_dump_json(indent=1).encode()
        )
        folders.mark(self.folder, report.target, finished=report.status != "failed")
        return report

    def _say_what_differs(self) -> list[str]:
        """Tell before anything runs what may make a difference."""
        now = environment.current()
        changes: dict[str, None] = {}
        for ref in dict.fromkeys(step.record.environment for step in self.ancestry.steps):
            changes |= dict.fromkeys(compare.environments(self.source.get(ref, Environment), now))
        if changes:
            self.display.say("  ! the environment is not the recorded one:")
            for change in changes:
                self.display.say(f"      {change}")
        changed = [step.name for step in self.ancestry.steps if not _code_same(step)]
        if changed:
            self.display.say(
                f"  ! workbench modules that {', '.join(changed)} imports are not those recorded;"
                " check out the commit that made the model to rebuild it with its own code"
            )
        return list(changes)

    def _rebuild(self, number: int, step: RecordedStep) -> StepOutcome:
        where = self.folder / "steps" / f"{number:02}-{_NOT_IN_NAMES.sub('-', step.name)}"
        outputs, seconds = self._finished(step, where), None
        if outputs is None:
            with self.display.following(step.name) as progress:
                started = time.monotonic()
                if step.how == "merged":
                    outputs = self._merge(step)
                else:
                    result = self._execute(step, where, progress)
                    if result.status is not ExitStatus.OK:
                        return self._failed(step, result)
                    outputs = result.outputs
                seconds = round(time.monotonic() - started, 1)
            done = {"work": self._work(step), "outputs": outputs}
            workspace.write_atomic(where / _DONE, json.dumps(done).encode())
        return self._compared(step, outputs, seconds, where)

    def _work(self, step: RecordedStep) -> str:
        """Names all that rebuilding ``step`` depends on."""
        now = environment.current().model_dump(mode="json")
        return digest.of_json([step.run, modules.digest_of(step.contract.sources), now])

    def _finished(self, step: RecordedStep, where: Path) -> dict[str, Ref] | None:
        """Outputs of an earlier attempt in this folder, if nothing changed and all are whole."""
        try:
            done = json.loads((where / _DONE).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        outputs: dict[str, Ref] = done["outputs"]
        whole = all(self.target.exists(ref) for ref in outputs.values())
        return outputs if whole and done["work"] == self._work(step) else None

    def _merge(self, step: RecordedStep) -> dict[str, Ref]:
        """Let recorded labels join the rebuilt dataset, as the step did with the server's."""
        from workbench.labeling import merge

        name, ref = _merged_output(step)
        dataset, labels, *more = self.source.get(ref, DatasetVersion).parents
        named = {Agreement.KIND: "agreement", LabelSet.KIND: "adjudication"}
        given = {named[kind_of(parent)]: parent for parent in more}
        merged = merge(self.target, datasets.load(self.target, dataset), labels, **given)
        assert merged.ref is not None  # noqa: S101 - for mypy: merge has just kept it
        return {name: merged.ref}

    def _execute(self, step: RecordedStep, where: Path, progress: Progress) -> StepResult:
        where.mkdir(parents=True, exist_ok=True)
        parameters, note = leaves.parameters_of(self.source, step, where)
        if note:
            self.notes.append(note)
        files = StepFiles(where)

        def watch() -> None:
            told = files.progress()
            if told:
                progress(*told)

        spec = self._spec(step, where, parameters)
        return self.executor.execute(spec, watch, threading.Event())

    def _spec(self, step: RecordedStep, where: Path, parameters: Json) -> StepSpec:
        declared = step.contract.declaration
        notebook = where / step.contract.notebook.name
        workspace.write_atomic(
            notebook, self.source.payload(step.record.notebook, NOTEBOOK).read_bytes()
        )
        cost = self.source.side(step.run, "cost") or {}
        needed_gib = _LARGER * cost.get("peak_memory_mib", 0.0) / 1024
        return step.contract.spec(
            self.target.workspace,
            where,
            self.target.workspace.scratch / "steps" / self._work(step)[:16],
            parameters=parameters,
            inputs=step.record.inputs,
            step=step.name,
            notebook=str(notebook),
            threads=step.record.threads or declared.resources.threads,
            timeout_s=max(declared.resources.timeout_s, _SLOWER * cost.get("seconds", 0.0)),
            memory_gib=max(declared.resources.memory_gib, needed_gib),
            environment=dict.fromkeys(VARIABLES.values(), ""),
        )

    def _compared(
        self, step: RecordedStep, outputs: dict[str, Ref], seconds: float | None, where: Path
    ) -> StepOutcome:
        pairs = {
            name: Compared(recorded=ref, rebuilt=outputs.get(name))
            for name, ref in _expected(step).items()
        }
        differing = [name for name, pair in pairs.items() if not pair.same]
        if differing:
            self.difference = self._explain(step, differing[0], pairs[differing[0]], where)
        words = f"DIFFERS: {', '.join(differing)}" if differing else f"{len(pairs)} same"
        took = "" if seconds is None else f"  {seconds:.1f} s"
        self.display.say(f"  {'✗' if differing else '✓'} {step.name}  {words}{took}")
        return self._outcome(step, "differs" if differing else "same", pairs, seconds=seconds)

    def _explain(self, step: RecordedStep, output: str, pair: Compared, where: Path) -> Difference:
        assert pair.rebuilt is not None  # noqa: S101 - for mypy: every declared output was made
        recorded_at = (self.source.side(step.run, "place") or {}).get("folder", "")
        places = {
            str(where): "<run>",
            str(self.target.workspace.root): "<workspace>",
            str(self.source.workspace.root): "<workspace>",
            **({recorded_at: "<run>"} if recorded_at else {}),
        }
        cells, note = compare.notebooks(Path(recorded_at) / EXECUTED, where / EXECUTED, places)
        return Difference(
            step=step.name,
            output=output,
            recorded=pair.recorded,
            rebuilt=pair.rebuilt,
            fields=compare.records((self.source, pair.recorded), (self.target, pair.rebuilt)),
            cells=cells,
            note=note,
        )

    def _failed(self, step: RecordedStep, result: StepResult) -> StepOutcome:
        if result.status is ExitStatus.CANCELLED:
            raise KeyboardInterrupt
        reason = str(result.failure) if result.failure else result.status.name.lower()
        self.display.say(f"  ✗ {step.name}  failed: {reason}")
        pairs = {name: Compared(recorded=ref) for name, ref in _expected(step).items()}
        return self._outcome(step, "failed", pairs, reason=reason, seconds=result.seconds)

    def _not_reached(self, step: RecordedStep) -> StepOutcome:
        pairs = {name: Compared(recorded=ref) for name, ref in _expected(step).items()}
        return self._outcome(step, "not-reached", pairs)

    def _outcome(
        self, step: RecordedStep, status: Any, pairs: dict[str, Compared], **more: Any
    ) -> StepOutcome:
        return StepOutcome(
            name=step.name,
            run=step.run,
            how=step.how,
            status=status,
            outputs=pairs,
            code_same=_code_same(step),
            **more,
        )


def _status(outcomes: list[StepOutcome]) -> Literal["reproduced", "differs", "failed"]:
    ended = {outcome.status for outcome in outcomes}
    if "failed" in ended:
        return "failed"
    return "differs" if "differs" in ended else "reproduced"


def _code_same(step: RecordedStep) -> bool:
    return modules.digest_of(step.contract.sources) == step.record.modules


def _merged_output(step: RecordedStep) -> tuple[str, Ref]:
    outputs = step.record.outputs.items()
    return next((name, ref) for name, ref in outputs if kind_of(ref) == DatasetVersion.KIND)


def _expected(step: RecordedStep) -> dict[str, Ref]:
    """The outputs to make again; labels that a merged step also handed on are a leaf."""
    return dict([_merged_output(step)]) if step.how == "merged" else dict(step.record.outputs)
