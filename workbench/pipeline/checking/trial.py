"""One run of a notebook on its fixture: in a workspace of its own, watched, and read afterwards.

The workspace holds the declared inputs with all that they refer to, and no other record. So what
a notebook finds there it was given, and a second trial cannot live on the results of the first.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.pipeline.checking.watch.events import Log
from workbench.pipeline.checking.watch.policy import Policy, Window, scribbles, software
from workbench.pipeline.checking.watch.supervisor import Watch
from workbench.pipeline.contracts.contract import StepContract
from workbench.pipeline.planning import keys
from workbench.pipeline.running.executors import Executor, alone
from workbench.pipeline.running.live import StepFiles
from workbench.pipeline.steps.runner import EXECUTED
from workbench.pipeline.steps.spec import StepResult, StepSpec
from workbench.records.base import Ref, refs_in
from workbench.records.store import Store
from workbench.workspace import Workspace

Json = dict[str, Any]
Inputs = Mapping[str, Ref | tuple[Ref, ...] | None]

_SHARED = ("media", "services", "secrets", "releases")
"""Named by content, or about servers and keys: every trial may meet the same ones."""


@dataclass(frozen=True)
class Setting:
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
    inputs: Inputs
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Trial:
    """How a run ended, and what was seen of it."""

    place: Workspace
    result: StepResult
    log: Log
    executed: Json
    parameters: Json

    @property
    def windows(self) -> list[Window]:
        """When each cell began, by its number in the notebook that was checked."""
        found = []
        for number, cell in enumerate(code_cells(self.executed), 1):
            times = cell["metadata"].get("papermill", {})
            if times.get("start_time"):
                end = times.get("end_time")
                window = Window(number, _seconds(times["start_time"]))
                found.append(replace(window, end=_seconds(end)) if end else window)
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


def run(
    setting: Setting,
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
    place = _workspace(setting, name)
    folder = place.runs / "check" / setting.contract.name
    folder.mkdir(parents=True)
    values = absolute(setting, parameters)
    poll = _poll(folder, progress)
    log = Log()
    if unwatched is not None:
        spec = _spec(setting, place, folder, values, {})
        result = unwatched.execute(spec, poll, threading.Event())
    else:
        with Watch(folder) as watch:
            spec = _spec(setting, place, folder, values, watch.environment)
            result = alone.execute(spec, poll, launch=watch.launch, handles=watch.handles)
        log = watch.log
    executed: Json = {}
    if (folder / EXECUTED).exists():
        executed = json.loads((folder / EXECUTED).read_bytes())
    return Trial(place, result, log, executed, values)


def policy(setting: Setting, trial: Trial) -> Policy:
    """What the contract lets this trial touch."""
    contract, declaration = setting.contract, setting.contract.declaration
    access = declaration.access
    named = [trial.parameters[n] for n in keys.path_parameters(contract, trial.parameters)]
    writes = [_real(setting.project, one) for one in access.writes]
    writes += [str(trial.place.root), str(setting.place.root)]
    reads = [_real(setting.project, one) for one in (*access.reads, *named)]
    urls = [url for url in setting.environment.values() if "://" in url]
    hosts = [_host(url) for url in urls] if declaration.services else []
    return Policy(
        reads=(*software(), *reads, str(setting.notebook)),
        writes=(*scribbles(), *writes, *(os.path.realpath(one) for one in writes)),
        hosts=(*access.network, *hosts),
    )


def code_cells(executed: Json) -> list[Json]:
    """Code cells of an executed notebook as they were numbered before it ran."""
    cells = executed.get("cells", [])
    return [c for c in cells if c["cell_type"] == "code" and not _is_injected(c)]


def absolute(setting: Setting, parameters: Json) -> Json:
    """Path parameters made absolute from the project, as the planner does."""
    made = dict(parameters)
    for name in keys.path_parameters(setting.contract, parameters):
        unless = setting.contract.declaration.paths[name].unless
        made[name] = keys.absolute_path(name, parameters[name], unless, setting.project)
    return made


def _seconds(moment: str) -> float:
    """Seconds since the epoch of papermill's time stamp, which is in UTC."""
    at = datetime.fromisoformat(moment)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _is_injected(cell: Json) -> bool:
    return "injected-parameters" in cell["metadata"].get("tags", [])


def _workspace(setting: Setting, name: str) -> Workspace:
    root = setting.folder / name
    if root.exists():
        shutil.rmtree(root)
    place = Workspace(root)
    root.mkdir(parents=True)
    for shared in _SHARED:
        source = setting.place.root / shared
        source.mkdir(parents=True, exist_ok=True)
        (root / shared).symlink_to(source, target_is_directory=True)
    if (root / "secrets").exists():
        (root / "secrets").resolve().chmod(0o700)
    given, store = Store(setting.place), Store(place)
    for ref in _closure(given, setting.inputs):
        shutil.copytree(given.folder(ref), store.folder(ref), copy_function=_link)
    return place


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _closure(store: Store, inputs: Inputs) -> list[Ref]:
    """The inputs and every record that they lead to, as far as the store has it."""
    found: dict[Ref, None] = {}
    waiting = refs_in(dict(inputs))
    while waiting:
        ref = waiting.pop()
        if ref not in found and store.exists(ref):
            found[ref] = None
            waiting.extend(refs_in(store.load(ref).model_dump(mode="json")))
    return list(found)


def _spec(
    setting: Setting, place: Workspace, folder: Path, values: Json, more: Mapping[str, str]
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


def _poll(folder: Path, tell: Callable[[int, int], None]) -> Callable[[], None]:
    files = StepFiles(folder)

    def poll() -> None:
        told = files.progress()
        if told:
            tell(*told)

    return poll


def _real(project: Path, path: str) -> str:
    return str((project / Path(path).expanduser()).resolve())


def _host(url: str) -> str:
    """``host:port`` of an address; a server on this machine is known by its loopback number."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    return f"{host}:{parts.port}" if parts.port else host
