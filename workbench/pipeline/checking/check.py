"""The whole check of one notebook: static checks, fixture runs, signed receipt.

The fixture runs execute the notebook three times: outputs, access, repeatability.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench import services
from workbench.core import secret_scan
from workbench.core.errors import ContractError, ParameterError, RecordError, WorkbenchError
from workbench.core.secret_scan import is_secret_name
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.core.workspace import Workspace, project_root
from workbench.pipeline.checking import receipts, trials
from workbench.pipeline.checking.findings import Finding, sort_findings
from workbench.pipeline.checking.notebook import as_ipynb
from workbench.pipeline.checking.receipts import CheckOutcome, Coverage
from workbench.pipeline.checking.static_checks import run_static_checks
from workbench.pipeline.checking.trials import CheckDisplay, Trial, TrialSetup
from workbench.pipeline.contract import StepContract, read_contract
from workbench.pipeline.executors.local import LocalExecutor
from workbench.pipeline.spec import ExitStatus
from workbench.records.base import Ref, kind_of
from workbench.records.store import Store

__all__ = ["CheckReport", "check_notebook"]


_INVALID_VALUES: tuple[Any, ...] = (
    {"no": {"such": []}},
    "no such value \x00",
    [[[]]],
    -(10**15),
    None,
)
"""Values that no parameter should accept all of."""

_REDACTED = re.compile(r"\[redacted: ([^\]]+)\]")
_NEAR_BUDGET = 0.8
"""Share of a limit from which a run is reported as near to it."""

_COUNT_FIELDS = {
    "dataset": "frames",
    "selection": "chosen",
    "batch": "frames",
    "gates": "gates",
}
"""Record kind to the field that is empty or zero in a record without content."""

_ACCESS_RULES = {
    "read": ("undeclared-read", "read"),
    "write": ("undeclared-write", "wrote"),
    "connect": ("undeclared-network", "connected to"),
}
_CHECK_OF_RULE = {
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
"""Rule to the check that has not passed when the rule has a finding."""

_STOPPING_RULES = frozenset({"failed", "over-budget"})
"""After these there is nothing to compare."""


@dataclass(frozen=True)
class _DynamicResult:
    """What the runs showed.

    Attributes:
        checks: Outcome of each check that passed, or did not apply.
        watch: How much of the first run's file and network access was observed.
        outputs: Records that the first run made.
    """

    findings: list[Finding]
    checks: dict[str, CheckOutcome]
    watch: Coverage
    outputs: dict[str, Ref]
    seconds: float = 0.0
    peak_memory_mib: float = 0.0


def _run_dynamic_checks(
    workspace: Workspace,
    original: Path,
    readable: Path,
    known_secrets: Mapping[str, str],
    display: CheckDisplay,
) -> _DynamicResult:
    """Run the notebook on its fixture; its contract must be readable.

    Args:
        original: The notebook as its author knows it; paths in its contract start at its project.
        readable: The same notebook as an .ipynb.
        known_secrets: Secret values by name.
    """
    contract = read_contract(readable)
    findings = list(_check_bad_values(contract))
    fixtures = trials.fixture_workspace(workspace)
    with trials.isolated_servers(fixtures):
        try:
            setup = _set_up(workspace, fixtures, contract, original, readable, display)
        except WorkbenchError as error:
            findings.append(Finding("fixture-unready", str(error)))
            return _DynamicResult(findings, {}, "none", {})
        try:
            return _run_trials(setup, findings, known_secrets, display)
        except ParameterError as error:
            findings.append(Finding("fixture", error.what))
            return _DynamicResult(findings, {}, "none", {})


def _set_up(
    workspace: Workspace,
    fixtures: Workspace,
    contract: StepContract,
    original: Path,
    readable: Path,
    display: CheckDisplay,
) -> TrialSetup:
    project = project_root(original)
    inputs = trials.prepare_inputs(fixtures, contract, project, display)
    environment: dict[str, str] = {}
    if contract.declaration.services:
        display.note(f"starting {', '.join(contract.declaration.services)} for the check")
        services.up(fixtures, contract.declaration.services)
        environment = services.environment(fixtures, contract.declaration.services)
    folder = workspace.root / trials.CHECKS_FOLDER / "trials" / original.stem
    return TrialSetup(contract, readable, project, fixtures, inputs, environment, folder)


def _run_trials(
    setup: TrialSetup,
    findings: list[Finding],
    known_secrets: Mapping[str, str],
    display: CheckDisplay,
) -> _DynamicResult:
    fixture = setup.contract.declaration.fixture
    values = setup.contract.validate(fixture.parameters)
    display.note("run 1 of 3: fixture parameters, file and network access recorded")
    first = trials.run_trial(setup, "first", values, display.progress)
    findings += _check_completion(setup, first)
    findings += _check_access(setup, first)
    findings += _check_printed_secrets(first, known_secrets)
    if any(finding.is_error and finding.rule in _STOPPING_RULES for finding in findings):
        return _DynamicResult(findings, {}, first.log.coverage, {})
    result = first.result
    findings += _check_outputs(first.workspace, setup.contract, result.outputs)
    checks: dict[str, CheckOutcome] = {
        "static": "passed",
        "runs": "passed",
        "bad values": "passed",
        "reads and writes": "passed" if first.log.coverage == "complete" else "partial",
        "outputs": "passed" if result.outputs else "not-applicable",
        "repeats": "passed" if result.outputs else "not-applicable",
        "parameters": "not-applicable",
    }
    with contextlib.closing(LocalExecutor()) as executor:
        display.note("run 2 of 3: the same parameters again")
        second = trials.run_trial(setup, "second", values, display.progress, unwatched=executor)
        findings += _check_repeatability(first, second)
        if fixture.other and result.outputs:
            display.note("run 3 of 3: other parameters")
            other = setup.contract.validate({**fixture.parameters, **fixture.other})
            third = trials.run_trial(setup, "third", other, display.progress, unwatched=executor)
            findings += _check_other_parameters(setup, first, third)
            checks["parameters"] = "passed"
    for finding in findings:
        checks.pop(_CHECK_OF_RULE.get(finding.rule, ""), None)
    return _DynamicResult(
        findings,
        checks,
        first.log.coverage,
        result.outputs,
        result.seconds,
        result.peak_memory_mib,
    )


def _check_bad_values(contract: StepContract) -> Iterator[Finding]:
    """A finding for each parameter that accepts every invalid value."""
    valid = contract.validate({})
    for name in contract.parameters.model_fields:
        if all(_accepts(contract, {**valid, name: value}) for value in _INVALID_VALUES):
            yield Finding("accepts-anything", f"parameter `{name}` accepts any value")


def _accepts(contract: StepContract, values: Json) -> bool:
    try:
        contract.validate(values)
    except ParameterError:
        return False
    return True


def _check_completion(setup: TrialSetup, trial: Trial) -> Iterator[Finding]:
    result, resources = trial.result, setup.contract.declaration.resources
    if result.status is not ExitStatus.OK:
        failure, cells, number = result.failure, trial.cells, trial.failed_cell
        cell_id = cells[number - 1].get("id") if number and number <= len(cells) else None
        over = failure is not None and failure.kind in ("timed-out", "out-of-memory")
        message = str(failure) if failure else result.status.name.lower()
        yield Finding("over-budget" if over else "failed", message, number, cell_id)
        return
    for number, cell in enumerate(trial.cells, 1):
        if "".join(cell["source"]).strip() and cell["execution_count"] is None:
            message = "the cell was not executed"
            yield Finding("cell-not-executed", message, number, cell.get("id"))
    if result.seconds > _NEAR_BUDGET * resources.timeout_s:
        message = f"the run took {result.seconds:.0f} s of {resources.timeout_s:g} s"
        yield Finding("near-budget", message)
    if result.peak_memory_mib > _NEAR_BUDGET * resources.memory_gib * 1024:
        message = f"the run used {result.peak_memory_mib:.0f} MiB of {resources.memory_gib:g} GiB"
        yield Finding("near-budget", message)


def _check_access(setup: TrialSetup, trial: Trial) -> Iterator[Finding]:
    """Undeclared accesses; several files in a folder are one finding."""
    ids = {number: cell.get("id") for number, cell in enumerate(trial.cells, 1)}
    groups: dict[tuple[str, int, str], list[str]] = {}
    policy = trials.access_policy(setup, trial)
    for access, cell in policy.undeclared(trial.log, trial.windows):
        is_path = access.kind != "connect"
        group = str(Path(access.target).parent) if is_path else access.target
        groups.setdefault((access.kind, cell, group), []).append(access.target)
    for (kind, cell, group), targets in groups.items():
        target = targets[0]
        if len(targets) > 1:
            target = f"{len(targets)} files in {group}, such as {Path(target).name}"
        rule, verb = _ACCESS_RULES[kind]
        yield Finding(rule, f"{verb} {target}", cell, ids.get(cell))
    if trial.log.coverage != "complete":
        observed = "only Python's own calls" if trial.log.coverage == "partial" else "nothing"
        yield Finding("watch-incomplete", f"observed file and network access: {observed}")


def _check_printed_secrets(trial: Trial, known_secrets: Mapping[str, str]) -> Iterator[Finding]:
    for number, cell in enumerate(trial.cells, 1):
        for text in _output_texts(cell):
            for leak in secret_scan.scan_text(text, known_secrets):
                message = f"an output contains {leak.name}"
                yield Finding("secret-in-output", message, number, cell.get("id"))
            for redacted in _REDACTED.finditer(text):
                message = f"an output contained {redacted[1]}, a secret, which was redacted"
                yield Finding("secret-in-output", message, number, cell.get("id"))


def _output_texts(cell: Json) -> Iterator[str]:
    for output in cell.get("outputs", []):
        yield "".join(output.get("text", ""))
        yield "\n".join(output.get("traceback", []))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield "".join(data) if isinstance(data, list | str) else str(data)


def _check_outputs(
    workspace: Workspace, contract: StepContract, outputs: Mapping[str, Ref]
) -> Iterator[Finding]:
    """Declared outputs are complete, of the declared kind, and not empty."""
    store = Store(workspace)
    for name, declared in contract.declaration.outputs.items():
        ref = outputs.get(name)
        if ref is None:
            yield Finding("missing-output", f"output {name!r} was not saved")
            continue
        try:
            record = store.load(ref)
            sizes = [store.payload(ref, part).stat().st_size for part in store.payload_names(ref)]
        except RecordError as error:
            yield Finding("output-invalid", f"output {name!r}: {error}")
            continue
        if kind_of(ref) != declared.kind:
            message = f"output {name!r} is a {kind_of(ref)} record, declared as {declared.kind}"
            yield Finding("output-invalid", message)
        field = _COUNT_FIELDS.get(declared.kind)
        if field and not getattr(record, field):
            yield Finding("output-empty", f"output {name!r} has no {field}")
        elif sizes and not any(sizes):
            yield Finding("output-empty", f"the files of output {name!r} are empty")


def _check_repeatability(first: Trial, second: Trial) -> Iterator[Finding]:
    if second.result.status is not ExitStatus.OK:
        yield Finding("not-repeatable", f"the second run failed: {second.result.failure}")
        return
    for name, ref in first.result.outputs.items():
        other = second.result.outputs.get(name)
        if other is None:
            yield Finding("not-repeatable", f"the second run did not save output {name!r}")
        elif other != ref:
            fields = _differing_fields(
                *(
                    json.loads((Store(trial.workspace).folder(one) / "record.json").read_bytes())
                    for trial, one in ((first, ref), (second, other))
                )
            )
            differs = ", ".join(fields[:5]) or "digest"
            yield Finding("not-repeatable", f"output {name!r} differs in {differs}")


def _differing_fields(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            field
            for key in sorted({*one, *other})
            for field in _differing_fields(
                one.get(key), other.get(key), f"{path}.{key}" if path else key
            )
        ]
    return [] if one == other else [path]


def _check_other_parameters(setup: TrialSetup, first: Trial, third: Trial) -> Iterator[Finding]:
    other = setup.contract.declaration.fixture.other
    values = ", ".join(f"{name}={value}" for name, value in other.items())
    if third.result.status is not ExitStatus.OK:
        yield Finding("fixture", f"fixture.other ({values}) fails: {third.result.failure}")
    elif third.result.outputs == first.result.outputs:
        yield Finding("parameters-ignored", f"{values} changes no output")


_MIN_SECRET_LENGTH = 8


@short_repr
@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        ran: Whether the notebook was executed.
        checks: Outcome of each check that passed, or did not apply.
        watch: How much of its file and network access was observed.
        receipt: The signed receipt; None unless every check passed.
        outputs: Records that the notebook made on its fixture.
        schema: JSON schema of the parameters, None when they cannot be read.
        seconds: Run time on the fixture.
    """

    notebook: Path
    findings: tuple[Finding, ...]
    ran: bool = False
    checks: Mapping[str, CheckOutcome] = field(default_factory=dict)
    watch: Coverage | None = None
    receipt: Ref | None = None
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    schema: Json | None = None
    seconds: float = 0.0
    peak_memory_mib: float = 0.0

    @property
    def passed(self) -> bool:
        return not any(finding.is_error for finding in self.findings)


def check_notebook(
    workspace: Workspace, notebook: Path, display: CheckDisplay, *, execute: bool = True
) -> CheckReport:
    """Check a notebook, and leave a signed receipt when every check passes.

    Args:
        notebook: An .ipynb or a marimo app.
        display: Shows the progress.
        execute: Also run the notebook on its fixture, unless a static check has failed.

    Raises:
        ContractError: The file is not a notebook, or another process is checking it.
    """
    readable = as_ipynb(workspace, notebook)
    known_secrets = _known_secrets(readable)
    findings = run_static_checks(readable, known_secrets)
    report = CheckReport(notebook, tuple(findings), schema=_parameter_schema(readable))
    if not execute or not report.passed:
        return report
    before = receipts.state_digest(workspace, notebook)
    with _exclusive(workspace, notebook):
        result = _run_dynamic_checks(workspace, notebook, readable, known_secrets, display)
    findings += result.findings
    if receipts.state_digest(workspace, notebook) != before:
        findings.append(Finding("changed-meanwhile", "the notebook changed during the check"))
    report = replace(
        report,
        findings=tuple(sort_findings(findings)),
        ran=True,
        checks=result.checks,
        watch=result.watch,
        outputs=result.outputs,
        seconds=result.seconds,
        peak_memory_mib=result.peak_memory_mib,
    )
    if not report.passed:
        return report
    receipt = receipts.issue_receipt(
        workspace,
        notebook,
        checks=result.checks,
        watch=result.watch,
        warnings=tuple(finding.as_json() for finding in report.findings),
        outputs=result.outputs,
    )
    return replace(report, receipt=receipt)


def _known_secrets(notebook: Path) -> dict[str, str]:
    """Values of environment variables that are secret by the contract or by their name."""
    declared: tuple[str, ...] = ()
    with contextlib.suppress(WorkbenchError):  # the static checks report it
        declared = read_contract(notebook).declaration.secrets
    return {
        name: value
        for name, value in os.environ.items()
        if name in declared or (is_secret_name(name) and len(value) >= _MIN_SECRET_LENGTH)
    }


def _parameter_schema(notebook: Path) -> Json | None:
    try:
        return read_contract(notebook).parameters.model_json_schema()
    except WorkbenchError:
        return None


@contextlib.contextmanager
def _exclusive(workspace: Workspace, notebook: Path) -> Iterator[None]:
    """Hold the notebook's lock; the operating system releases it when the process ends."""
    path = workspace.root / trials.CHECKS_FOLDER / f"{notebook.stem}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ContractError(
            "another process is checking this notebook",
            where=notebook,
            hint="Wait until that check has ended",
        ) from error
    try:
        yield
    finally:
        lock.release()
