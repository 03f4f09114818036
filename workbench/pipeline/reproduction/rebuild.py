"""Rebuild recorded steps in a clean workspace and compare each output's digest.

A rebuilt step leaves a mark, written last, that names everything it depended on. A stopped
reproduction therefore continues where it stopped, and repeats steps whose code has changed since.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout

from workbench.core import digest
from workbench.core.errors import ParameterError, WorkbenchError
from workbench.core.types import Json, Progress
from workbench.core.workspace import WORKSPACE_FOLDER, Workspace, write_atomic
from workbench.pipeline import environment
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.reproduction.ancestry import (
    NOTEBOOK_FILE,
    Ancestry,
    RecordedStep,
    copy_leaves,
    rebuild_parameters,
)
from workbench.pipeline.reproduction.report import (
    FirstDifference,
    OutputComparison,
    ReproductionReport,
    StepOutcome,
    compare_environments,
    compare_notebooks,
    compare_records,
)
from workbench.pipeline.spec import EXECUTED_NOTEBOOK, ExitStatus, StepResult, StepSpec
from workbench.pipeline.step_output import StepFiles
from workbench.records import dataset as datasets
from workbench.records.base import Ref, digest_of, kind_of
from workbench.records.model_types import Environment
from workbench.records.store import Store
from workbench.records.types import Agreement, DatasetVersion, LabelSet
from workbench.services.manager import EXTERNAL_VARIABLES

__all__ = ["reproduce"]

_STATE_FILE = "reproduction.json"
_LOCK_FILE = ".lock"
_DONE_FILE = "done.json"
_UNSAFE_CHARACTERS = re.compile(r"[^\w.-]+")
_TIME_FACTOR, _MEMORY_FACTOR = 10, 2
"""Limits relative to the recorded use; the pipeline may have allowed more than the contract."""


class _RebuildDisplay(Protocol):
    """Shows the progress of a reproduction."""

    def note(self, message: str) -> None: ...
    def step_progress(self, step: str) -> AbstractContextManager[Progress]: ...


def choose_folder(workspace: Workspace, target: Ref, given: Path | None) -> Path:
    """Where to rebuild ``target``; an unfinished reproduction of it is continued.

    Args:
        given: The folder to use; None takes one below the workspace.

    Raises:
        ParameterError: ``given`` contains other files, or a finished reproduction.
    """
    if given is not None:
        folder = given.expanduser().resolve()
        if _is_unfinished(folder, target) or not _has_content(folder):
            return folder
        content = "a finished reproduction" if (folder / _STATE_FILE).exists() else "other files"
        raise ParameterError(
            f"the folder contains {content}",
            where=folder,
            hint="Name an empty folder, or one that does not exist yet",
        )
    base = workspace.root / "reproduce" / f"{kind_of(target)}-{digest.shorten(digest_of(target))}"
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
        state = json.loads((folder / _STATE_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return state.get("target") == target and not state.get("finished")


def _write_state(folder: Path, target: Ref, *, finished: bool) -> None:
    state = {"schema_version": 1, "target": target, "finished": finished}
    write_atomic(folder / _STATE_FILE, json.dumps(state).encode())


def reproduce(
    workspace: Workspace, ancestry: Ancestry, folder: Path, display: _RebuildDisplay
) -> ReproductionReport:
    """Rebuild every step of ``ancestry`` below ``folder``, up to the first difference.

    No server is started: steps see none, and what came from one is a leaf.

    Args:
        workspace: Where the recorded steps are.
        folder: Where the steps are rebuilt, see `choose_folder`.

    Raises:
        WorkbenchError: Another process rebuilds in ``folder``, or a leaf is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / _LOCK_FILE, timeout=0)
        with lock, contextlib.closing(LocalExecutor()) as executor:
            return _Reproduction(workspace, ancestry, folder, display, executor).run()
    except Timeout as error:
        raise WorkbenchError(
            "another process is rebuilding in this folder",
            where=folder,
            hint="Wait for it, or stop it",
        ) from error


class _Reproduction:
    def __init__(
        self,
        workspace: Workspace,
        ancestry: Ancestry,
        folder: Path,
        display: _RebuildDisplay,
        executor: LocalExecutor,
    ) -> None:
        self.source = Store(workspace)
        self.target = Store(Workspace(folder / WORKSPACE_FOLDER))
        self.ancestry = ancestry
        self.folder = folder
        self.display = display
        self.executor = executor
        self.notes = list(ancestry.notes)
        self.difference: FirstDifference | None = None

    def run(self) -> ReproductionReport:
        changes = self._report_changes()
        _write_state(self.folder, self.ancestry.target, finished=False)
        copy_leaves(self.source, self.target, self.ancestry.leaves)
        outcomes: list[StepOutcome] = []
        for number, step in enumerate(self.ancestry.steps, start=1):
            if outcomes and outcomes[-1].status != "same":
                pairs = _unbuilt_outputs(step)
                outcomes.append(self._outcome(step, "not-reached", pairs))
            else:
                outcomes.append(self._rebuild(number, step))
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
        write_atomic(self.folder / "report.json", report.model_dump_json(indent=1).encode())
        _write_state(self.folder, report.target, finished=report.status != "failed")
        return report

    def _report_changes(self) -> list[str]:
        """Show, before anything runs, what differs from the recorded environment and code."""
        now = environment.current_environment()
        changes: dict[str, None] = {}
        for ref in dict.fromkeys(step.record.environment for step in self.ancestry.steps):
            changes |= dict.fromkeys(compare_environments(self.source.get(ref, Environment), now))
        if changes:
            self.display.note("  ! the environment differs from the recorded one:")
            for change in changes:
                self.display.note(f"      {change}")
        changed = [step.name for step in self.ancestry.steps if not _has_same_code(step)]
        if changed:
            self.display.note(
                f"  ! workbench modules imported by {', '.join(changed)} differ from the recorded"
                " ones; check out the commit that made the model to use its own code"
            )
        return list(changes)

    def _rebuild(self, number: int, step: RecordedStep) -> StepOutcome:
        folder = self.folder / "steps" / f"{number:02}-{_UNSAFE_CHARACTERS.sub('-', step.name)}"
        outputs, seconds = self._finished_outputs(step, folder), None
        if outputs is None:
            with self.display.step_progress(step.name) as progress:
                started = time.monotonic()
                if step.how == "merged":
                    outputs = self._merge(step)
                else:
                    result = self._execute(step, folder, progress)
                    if result.status is not ExitStatus.OK:
                        return self._failed(step, result)
                    outputs = result.outputs
                seconds = round(time.monotonic() - started, 1)
            done = {"work": self._work_digest(step), "outputs": outputs}
            write_atomic(folder / _DONE_FILE, json.dumps(done).encode())
        return self._compare(step, outputs, seconds, folder)

    def _work_digest(self, step: RecordedStep) -> str:
        """Identifies everything that rebuilding ``step`` depends on."""
        now = environment.current_environment().model_dump(mode="json")
        modules = environment.modules_digest(step.contract.import_sources)
        return digest.of_json([step.run, modules, now])

    def _finished_outputs(self, step: RecordedStep, folder: Path) -> dict[str, Ref] | None:
        """Outputs of an earlier attempt, if nothing has changed and all are complete."""
        try:
            done = json.loads((folder / _DONE_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        outputs: dict[str, Ref] = done["outputs"]
        complete = all(self.target.exists(ref) for ref in outputs.values())
        return outputs if complete and done["work"] == self._work_digest(step) else None

    def _merge(self, step: RecordedStep) -> dict[str, Ref]:
        """Merge the recorded labels into the rebuilt dataset, as the step did."""
        from workbench.labeling import merge

        name, ref = _merged_output(step)
        dataset, labels, *more = self.source.get(ref, DatasetVersion).parents
        arguments = {Agreement.KIND: "agreement", LabelSet.KIND: "adjudication"}
        optional = {arguments[kind_of(parent)]: parent for parent in more}
        merged = merge(self.target, datasets.load_dataset(self.target, dataset), labels, **optional)
        assert merged.ref is not None  # noqa: S101 - for mypy: merge has stored it
        return {name: merged.ref}

    def _execute(self, step: RecordedStep, folder: Path, progress: Progress) -> StepResult:
        folder.mkdir(parents=True, exist_ok=True)
        parameters, note = rebuild_parameters(self.source, step, folder)
        if note:
            self.notes.append(note)
        files = StepFiles(folder)

        def watch() -> None:
            latest = files.progress()
            if latest:
                progress(*latest)

        spec = self._spec(step, folder, parameters)
        return self.executor.execute(spec, watch, threading.Event())

    def _spec(self, step: RecordedStep, folder: Path, parameters: Json) -> StepSpec:
        declared = step.contract.declaration
        notebook = folder / step.contract.notebook.name
        content = self.source.payload(step.record.notebook, NOTEBOOK_FILE).read_bytes()
        write_atomic(notebook, content)
        cost = self.source.side(step.run, "cost") or {}
        memory_gib = _MEMORY_FACTOR * (cost.get("peak_memory_mib") or 0.0) / 1024
        return step.contract.spec(
            self.target.workspace,
            folder,
            self.target.workspace.scratch / "steps" / self._work_digest(step)[:16],
            parameters=parameters,
            inputs=step.record.inputs,
            step=step.name,
            notebook=str(notebook),
            threads=step.record.threads or declared.resources.threads,
            timeout_s=max(
                declared.resources.timeout_s, _TIME_FACTOR * (cost.get("seconds") or 0.0)
            ),
            memory_gib=max(declared.resources.memory_gib, memory_gib),
            environment=dict.fromkeys(EXTERNAL_VARIABLES.values(), ""),
        )

    def _compare(
        self, step: RecordedStep, outputs: dict[str, Ref], seconds: float | None, folder: Path
    ) -> StepOutcome:
        pairs = {
            name: OutputComparison(recorded=ref, rebuilt=outputs.get(name))
            for name, ref in _expected_outputs(step).items()
        }
        differing = [name for name, pair in pairs.items() if not pair.same]
        if differing:
            self.difference = self._explain(step, differing[0], pairs[differing[0]], folder)
        words = f"DIFFERS: {', '.join(differing)}" if differing else f"{len(pairs)} same"
        took = "" if seconds is None else f"  {seconds:.1f} s"
        self.display.note(f"  {'✗' if differing else '✓'} {step.name}  {words}{took}")
        return self._outcome(step, "differs" if differing else "same", pairs, seconds=seconds)

    def _explain(
        self, step: RecordedStep, output: str, pair: OutputComparison, folder: Path
    ) -> FirstDifference:
        assert pair.rebuilt is not None  # noqa: S101 - for mypy: every declared output was made
        recorded_at = (self.source.side(step.run, "place") or {}).get("folder", "")
        paths = {
            str(folder): "<run>",
            str(self.target.workspace.root): "<workspace>",
            str(self.source.workspace.root): "<workspace>",
            **({recorded_at: "<run>"} if recorded_at else {}),
        }
        cells, note = compare_notebooks(
            Path(recorded_at) / EXECUTED_NOTEBOOK, folder / EXECUTED_NOTEBOOK, paths
        )
        return FirstDifference(
            step=step.name,
            output=output,
            recorded=pair.recorded,
            rebuilt=pair.rebuilt,
            fields=compare_records((self.source, pair.recorded), (self.target, pair.rebuilt)),
            cells=cells,
            note=note,
        )

    def _failed(self, step: RecordedStep, result: StepResult) -> StepOutcome:
        if result.status is ExitStatus.CANCELLED:
            raise KeyboardInterrupt
        reason = str(result.failure) if result.failure else result.status.name.lower()
        self.display.note(f"  ✗ {step.name}  failed: {reason}")
        pairs = _unbuilt_outputs(step)
        return self._outcome(step, "failed", pairs, reason=reason, seconds=result.seconds)

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
    statuses = {outcome.status for outcome in outcomes}
    if "failed" in statuses:
        return "failed"
    return "differs" if "differs" in statuses else "reproduced"


def _has_same_code(step: RecordedStep) -> bool:
    return environment.modules_digest(step.contract.import_sources) == step.record.modules


def _merged_output(step: RecordedStep) -> tuple[str, Ref]:
    outputs = step.record.outputs.items()
    return next((name, ref) for name, ref in outputs if kind_of(ref) == DatasetVersion.KIND)


def _expected_outputs(step: RecordedStep) -> dict[str, Ref]:
    """The outputs to rebuild; labels among the outputs of a merged step are a leaf."""
    return dict([_merged_output(step)]) if step.how == "merged" else dict(step.record.outputs)


def _unbuilt_outputs(step: RecordedStep) -> dict[str, OutputComparison]:
    return {name: OutputComparison(recorded=ref) for name, ref in _expected_outputs(step).items()}
