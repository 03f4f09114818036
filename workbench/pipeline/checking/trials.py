"""Prepare a notebook's fixture inputs and run it once in an isolated workspace.

Fixture inputs are records that a pipeline makes, in a workspace below ``.workbench/checks`` that is
kept for the next check. Servers named by environment variables are hidden from it: a check never
writes to production.

Each trial has a workspace of its own that holds the declared inputs, every record that they refer
to, and no other record. A second trial therefore cannot use results of the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from workbench import services
from workbench.core.errors import ContractError, StepFailed
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace
from workbench.pipeline import graph, plan, run
from workbench.pipeline.checking.watch import (
    AccessLog,
    AccessPolicy,
    AccessWatch,
    CellWindow,
    scratch_paths,
    software_paths,
)
from workbench.pipeline.contract import StepContract
from workbench.pipeline.execution import StepReport
from workbench.pipeline.executors import Executor, local
from workbench.pipeline.graph import Pipeline
from workbench.pipeline.spec import EXECUTED_NOTEBOOK, StepResult, StepSpec
from workbench.pipeline.step_output import StepFiles
from workbench.records.base import Ref, refs_in
from workbench.records.store import Store
from workbench.services.manager import EXTERNAL_VARIABLES

__all__ = ()

CHECKS_FOLDER = "checks"

_SHARED_FOLDERS = ("media", "services", "secrets", "releases")
"""Files named by content, or about servers and keys: every trial may use the same ones."""

_Inputs = Mapping[str, Ref | tuple[Ref, ...] | None]


class CheckDisplay(Protocol):
    """Shows the progress of a check."""

    def note(self, message: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


def fixture_workspace(workspace: Workspace) -> Workspace:
    """Where the fixture inputs of this workspace's checks are kept."""
    return Workspace(workspace.root / CHECKS_FOLDER / "fixtures")


@contextlib.contextmanager
def isolated_servers(workspace: Workspace) -> Iterator[None]:
    """Hide the addresses of shared servers; on exit the last of several checks stops its own.

    Args:
        workspace: Where the checks' own servers run.
    """
    hidden = (*EXTERNAL_VARIABLES.values(), "LABEL_STUDIO_TOKEN", "LABEL_STUDIO_API_KEY")
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    workspace.root.mkdir(parents=True, exist_ok=True)
    try:
        with (workspace.root / "servers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            try:
                yield
            finally:
                with contextlib.suppress(BlockingIOError):  # another check needs them
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    services.down(workspace)
    finally:
        os.environ.update(before)


def prepare_inputs(
    workspace: Workspace, contract: StepContract, project: Path, display: CheckDisplay
) -> dict[str, Ref | tuple[Ref, ...] | None]:
    """Make a record for each input that the fixture names.

    Args:
        workspace: Where the records are made.
        project: Folder that pipeline files in the fixture are relative to.

    Raises:
        ContractError: The fixture names an unknown pipeline, step or output.
        StepFailed: The pipeline stopped before it made an input.
    """
    declared = contract.declaration
    inputs: dict[str, Ref | tuple[Ref, ...] | None] = dict.fromkeys(declared.inputs)
    wanted: dict[Path, dict[str, str]] = defaultdict(dict)
    for name, source in declared.fixture.inputs.items():
        file, colon, output = source.partition(":")
        if not colon or "." not in output:
            raise ContractError(
                f"invalid fixture.inputs.{name}: {source!r}",
                where=contract.notebook,
                hint="Write PIPELINE.yaml:step.output, with the file relative to the project",
            )
        wanted[project / file][name] = output
    for path, outputs in wanted.items():
        display.note(f"preparing {', '.join(outputs)} with {path.name}")
        pipeline = graph.load_pipeline(path, declared.fixture.pipeline, base=project)
        records = _run_pipeline(workspace, pipeline, outputs, display)
        for name, ref in records.items():
            inputs[name] = (ref,) if declared.inputs[name].many else ref
    return inputs


def _run_pipeline(
    workspace: Workspace, pipeline: Pipeline, outputs: dict[str, str], display: CheckDisplay
) -> dict[str, Ref]:
    """Run the steps that the outputs need; returns a reference for each name in ``outputs``."""
    steps = {name for output in outputs.values() for name in _needed_steps(pipeline, output)}
    choice = plan.select_steps(pipeline, only=tuple(sorted(steps)))
    report = run.run_pipeline(
        workspace, pipeline, _PipelineDisplay(display, len(steps)), choice=choice
    )
    missing = [output for output in outputs.values() if output not in report.outputs]
    if missing:
        raise StepFailed(
            f"missing pipeline output {', '.join(missing)}: {report.reason or report.status}",
            where=f"{pipeline.name}, for the check's fixture",
            hint=f"Reproduce it: WORKBENCH_HOME={workspace.root} workbench run {pipeline.file}",
        )
    return {name: report.outputs[output] for name, output in outputs.items()}


def _needed_steps(pipeline: Pipeline, output: str) -> set[str]:
    """The step that makes ``output``, and all upstream steps."""
    waiting, needed = list(pipeline.named(output.rpartition(".")[0])), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(pipeline.steps[name].needs)
    return needed


class _PipelineDisplay:
    """Shows a pipeline run as progress of the check."""

    def __init__(self, display: CheckDisplay, steps: int) -> None:
        self._display = display
        self._steps = steps
        self._done = 0

    def note(self, message: str) -> None:
        self._display.note(message)

    def step_started(self, name: str, reasons: tuple[str, ...]) -> None:
        self._display.note(f"fixture: {name} ({'; '.join(reasons)})")

    def step_progress(self, name: str, done: int, total: int) -> None:
        pass

    def step_ended(self, step: StepReport) -> None:
        if step.status in ("ran", "skipped"):
            self._done += 1
            self._display.progress(self._done, self._steps)


@dataclass(frozen=True)
class TrialSetup:
    """What the trials of one notebook have in common.

    Attributes:
        notebook: The .ipynb that runs; for a marimo app its export.
        project: Folder that relative paths of the contract start from.
        workspace: Where the inputs were made.
        environment: Variables with the addresses of servers.
        folder: Parent of the trials' workspaces.
    """

    contract: StepContract
    notebook: Path
    project: Path
    workspace: Workspace
    inputs: _Inputs
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Trial:
    """The result of one run.

    Attributes:
        workspace: The trial's own workspace.
        log: Files and addresses that it accessed; empty for an unwatched run.
        executed: The executed notebook's JSON, empty when there is none.
        parameters: Values it ran with, paths made absolute.
    """

    workspace: Workspace
    result: StepResult
    log: AccessLog
    executed: Json
    parameters: Json

    @property
    def cells(self) -> list[Json]:
        """Executed code cells, numbered as in the notebook that was checked."""
        cells = self.executed.get("cells", [])
        return [c for c in cells if c["cell_type"] == "code" and not _is_injected(c)]

    @property
    def windows(self) -> list[CellWindow]:
        """When each cell ran."""
        windows = []
        for number, cell in enumerate(self.cells, 1):
            times = cell["metadata"].get("papermill", {})
            if times.get("start_time"):
                window = CellWindow(number, _timestamp(times["start_time"]))
                end = times.get("end_time")
                windows.append(replace(window, end=_timestamp(end)) if end else window)
        return windows

    @property
    def failed_cell(self) -> int | None:
        """The failed cell's number, not counting the cell that papermill inserts."""
        failure = self.result.failure
        if failure is None or failure.cell is None:
            return None
        code = [c for c in self.executed.get("cells", []) if c["cell_type"] == "code"]
        return failure.cell - sum(1 for cell in code[: failure.cell - 1] if _is_injected(cell))


def run_trial(
    setup: TrialSetup,
    name: str,
    parameters: Json,
    progress: Progress,
    *,
    unwatched: Executor | None = None,
) -> Trial:
    """Run the notebook once, in a new workspace with its inputs.

    Args:
        name: Name of the trial's folder; a previous trial's content is removed.
        parameters: All parameters, validated.
        progress: Called with the step's own progress.
        unwatched: Executor that runs it as production does, without recording accesses.
    """
    workspace = _trial_workspace(setup, name)
    folder = workspace.runs / "check" / setup.contract.name
    folder.mkdir(parents=True)
    values = _absolute_parameters(setup, parameters)
    files = StepFiles(folder)

    def poll() -> None:
        latest = files.progress()
        if latest:
            progress(*latest)

    log = AccessLog()
    if unwatched is not None:
        spec = _trial_spec(setup, workspace, folder, values, {})
        result = unwatched.execute(spec, poll, threading.Event())
    else:
        with AccessWatch(folder) as watch:
            spec = _trial_spec(setup, workspace, folder, values, watch.environment)
            result = local.run_in_new_process(
                spec, poll, launch=watch.launch, handles=watch.handles
            )
        log = watch.log
    executed: Json = {}
    if (folder / EXECUTED_NOTEBOOK).exists():
        executed = json.loads((folder / EXECUTED_NOTEBOOK).read_bytes())
    return Trial(workspace, result, log, executed, values)


def access_policy(setup: TrialSetup, trial: Trial) -> AccessPolicy:
    """What the contract allows this trial to access."""
    contract, declaration = setup.contract, setup.contract.declaration
    access = declaration.access
    paths = [trial.parameters[n] for n in contract.path_parameters(trial.parameters)]
    writes = [_real_path(setup.project, path) for path in access.writes]
    writes += [str(trial.workspace.root), str(setup.workspace.root)]
    reads = [_real_path(setup.project, path) for path in (*access.reads, *paths)]
    urls = [url for url in setup.environment.values() if "://" in url]
    hosts = [_host_and_port(url) for url in urls] if declaration.services else []
    return AccessPolicy(
        reads=(*software_paths(), *reads, str(setup.notebook)),
        writes=(*scratch_paths(), *writes, *(os.path.realpath(path) for path in writes)),
        hosts=(*access.network, *hosts),
    )


def _absolute_parameters(setup: TrialSetup, parameters: Json) -> Json:
    """Parameters with path parameters made absolute from the project, as the planner does."""
    values = dict(parameters)
    for name in setup.contract.path_parameters(parameters):
        values[name] = setup.contract.absolute_path(name, parameters[name], setup.project)
    return values


def _timestamp(text: str) -> float:
    """Seconds since the epoch of papermill's time stamp, which is in UTC."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _is_injected(cell: Json) -> bool:
    return "injected-parameters" in cell["metadata"].get("tags", [])


def _trial_workspace(setup: TrialSetup, name: str) -> Workspace:
    workspace = Workspace(setup.folder / name)
    if workspace.root.exists():
        shutil.rmtree(workspace.root)
    workspace.root.mkdir(parents=True)
    for shared in _SHARED_FOLDERS:
        source = setup.workspace.root / shared
        source.mkdir(parents=True, exist_ok=True)
        (workspace.root / shared).symlink_to(source, target_is_directory=True)
    workspace.secrets.resolve().chmod(0o700)
    source_store, store = Store(setup.workspace), Store(workspace)
    for ref in _referenced_records(source_store, setup.inputs):
        shutil.copytree(source_store.folder(ref), store.folder(ref), copy_function=_link_or_copy)
    return workspace


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _referenced_records(store: Store, inputs: _Inputs) -> list[Ref]:
    """The inputs and every record that they lead to, as far as the store has it."""
    records: dict[Ref, None] = {}
    waiting = refs_in(dict(inputs))
    while waiting:
        ref = waiting.pop()
        if ref not in records and store.exists(ref):
            records[ref] = None
            waiting.extend(refs_in(store.load(ref).model_dump(mode="json")))
    return list(records)


def _trial_spec(
    setup: TrialSetup,
    workspace: Workspace,
    folder: Path,
    parameters: Json,
    environment: Mapping[str, str],
) -> StepSpec:
    return setup.contract.spec(
        workspace,
        folder,
        workspace.scratch / "check",
        parameters=parameters,
        inputs=setup.inputs,
        notebook=str(setup.notebook),
        code=None,  # a check says itself that the notebook changed meanwhile
        environment={**setup.environment, **environment},
        project=str(setup.project),
    )


def _real_path(project: Path, path: str) -> str:
    return str((project / Path(path).expanduser()).resolve())


def _host_and_port(url: str) -> str:
    """``host:port`` of an address; localhost is named by its loopback number."""
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    return f"{host}:{parts.port}" if parts.port else host
