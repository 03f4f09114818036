"""Checks that execute the notebook on its fixture: three runs, outputs, access, repeatability."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import services
from workbench.core import workspace
from workbench.core.errors import ParameterError, RecordError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract as contracts
from workbench.pipeline import secret_scan
from workbench.pipeline.checking import trials
from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.checking.receipts import CheckOutcome
from workbench.pipeline.checking.trials import CheckDisplay, Trial, TrialSetup
from workbench.pipeline.checking.watch import Coverage
from workbench.pipeline.contract import StepContract
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.spec import ExitStatus
from workbench.records.base import Ref, kind_of
from workbench.records.store import Store

_INVALID_VALUES: tuple[Any, ...] = (
    {"no": {"such": []}},
    "no such value \x00",
    [[[]]],
    -(10**15),
    None,
)


def check_bad_values(contract: StepContract) -> Iterator[Finding]:
    """A finding for each parameter that takes whatever it is given."""
    valid = contract.validate({})
    for name in contract.parameters.model_fields:
        if all(_accepts(contract, {**valid, name: value}) for value in _INVALID_VALUES):
            yield Finding("accepts-anything", f"parameter `{name}` takes any value")


def _accepts(contract: StepContract, values: dict[str, Any]) -> bool:
    try:
        contract.validate(values)
    except ParameterError:
        return False
    return True


# ---- Records that a notebook handed over: whole, of the right kind, and with something in them.


_COUNT_FIELDS = {
    "dataset": "frames",
    "selection": "chosen",
    "batch": "frames",
    "gates": "gates",
}
"""Kind to the field that is empty, or zero, when the record says nothing."""


def check_outputs(
    place: Workspace, contract: StepContract, made: Mapping[str, Ref]
) -> Iterator[Finding]:
    store = Store(place)
    for name, declared in contract.declaration.outputs.items():
        ref = made.get(name)
        if ref is None:
            yield Finding("missing-output", f"output {name!r} was not handed over")
            continue
        try:
            record = store.load(ref)
            sizes = [store.payload(ref, part).stat().st_size for part in store.payload_names(ref)]
        except RecordError as error:
            yield Finding("output-invalid", f"output {name!r}: {error}")
            continue
        if kind_of(ref) != declared.kind:
            yield Finding("output-invalid", f"output {name!r} is no {declared.kind}")
        field = _COUNT_FIELDS.get(declared.kind)
        if field and not getattr(record, field):
            yield Finding("output-empty", f"output {name!r} has no {field}")
        elif sizes and not any(sizes):
            yield Finding("output-empty", f"the files of output {name!r} are empty")


def _describe_difference(one: Workspace, first: Ref, other: Workspace, second: Ref | None) -> str:
    """Where two records of the same work part, in words."""
    if second is None:
        return "the second run made none"
    bodies = [
        json.loads((Store(place).folder(ref) / "record.json").read_bytes())
        for place, ref in ((one, first), (other, second))
    ]
    parts = _differing_fields(bodies[0], bodies[1])
    return ", ".join(parts[:5]) or "its digest"


def _differing_fields(one: Any, other: Any, at: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            part
            for key in sorted({*one, *other})
            for part in _differing_fields(
                one.get(key), other.get(key), f"{at}.{key}" if at else key
            )
        ]
    return [] if one == other else [at]


# ---- What a notebook does on its fixture: three runs from nothing, and what they show.


Json = dict[str, Any]

_NEAR_BUDGET = 0.8
"""Share of a budget from which a run is too near to it."""

_ACCESS_RULES = {
    "read": ("undeclared-read", "read"),
    "write": ("undeclared-write", "wrote"),
    "connect": ("undeclared-network", "talked to"),
}
_RULE_CHECKS = {
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

_STOPPING_RULES = frozenset({"failed", "over-budget"})
"""After these there is nothing to compare."""


@dataclass(frozen=True)
class DynamicResult:
    """What the runs showed: findings, how each check ended, how much was watched."""

    findings: list[Finding]
    checks: dict[str, CheckOutcome]
    watch: Coverage
    outputs: dict[str, Ref]
    seconds: float = 0.0
    peak_memory_mib: float = 0.0


def run_dynamic_checks(
    place: Workspace, original: Path, readable: Path, known: Mapping[str, str], tell: CheckDisplay
) -> DynamicResult:
    """Run the notebook on its fixture; the contract is known to be readable.

    Args:
        original: The notebook as people know it; paths of its contract start from its project.
        readable: The same as an .ipynb.
    """
    contract = contracts.read_contract(readable)
    findings = list(check_bad_values(contract))
    kept = trials.fixture_workspace(place)
    with trials.isolated_servers(kept):
        try:
            setting = _set_up(place, kept, contract, original, readable, tell)
        except WorkbenchError as error:
            return DynamicResult(
                [*findings, Finding("fixture-unready", str(error))], {}, "none", {}
            )
        try:
            return _run_trials(setting, findings, known, tell)
        except ParameterError as error:
            return DynamicResult([*findings, Finding("fixture", error.what)], {}, "none", {})


def _set_up(
    place: Workspace,
    kept: Workspace,
    contract: StepContract,
    original: Path,
    readable: Path,
    tell: CheckDisplay,
) -> TrialSetup:
    project = workspace.project_root(original)
    given = trials.prepare_inputs(kept, contract, project, tell)
    environment: dict[str, str] = {}
    if contract.declaration.services:
        tell.note(f"starting {', '.join(contract.declaration.services)} for the check")
        services.up(kept, contract.declaration.services)
        environment = services.environment(kept, contract.declaration.services)
    folder = place.root / trials.CHECKS_FOLDER / "trials" / original.stem
    return TrialSetup(contract, readable, project, kept, given, environment, folder)


def _run_trials(
    setting: TrialSetup, findings: list[Finding], known: Mapping[str, str], tell: CheckDisplay
) -> DynamicResult:
    declared = setting.contract.declaration.fixture
    values = setting.contract.validate(declared.parameters)
    tell.note("run 1 of 3: on the fixture, watched")
    first = trials.run_trial(setting, "first", values, tell.progress)
    findings += _check_completion(setting, first)
    findings += _check_access(setting, first)
    findings += _check_secrets(first, known)
    if any(finding.is_error and finding.rule in _STOPPING_RULES for finding in findings):
        return DynamicResult(findings, {}, first.log.coverage, {})
    checks: dict[str, CheckOutcome] = {"static": "passed", "runs": "passed", "bad values": "passed"}
    checks["reads and writes"] = "passed" if first.log.coverage == "complete" else "partial"
    findings += check_outputs(first.place, setting.contract, first.result.outputs)
    checks["outputs"] = "passed" if first.result.outputs else "not-applicable"
    with contextlib.closing(LocalExecutor()) as warm:
        tell.note("run 2 of 3: the same again, from nothing")
        second = trials.run_trial(setting, "second", values, tell.progress, unwatched=warm)
        findings += _check_repeatability(first, second)
        checks["repeats"] = checks["outputs"]
        checks["parameters"] = "not-applicable"
        if declared.other and first.result.outputs:
            tell.note("run 3 of 3: other parameters")
            other = setting.contract.validate({**declared.parameters, **declared.other})
            third = trials.run_trial(setting, "third", other, tell.progress, unwatched=warm)
            findings += _check_parameters_matter(setting, first, third)
            checks["parameters"] = "passed"
    for finding in findings:
        checks.pop(_RULE_CHECKS.get(finding.rule, ""), None)
    result = first.result
    return DynamicResult(
        findings,
        checks,
        first.log.coverage,
        result.outputs,
        result.seconds,
        result.peak_memory_mib,
    )


def _check_completion(setting: TrialSetup, run: Trial) -> Iterator[Finding]:
    result, resources = run.result, setting.contract.declaration.resources
    if result.status is not ExitStatus.OK:
        cells = trials.code_cells(run.executed)
        cell = run.failed_cell
        name = cells[cell - 1].get("id") if cell and cell <= len(cells) else None
        said = f"{result.failure}" if result.failure else result.status.name.lower()
        over = result.failure is not None and result.failure.kind in ("timed-out", "out-of-memory")
        yield Finding("over-budget" if over else "failed", said, cell, name)
        return
    for number, cell_run in enumerate(trials.code_cells(run.executed), 1):
        if "".join(cell_run["source"]).strip() and cell_run["execution_count"] is None:
            message = "the cell was not executed"
            yield Finding("cell-not-executed", message, number, cell_run.get("id"))
    if result.seconds > _NEAR_BUDGET * resources.timeout_s:
        message = f"took {result.seconds:.0f} s of {resources.timeout_s:g} s"
        yield Finding("near-budget", message)
    if result.peak_memory_mib > _NEAR_BUDGET * resources.memory_gib * 1024:
        message = f"used {result.peak_memory_mib:.0f} MiB of {resources.memory_gib:g} GiB"
        yield Finding("near-budget", message)


def _check_access(setting: TrialSetup, run: Trial) -> Iterator[Finding]:
    """Everything undeclared, a folder's many files said once."""
    ids = {n: cell.get("id") for n, cell in enumerate(trials.code_cells(run.executed), 1)}
    grouped: dict[tuple[str, int, str], list[str]] = {}
    for seen, cell in trials.access_policy(setting, run).undeclared(run.log, run.windows):
        group = str(Path(seen.target).parent) if seen.kind != "connect" else seen.target
        grouped.setdefault((seen.kind, cell, group), []).append(seen.target)
    for (kind, cell, group), targets in grouped.items():
        shown = targets[0]
        if len(targets) > 1:
            shown = f"{len(targets)} files in {group}, such as {Path(targets[0]).name}"
        rule, verb = _ACCESS_RULES[kind]
        yield Finding(rule, f"{verb} {shown}", cell, ids.get(cell))
    if run.log.coverage != "complete":
        how = "Python's own calls only" if run.log.coverage == "partial" else "nothing"
        yield Finding("watch-incomplete", f"the watch saw {how}")


def _check_secrets(run: Trial, known: Mapping[str, str]) -> Iterator[Finding]:
    """Secrets in what cells printed."""
    for number, cell in enumerate(trials.code_cells(run.executed), 1):
        for text in _output_texts(cell):
            for leak in secret_scan.scan_text(text, known):
                message = f"an output shows {leak.name}"
                yield Finding("secret-in-output", message, number, cell.get("id"))
            if "[redacted: " in text:
                message = "an output showed a secret, which was taken out"
                yield Finding("secret-in-output", message, number, cell.get("id"))


def _output_texts(cell: Json) -> Iterator[str]:
    for output in cell.get("outputs", []):
        yield "".join(output.get("text", ""))
        yield "\n".join(output.get("traceback", []))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield "".join(data) if isinstance(data, list | str) else str(data)


def _check_repeatability(first: Trial, second: Trial) -> Iterator[Finding]:
    if second.result.status is not ExitStatus.OK:
        yield Finding("not-repeatable", f"the second run failed: {second.result.failure}")
        return
    for name, ref in first.result.outputs.items():
        again = second.result.outputs.get(name)
        if again != ref:
            differs = _describe_difference(first.place, ref, second.place, again)
            yield Finding("not-repeatable", f"output {name!r} differs: {differs}")


def _check_parameters_matter(setting: TrialSetup, first: Trial, third: Trial) -> Iterator[Finding]:
    given = ", ".join(f"{k}={v}" for k, v in setting.contract.declaration.fixture.other.items())
    if third.result.status is not ExitStatus.OK:
        yield Finding("fixture", f"fixture.other ({given}) fails: {third.result.failure}")
    elif third.result.outputs == first.result.outputs:
        yield Finding("parameters-ignored", f"{given} changes no output")
