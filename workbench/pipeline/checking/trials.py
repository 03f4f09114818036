"""Prepare a notebook's fixture inputs and run it once in an isolated workspace."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from workbench import services
from workbench.core.errors import ContractError, StepFailed
from workbench.core.workspace import Workspace
from workbench.pipeline import cache, graph, plan, run
from workbench.pipeline.checking.watch import (
    AccessLog,
    AccessPolicy,
    AccessWatch,
    CellWindow,
    scratch_paths,
    software_paths,
)
from workbench.pipeline.contract import StepContract
from workbench.pipeline.executors import Executor, local
from workbench.pipeline.graph import Pipeline
from workbench.pipeline.run import StepReport
from workbench.pipeline.runner import EXECUTED_NOTEBOOK
from workbench.pipeline.spec import StepResult, StepSpec
from workbench.pipeline.step_output import StepFiles
from workbench.records.base import Ref, refs_in
from workbench.records.store import Store
from workbench.services.manager import EXTERNAL_VARIABLES

CHECKS_FOLDER = "checks"


class CheckDisplay(Protocol):
    """Whoever watches a check."""

    def note(self, message: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


def fixture_workspace(place: Workspace) -> Workspace:
    """Where the fixtures of a workspace's checks are made and kept."""
    return Workspace(place.root / CHECKS_FOLDER / "fixtures")


@contextlib.contextmanager
def isolated_servers(place: Workspace) -> Iterator[None]:
    """Inside, no server that others use is known; the last check at work stops the checks' own."""
    hidden = (*EXTERNAL_VARIABLES.values(), "LABEL_STUDIO_TOKEN", "LABEL_STUDIO_API_KEY")
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    place.root.mkdir(parents=True, exist_ok=True)
    try:
        with (place.root / "servers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            try:
                yield
            finally:
                with contextlib.suppress(BlockingIOError):  # another check needs them
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    services.down(place)
    finally:
        os.environ.update(before)


def prepare_inputs(
    place: Workspace, contract: StepContract, project: Path, tell: CheckDisplay
) -> dict[str, Ref | tuple[Ref, ...] | None]:
    """A record for each input that the fixture names, in the workspace ``place``.

    Raises:
        ContractError: The fixture names a pipeline, step or output that there is not.
        StepFailed: The pipeline did not come as far as the inputs need it.
    """
    declared = contract.declaration
    made: dict[str, Ref | tuple[Ref, ...] | None] = dict.fromkeys(declared.inputs)
    wanted: dict[Path, dict[str, str]] = defaultdict(dict)
    for name, source in declared.fixture.inputs.items():
        file, colon, output = source.partition(":")
        if not colon or "." not in output:
            raise ContractError(
                f"fixture.inputs.{name} is {source!r}",
                where=contract.notebook,
                hint="Write it as PIPELINE.yaml:step.output, the file relative to the project",
            )
        wanted[project / file][name] = output
    for path, outputs in wanted.items():
        tell.note(f"preparing {', '.join(outputs)} with {path.name}")
        pipeline = graph.load_pipeline(path, declared.fixture.pipeline, base=project)
        found = _run_pipeline(place, pipeline, outputs, tell)
        for name in outputs:
            made[name] = (found[name],) if declared.inputs[name].many else found[name]
    return made


def _run_pipeline(
    place: Workspace, pipeline: Pipeline, outputs: dict[str, str], tell: CheckDisplay
) -> dict[str, Ref]:
    """Run what the outputs need; returns a reference for each name in ``outputs``."""
    steps = {name for output in outputs.values() for name in _needed_steps(pipeline, output)}
    choice = plan.select_steps(pipeline, only=tuple(sorted(steps)))
    report = run.run_pipeline(place, pipeline, _PipelineDisplay(tell, len(steps)), choice=choice)
    missing = [output for output in outputs.values() if output not in report.outputs]
    if missing:
        raise StepFailed(
            f"{', '.join(missing)} was not made: {report.reason or report.status}",
            where=f"{pipeline.name}, for the check's fixture",
            hint=f"WORKBENCH_HOME={place.root} workbench run {pipeline.file} shows it",
        )
    return {name: report.outputs[output] for name, output in outputs.items()}


def _needed_steps(pipeline: Pipeline, output: str) -> set[str]:
    """The step that makes ``output``, and all above it."""
    waiting, found = list(pipeline.named(output.rpartition(".")[0])), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(pipeline.steps[name].needs)
    return found


class _PipelineDisplay:
    """Passes on what a pipeline run tells."""

    def __init__(self, tell: CheckDisplay, steps: int) -> None:
        self._tell = tell
        self._steps = steps
        self._done = 0

    def note(self, message: str) -> None:
        self._tell.note(message)

    def step_started(self, name: str, reasons: tuple[str, ...]) -> None:
        self._tell.note(f"fixture: {name} ({'; '.join(reasons)})")

    def step_progress(self, name: str, done: int, total: int) -> None:
        pass

    def step_ended(self, step: StepReport) -> None:
        if step.status in ("ran", "skipped"):
            self._done += 1
            self._tell.progress(self._done, self._steps)


# ---- One run of a notebook on its fixture: in a workspace of its own, watched, and read afterwards.
#
# The workspace holds the declared inputs with all that they refer to, and no other record. So what
# a notebook finds there it was given, and a second trial cannot live on the results of the first.


Json = dict[str, Any]
_Inputs = Mapping[str, Ref | tuple[Ref, ...] | None]

_SHARED_FOLDERS = ("media", "services", "secrets", "releases")
"""Named by content, or about servers and keys: every trial may meet the same ones."""


@dataclass(frozen=True)
class TrialSetup:
    """What the trials of one notebook have in common.

    Attributes:
        notebook: What is run; for a marimo app the .ipynb made of it.
        project: Folder that relative paths of the contract start from.
        place: The workspace in which the inputs were made.
        environment: Variables that lead to the servers.
    """

    contract: StepContract
    notebook: Path
    project: Path
    place: Workspace
    inputs: _Inputs
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Trial:
    """How a run ended, and what was seen of it."""

    place: Workspace
    result: StepResult
    log: AccessLog
    executed: Json
    parameters: Json

    @property
    def windows(self) -> list[CellWindow]:
        """When each cell began, by its number in the notebook that was checked."""
        found = []
        for number, cell in enumerate(code_cells(self.executed), 1):
            times = cell["metadata"].get("papermill", {})
            if times.get("start_time"):
                end = times.get("end_time")
                window = CellWindow(number, _timestamp(times["start_time"]))
                found.append(replace(window, end=_timestamp(end)) if end else window)
        return found

    @property
    def failed_cell(self) -> int | None:
        """The failed cell's number without the cell that papermill puts in."""
        failure = self.result.failure
        if failure is None or failure.cell is None:
            return None
        every = [c for c in self.executed.get("cells", []) if c["cell_type"] == "code"]
        injected = [n for n, cell in enumerate(every, 1) if _is_injected(cell)]
        return failure.cell - sum(1 for n in injected if n < failure.cell)


def run_trial(
    setting: TrialSetup,
    name: str,
    parameters: Json,
    progress: Callable[[int, int], None],
    *,
    unwatched: Executor | None = None,
) -> Trial:
    """Run the notebook once, from nothing but its inputs.

    Args:
        name: Names the trial's folder; what an earlier one left there goes first.
        parameters: All of them, validated.
        unwatched: Runs it as production does, where what it touches was seen already.
    """
    place = _trial_workspace(setting, name)
    folder = place.runs / "check" / setting.contract.name
    folder.mkdir(parents=True)
    values = _absolute_parameters(setting, parameters)
    poll = _progress_poll(folder, progress)
    log = AccessLog()
    if unwatched is not None:
        spec = _trial_spec(setting, place, folder, values, {})
        result = unwatched.execute(spec, poll, threading.Event())
    else:
        with AccessWatch(folder) as watch:
            spec = _trial_spec(setting, place, folder, values, watch.environment)
            result = local.run_in_new_process(
                spec, poll, launch=watch.launch, handles=watch.handles
            )
        log = watch.log
    executed: Json = {}
    if (folder / EXECUTED_NOTEBOOK).exists():
        executed = json.loads((folder / EXECUTED_NOTEBOOK).read_bytes())
    return Trial(place, result, log, executed, values)


def access_policy(setting: TrialSetup, trial: Trial) -> AccessPolicy:
    """What the contract lets this trial touch."""
    contract, declaration = setting.contract, setting.contract.declaration
    access = declaration.access
    named = [trial.parameters[n] for n in cache.path_parameters(contract, trial.parameters)]
    writes = [_real_path(setting.project, one) for one in access.writes]
    writes += [str(trial.place.root), str(setting.place.root)]
    reads = [_real_path(setting.project, one) for one in (*access.reads, *named)]
    urls = [url for url in setting.environment.values() if "://" in url]
    hosts = [_host_and_port(url) for url in urls] if declaration.services else []
    return AccessPolicy(
        reads=(*software_paths(), *reads, str(setting.notebook)),
        writes=(*scratch_paths(), *writes, *(os.path.realpath(one) for one in writes)),
        hosts=(*access.network, *hosts),
    )


def code_cells(executed: Json) -> list[Json]:
    """Code cells of an executed notebook as they were numbered before it ran."""
    cells = executed.get("cells", [])
    return [c for c in cells if c["cell_type"] == "code" and not _is_injected(c)]


def _absolute_parameters(setting: TrialSetup, parameters: Json) -> Json:
    """Path parameters made absolute from the project, as the planner does."""
    made = dict(parameters)
    for name in cache.path_parameters(setting.contract, parameters):
        unless = setting.contract.declaration.paths[name].unless
        made[name] = cache.absolute_path(name, parameters[name], unless, setting.project)
    return made


def _timestamp(moment: str) -> float:
    """Seconds since the epoch of papermill's time stamp, which is in UTC."""
    at = datetime.fromisoformat(moment)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _is_injected(cell: Json) -> bool:
    return "injected-parameters" in cell["metadata"].get("tags", [])


def _trial_workspace(setting: TrialSetup, name: str) -> Workspace:
    root = setting.folder / name
    if root.exists():
        shutil.rmtree(root)
    place = Workspace(root)
    root.mkdir(parents=True)
    for shared in _SHARED_FOLDERS:
        source = setting.place.root / shared
        source.mkdir(parents=True, exist_ok=True)
        (root / shared).symlink_to(source, target_is_directory=True)
    if (root / "secrets").exists():
        (root / "secrets").resolve().chmod(0o700)
    given, store = Store(setting.place), Store(place)
    for ref in _referenced_records(given, setting.inputs):
        shutil.copytree(given.folder(ref), store.folder(ref), copy_function=_link_or_copy)
    return place


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _referenced_records(store: Store, inputs: _Inputs) -> list[Ref]:
    """The inputs and every record that they lead to, as far as the store has it."""
    found: dict[Ref, None] = {}
    waiting = refs_in(dict(inputs))
    while waiting:
        ref = waiting.pop()
        if ref not in found and store.exists(ref):
            found[ref] = None
            waiting.extend(refs_in(store.load(ref).model_dump(mode="json")))
    return list(found)


def _trial_spec(
    setting: TrialSetup, place: Workspace, folder: Path, values: Json, more: Mapping[str, str]
) -> StepSpec:
    return setting.contract.spec(
        place,
        folder,
        place.scratch / "check",
        parameters=values,
        inputs=setting.inputs,
        notebook=str(setting.notebook),
        environment={**setting.environment, **more},
        project=str(setting.project),
    )


def _progress_poll(folder: Path, tell: Callable[[int, int], None]) -> Callable[[], None]:
    files = StepFiles(folder)

    def poll() -> None:
        told = files.progress()
        if told:
            tell(*told)

    return poll


def _real_path(project: Path, path: str) -> str:
    return str((project / Path(path).expanduser()).resolve())


def _host_and_port(url: str) -> str:
    """``host:port`` of an address; a server on this machine is known by its loopback number."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    return f"{host}:{parts.port}" if parts.port else host
