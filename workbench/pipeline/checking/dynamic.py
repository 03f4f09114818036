"""What a notebook does on its fixture: three runs from nothing, and what they show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import services, workspace
from workbench.errors import ParameterError, WorkbenchError
from workbench.pipeline.checking import badvalues, fixture, outputs, trial
from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.checking.fixture import Teller
from workbench.pipeline.checking.receipts import Ended
from workbench.pipeline.checking.trial import Setting, Trial
from workbench.pipeline.checking.watch.events import Coverage
from workbench.pipeline.contracts import contract as contracts
from workbench.pipeline.contracts.contract import StepContract
from workbench.pipeline.running.executors.local import LocalExecutor
from workbench.pipeline.steps import secrets
from workbench.pipeline.steps.spec import ExitStatus
from workbench.records.base import Ref
from workbench.workspace import Workspace

Json = dict[str, Any]

_NEAR = 0.8
"""Share of a budget from which a run is too near to it."""

_TOUCHES = {
    "read": ("undeclared-read", "read"),
    "write": ("undeclared-write", "wrote"),
    "connect": ("undeclared-network", "talked to"),
}
_ABOUT = {
    "cell-not-executed": "runs",
    "secret-in-output": "runs",
    "undeclared-read": "reads and writes",
    "undeclared-write": "reads and writes",
    "undeclared-network": "reads and writes",
    "missing-output": "outputs",
    "output-invalid": "outputs",
    "output-empty": "outputs",
    "not-repeatable": "repeats",
    "parameters-ignored": "parameters",
    "fixture": "parameters",
}
"""Rule to the check that did not pass when it found something."""

_STOPS = frozenset({"failed", "over-budget"})
"""After these there is nothing to compare."""


@dataclass(frozen=True)
class Observed:
    """What the runs showed: findings, how each check ended, how much was watched."""

    findings: list[Finding]
    checks: dict[str, Ended]
    watch: Coverage
    outputs: dict[str, Ref]
    seconds: float = 0.0
    peak_memory_mib: float = 0.0


def check(
    place: Workspace, original: Path, readable: Path, known: Mapping[str, str], tell: Teller
) -> Observed:
    """Run the notebook on its fixture; the contract is known to be readable.

    Args:
        original: The notebook as people know it; paths of its contract start from its project.
        readable: The same as an .ipynb.
    """
    contract = contracts.read(readable)
    findings = list(badvalues.check(contract))
    kept = fixture.workspace_of(place)
    with fixture.own_servers(kept):
        try:
            setting = _setting(place, kept, contract, original, readable, tell)
        except WorkbenchError as error:
            return Observed([*findings, Finding("fixture-unready", str(error))], {}, "none", {})
        try:
            return _runs(setting, findings, known, tell)
        except ParameterError as error:
            return Observed([*findings, Finding("fixture", error.what)], {}, "none", {})


def _setting(
    place: Workspace,
    kept: Workspace,
    contract: StepContract,
    original: Path,
    readable: Path,
    tell: Teller,
) -> Setting:
    project = workspace.project_of(original)
    given = fixture.inputs(kept, contract, project, tell)
    environment: dict[str, str] = {}
    if contract.declaration.services:
        tell.note(f"starting {', '.join(contract.declaration.services)} for the check")
        services.up(kept, contract.declaration.services)
        environment = services.environment(kept, contract.declaration.services)
    folder = place.root / fixture.FOLDER / "trials" / original.stem
    return Setting(contract, readable, project, kept, given, environment, folder)


def _runs(
    setting: Setting, findings: list[Finding], known: Mapping[str, str], tell: Teller
) -> Observed:
    declared = setting.contract.declaration.fixture
    values = setting.contract.validate(declared.parameters)
    tell.note("run 1 of 3: on the fixture, watched")
    first = trial.run(setting, "first", values, tell.progress)
    findings += _ended(setting, first)
    findings += _touched(setting, first)
    findings += _shown(first, known)
    if any(finding.is_error and finding.rule in _STOPS for finding in findings):
        return Observed(findings, {}, first.log.coverage, {})
    checks: dict[str, Ended] = {"static": "passed", "runs": "passed", "bad values": "passed"}
    checks["reads and writes"] = "passed" if first.log.coverage == "complete" else "partial"
    findings += outputs.check(first.place, setting.contract, first.result.outputs)
    checks["outputs"] = "passed" if first.result.outputs else "not-applicable"
    with contextlib.closing(LocalExecutor()) as warm:
        tell.note("run 2 of 3: the same again, from nothing")
        second = trial.run(setting, "second", values, tell.progress, unwatched=warm)
        findings += _repeated(first, second)
        checks["repeats"] = checks["outputs"]
        checks["parameters"] = "not-applicable"
        if declared.other and first.result.outputs:
            tell.note("run 3 of 3: other parameters")
            other = setting.contract.validate({**declared.parameters, **declared.other})
            third = trial.run(setting, "third", other, tell.progress, unwatched=warm)
            findings += _other(setting, first, third)
            checks["parameters"] = "passed"
    for finding in findings:
        checks.pop(_ABOUT.get(finding.rule, ""), None)
    result = first.result
    return Observed(
        findings,
        checks,
        first.log.coverage,
        result.outputs,
        result.seconds,
        result.peak_memory_mib,
    )


def _ended(setting: Setting, run: Trial) -> Iterator[Finding]:
    result, resources = run.result, setting.contract.declaration.resources
    if result.status is not ExitStatus.OK:
        cells = trial.code_cells(run.executed)
        cell = run.failed_cell
        name = cells[cell - 1].get("id") if cell and cell <= len(cells) else None
        said = f"{result.failure}" if result.failure else result.status.name.lower()
        over = result.failure is not None and result.failure.kind in ("timed-out", "out-of-memory")
        yield Finding("over-budget" if over else "failed", said, cell, name)
        return
    for number, cell_run in enumerate(trial.code_cells(run.executed), 1):
        if "".join(cell_run["source"]).strip() and cell_run["execution_count"] is None:
            message = "the cell was not executed"
            yield Finding("cell-not-executed", message, number, cell_run.get("id"))
    if result.seconds > _NEAR * resources.timeout_s:
        message = f"took {result.seconds:.0f} s of {resources.timeout_s:g} s"
        yield Finding("near-budget", message)
    if result.peak_memory_mib > _NEAR * resources.memory_gib * 1024:
        message = f"used {result.peak_memory_mib:.0f} MiB of {resources.memory_gib:g} GiB"
        yield Finding("near-budget", message)


def _touched(setting: Setting, run: Trial) -> Iterator[Finding]:
    """Everything undeclared, a folder's many files said once."""
    ids = {n: cell.get("id") for n, cell in enumerate(trial.code_cells(run.executed), 1)}
    grouped: dict[tuple[str, int, str], list[str]] = {}
    for seen, cell in trial.policy(setting, run).undeclared(run.log, run.windows):
        group = str(Path(seen.target).parent) if seen.kind != "connect" else seen.target
        grouped.setdefault((seen.kind, cell, group), []).append(seen.target)
    for (kind, cell, group), targets in grouped.items():
        shown = targets[0]
        if len(targets) > 1:
            shown = f"{len(targets)} files in {group}, such as {Path(targets[0]).name}"
        rule, verb = _TOUCHES[kind]
        yield Finding(rule, f"{verb} {shown}", cell, ids.get(cell))
    if run.log.coverage != "complete":
        how = "Python's own calls only" if run.log.coverage == "partial" else "nothing"
        yield Finding("watch-incomplete", f"the watch saw {how}")


def _shown(run: Trial, known: Mapping[str, str]) -> Iterator[Finding]:
    """Secrets in what cells printed."""
    for number, cell in enumerate(trial.code_cells(run.executed), 1):
        for text in _texts(cell):
            for leak in secrets.scan(text, known):
                message = f"an output shows {leak.name}"
                yield Finding("secret-in-output", message, number, cell.get("id"))
            if "[redacted: " in text:
                message = "an output showed a secret, which was taken out"
                yield Finding("secret-in-output", message, number, cell.get("id"))


def _texts(cell: Json) -> Iterator[str]:
    for output in cell.get("outputs", []):
        yield "".join(output.get("text", ""))
        yield "\n".join(output.get("traceback", []))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield "".join(data) if isinstance(data, list | str) else str(data)


def _repeated(first: Trial, second: Trial) -> Iterator[Finding]:
    if second.result.status is not ExitStatus.OK:
        yield Finding("not-repeatable", f"the second run failed: {second.result.failure}")
        return
    for name, ref in first.result.outputs.items():
        again = second.result.outputs.get(name)
        if again != ref:
            differs = outputs.difference(first.place, ref, second.place, again)
            yield Finding("not-repeatable", f"output {name!r} differs: {differs}")


def _other(setting: Setting, first: Trial, third: Trial) -> Iterator[Finding]:
    given = ", ".join(f"{k}={v}" for k, v in setting.contract.declaration.fixture.other.items())
    if third.result.status is not ExitStatus.OK:
        yield Finding("fixture", f"fixture.other ({given}) fails: {third.result.failure}")
    elif third.result.outputs == first.result.outputs:
        yield Finding("parameters-ignored", f"{given} changes no output")
