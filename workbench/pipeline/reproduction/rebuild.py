"""Rebuild recorded steps in a clean workspace and compare each output's digest."""

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

from workbench.core import digest, workspace
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.workspace import WORKSPACE_FOLDER, Workspace
from workbench.pipeline import environment
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.reproduction import ancestry as leaves
from workbench.pipeline.reproduction import report as compare
from workbench.pipeline.reproduction.ancestry import NOTEBOOK_FILE, Ancestry, RecordedStep
from workbench.pipeline.reproduction.report import (
    FirstDifference,
    OutputComparison,
    ReproductionReport,
    StepOutcome,
)
from workbench.pipeline.runner import EXECUTED_NOTEBOOK
from workbench.pipeline.spec import ExitStatus, StepResult, StepSpec
from workbench.pipeline.step_output import StepFiles
from workbench.records import dataset as datasets
from workbench.records.base import Ref, digest_of, kind_of
from workbench.records.model_types import Environment
from workbench.records.store import Store
from workbench.records.types import Agreement, DatasetVersion, LabelSet
from workbench.services.manager import EXTERNAL_VARIABLES

STATE_FILE = "reproduction.json"
_LOCK_FILE = ".lock"


def choose_folder(place: Workspace, target: Ref, given: Path | None) -> Path:
    """Where to rebuild ``target``: an unfinished reproduction of it is gone on with.

    Raises:
        ParameterError: ``given`` holds something else, or a reproduction that has ended.
    """
    if given is not None:
        folder = given.expanduser().resolve()
        if _is_unfinished(folder, target) or not _has_content(folder):
            return folder
        what = "a finished reproduction" if (folder / STATE_FILE).exists() else "other files"
        raise ParameterError(
            f"the folder holds {what}; a model is rebuilt in a clean one",
            where=folder,
            hint="Name a folder that does not exist yet",
        )
    base = place.root / "reproduce" / f"{kind_of(target)}-{digest.shorten(digest_of(target))}"
    number = 1
    while True:
        folder = base.with_name(f"{base.name}-{number}")
        if not folder.exists() or _is_unfinished(folder, target):
            return folder
        number += 1


def _has_content(folder: Path) -> bool:
    return folder.exists() and any(entry.name != _LOCK_FILE for entry in folder.iterdir())


def _is_unfinished(folder: Path, target: Ref) -> bool:
    try:
        state = json.loads((folder / STATE_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return state.get("target") == target and not state.get("finished")


def write_state(folder: Path, target: Ref, *, finished: bool) -> None:
    """Say whose reproduction ``folder`` holds, and whether it has ended."""
    state = {"schema_version": 1, "target": target, "finished": finished}
    workspace.write_atomic(folder / STATE_FILE, json.dumps(state).encode())


# ---- Runs recorded steps again in a clean workspace, and compares each output's digest.
#
# A step that was rebuilt leaves a mark, written last, that names all it depended on. So a killed
# reproduction goes on where it stopped, and one whose code changed meanwhile does not.


Json = dict[str, Any]
StepProgress = Callable[[int, int], None]

_DONE_FILE = "done.json"
_UNSAFE_CHARACTERS = re.compile(r"[^\w.-]+")
# What a step may need beyond what it took; its pipeline may have allowed more than its contract.
_TIME_FACTOR, _MEMORY_FACTOR = 10, 2


class RebuildDisplay(Protocol):
    """Whoever watches."""

    def say(self, message: str) -> None: ...
    def following(self, step: str) -> AbstractContextManager[StepProgress]: ...


def reproduce(
    place: Workspace, ancestry: Ancestry, folder: Path, display: RebuildDisplay
) -> ReproductionReport:
    """Rebuild every step of ``ancestry`` below ``folder``; it ends at the first difference.

    No server is started or asked: steps see none, and what came from one is a leaf.

    Raises:
        WorkbenchError: Another process rebuilds in ``folder``, or a leaf is not whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / _LOCK_FILE, timeout=0)
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
        display: RebuildDisplay,
        executor: LocalExecutor,
    ) -> None:
        self.source = Store(place)
        self.target = Store(Workspace(folder / WORKSPACE_FOLDER))
        self.ancestry = ancestry
        self.folder = folder
        self.display = display
        self.executor = executor
        self.notes = list(ancestry.notes)
        self.difference: FirstDifference | None = None

    def go(self) -> ReproductionReport:
        changes = self._say_what_differs()
        write_state(self.folder, self.ancestry.target, finished=False)
        leaves.copy_leaves(self.source, self.target, self.ancestry.leaves)
        outcomes: list[StepOutcome] = []
        for number, step in enumerate(self.ancestry.steps, start=1):
            stopped = bool(outcomes) and outcomes[-1].status != "same"
            outcomes.append(self._not_reached(step) if stopped else self._rebuild(number, step))
        report = ReproductionReport(
            target=self.ancestry.target,
            folder=str(self.folder),
            status=_overall_status(outcomes),
            environment=tuple(changes),
            leaves=self.ancestry.leaves,
            steps=tuple(outcomes),
            difference=self.difference,
            notes=tuple(self.notes),
        )
        workspace.write_atomic(
            self.folder / "report.json", report.model_dump_json(indent=1).encode()
        )
        write_state(self.folder, report.target, finished=report.status != "failed")
        return report

    def _say_what_differs(self) -> list[str]:
        """Tell before anything runs what may make a difference."""
        now = environment.current_environment()
        changes: dict[str, None] = {}
        for ref in dict.fromkeys(step.record.environment for step in self.ancestry.steps):
            changes |= dict.fromkeys(
                compare.compare_environments(self.source.get(ref, Environment), now)
            )
        if changes:
            self.display.say("  ! the environment is not the recorded one:")
            for change in changes:
                self.display.say(f"      {change}")
        changed = [step.name for step in self.ancestry.steps if not _has_same_code(step)]
        if changed:
            self.display.say(
                f"  ! workbench modules that {', '.join(changed)} imports are not those recorded;"
                " check out the commit that made the model to rebuild it with its own code"
            )
        return list(changes)

    def _rebuild(self, number: int, step: RecordedStep) -> StepOutcome:
        where = self.folder / "steps" / f"{number:02}-{_UNSAFE_CHARACTERS.sub('-', step.name)}"
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
            workspace.write_atomic(where / _DONE_FILE, json.dumps(done).encode())
        return self._compared(step, outputs, seconds, where)

    def _work(self, step: RecordedStep) -> str:
        """Names all that rebuilding ``step`` depends on."""
        now = environment.current_environment().model_dump(mode="json")
        return digest.of_json([step.run, environment.modules_digest(step.contract.import_sources), now])

    def _finished(self, step: RecordedStep, where: Path) -> dict[str, Ref] | None:
        """Outputs of an earlier attempt in this folder, if nothing changed and all are whole."""
        try:
            done = json.loads((where / _DONE_FILE).read_bytes())
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
        merged = merge(self.target, datasets.load_dataset(self.target, dataset), labels, **given)
        assert merged.ref is not None  # noqa: S101 - for mypy: merge has just kept it
        return {name: merged.ref}

    def _execute(self, step: RecordedStep, where: Path, progress: StepProgress) -> StepResult:
        where.mkdir(parents=True, exist_ok=True)
        parameters, note = leaves.rebuild_parameters(self.source, step, where)
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
            notebook, self.source.payload(step.record.notebook, NOTEBOOK_FILE).read_bytes()
        )
        cost = self.source.side(step.run, "cost") or {}
        needed_gib = _MEMORY_FACTOR * cost.get("peak_memory_mib", 0.0) / 1024
        return step.contract.spec(
            self.target.workspace,
            where,
            self.target.workspace.scratch / "steps" / self._work(step)[:16],
            parameters=parameters,
            inputs=step.record.inputs,
            step=step.name,
            notebook=str(notebook),
            threads=step.record.threads or declared.resources.threads,
            timeout_s=max(declared.resources.timeout_s, _TIME_FACTOR * cost.get("seconds", 0.0)),
            memory_gib=max(declared.resources.memory_gib, needed_gib),
            environment=dict.fromkeys(EXTERNAL_VARIABLES.values(), ""),
        )

    def _compared(
        self, step: RecordedStep, outputs: dict[str, Ref], seconds: float | None, where: Path
    ) -> StepOutcome:
        pairs = {
            name: OutputComparison(recorded=ref, rebuilt=outputs.get(name))
            for name, ref in _expected_outputs(step).items()
        }
        differing = [name for name, pair in pairs.items() if not pair.same]
        if differing:
            self.difference = self._explain(step, differing[0], pairs[differing[0]], where)
        words = f"DIFFERS: {', '.join(differing)}" if differing else f"{len(pairs)} same"
        took = "" if seconds is None else f"  {seconds:.1f} s"
        self.display.say(f"  {'✗' if differing else '✓'} {step.name}  {words}{took}")
        return self._outcome(step, "differs" if differing else "same", pairs, seconds=seconds)

    def _explain(
        self, step: RecordedStep, output: str, pair: OutputComparison, where: Path
    ) -> FirstDifference:
        assert pair.rebuilt is not None  # noqa: S101 - for mypy: every declared output was made
        recorded_at = (self.source.side(step.run, "place") or {}).get("folder", "")
        places = {
            str(where): "<run>",
            str(self.target.workspace.root): "<workspace>",
            str(self.source.workspace.root): "<workspace>",
            **({recorded_at: "<run>"} if recorded_at else {}),
        }
        cells, note = compare.compare_notebooks(
            Path(recorded_at) / EXECUTED_NOTEBOOK, where / EXECUTED_NOTEBOOK, places
        )
        return FirstDifference(
            step=step.name,
            output=output,
            recorded=pair.recorded,
            rebuilt=pair.rebuilt,
            fields=compare.compare_records(
                (self.source, pair.recorded), (self.target, pair.rebuilt)
            ),
            cells=cells,
            note=note,
        )

    def _failed(self, step: RecordedStep, result: StepResult) -> StepOutcome:
        if result.status is ExitStatus.CANCELLED:
            raise KeyboardInterrupt
        reason = str(result.failure) if result.failure else result.status.name.lower()
        self.display.say(f"  ✗ {step.name}  failed: {reason}")
        pairs = {
            name: OutputComparison(recorded=ref) for name, ref in _expected_outputs(step).items()
        }
        return self._outcome(step, "failed", pairs, reason=reason, seconds=result.seconds)

    def _not_reached(self, step: RecordedStep) -> StepOutcome:
        pairs = {
            name: OutputComparison(recorded=ref) for name, ref in _expected_outputs(step).items()
        }
        return self._outcome(step, "not-reached", pairs)

    def _outcome(
        self, step: RecordedStep, status: Any, pairs: dict[str, OutputComparison], **more: Any
    ) -> StepOutcome:
        return StepOutcome(
            name=step.name,
            run=step.run,
            how=step.how,
            status=status,
            outputs=pairs,
            code_same=_has_same_code(step),
            **more,
        )


def _overall_status(outcomes: list[StepOutcome]) -> Literal["reproduced", "differs", "failed"]:
    ended = {outcome.status for outcome in outcomes}
    if "failed" in ended:
        return "failed"
    return "differs" if "differs" in ended else "reproduced"


def _has_same_code(step: RecordedStep) -> bool:
    return environment.modules_digest(step.contract.import_sources) == step.record.modules


def _merged_output(step: RecordedStep) -> tuple[str, Ref]:
    outputs = step.record.outputs.items()
    return next((name, ref) for name, ref in outputs if kind_of(ref) == DatasetVersion.KIND)


def _expected_outputs(step: RecordedStep) -> dict[str, Ref]:
    """The outputs to make again; labels that a merged step also handed on are a leaf."""
    return dict([_merged_output(step)]) if step.how == "merged" else dict(step.record.outputs)
