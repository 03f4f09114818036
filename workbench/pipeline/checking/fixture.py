"""The inputs on which a notebook is checked: made by running a pipeline, as far as they need it.

They are made in a workspace kept below ``.workbench/checks``, so the next check finds them there.
Servers named by environment variables are left out of it: no check writes where production does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from workbench import services
from workbench.errors import ContractError, StepFailed
from workbench.pipeline.contracts.contract import StepContract
from workbench.pipeline.definition import graph
from workbench.pipeline.definition.graph import Pipeline
from workbench.pipeline.planning import plan
from workbench.pipeline.running import run as running
from workbench.pipeline.running.report import StepReport
from workbench.records.base import Ref
from workbench.services.external import VARIABLES
from workbench.workspace import Workspace

FOLDER = "checks"


class Teller(Protocol):
    """Whoever watches a check."""

    def note(self, message: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


def workspace_of(place: Workspace) -> Workspace:
    """Where the fixtures of a workspace's checks are made and kept."""
    return Workspace(place.root / FOLDER / "fixtures")


@contextlib.contextmanager
def own_servers(place: Workspace) -> Iterator[None]:
    """Inside, no server that others use is known; the last check at work stops the checks' own."""
    hidden = (*VARIABLES.values(), "LABEL_STUDIO_TOKEN", "LABEL_STUDIO_API_KEY")
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


def inputs(
    place: Workspace, contract: StepContract, project: Path, tell: Teller
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
        pipeline = graph.load(path, declared.fixture.pipeline, base=project)
        found = _run(place, pipeline, outputs, tell)
        for name in outputs:
            made[name] = (found[name],) if declared.inputs[name].many else found[name]
    return made


def _run(
    place: Workspace, pipeline: Pipeline, outputs: dict[str, str], tell: Teller
) -> dict[str, Ref]:
    """Run what the outputs need; returns a reference for each name in ``outputs``."""
    steps = {name for output in outputs.values() for name in _needed(pipeline, output)}
    choice = plan.choose(pipeline, only=tuple(sorted(steps)))
    report = running.run(place, pipeline, _Display(tell, len(steps)), choice=choice)
    missing = [output for output in outputs.values() if output not in report.outputs]
    if missing:
        raise StepFailed(
            f"{', '.join(missing)} was not made: {report.reason or report.status}",
            where=f"{pipeline.name}, for the check's fixture",
            hint=f"WORKBENCH_HOME={place.root} workbench run {pipeline.file} shows it",
        )
    return {name: report.outputs[output] for name, output in outputs.items()}


def _needed(pipeline: Pipeline, output: str) -> set[str]:
    """The step that makes ``output``, and all above it."""
    waiting, found = list(pipeline.named(output.rpartition(".")[0])), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(pipeline.steps[name].needs)
    return found


class _Display:
    """Passes on what a pipeline run tells."""

    def __init__(self, tell: Teller, steps: int) -> None:
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
