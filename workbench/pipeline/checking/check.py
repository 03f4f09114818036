"""The whole check of one notebook: static checks, fixture runs, signed receipt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.core.errors import ContractError, WorkbenchError
from workbench.core.secret_scan import is_secret_name
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.pipeline.checking import receipts, trials
from workbench.pipeline.checking.dynamic_checks import run_dynamic_checks
from workbench.pipeline.checking.findings import Finding, sort_findings
from workbench.pipeline.checking.notebook import as_ipynb
from workbench.pipeline.checking.receipts import CheckOutcome, Coverage
from workbench.pipeline.checking.static_checks import run_static_checks
from workbench.pipeline.checking.trials import CheckDisplay
from workbench.pipeline.contract import read_contract
from workbench.records.base import Ref

__all__ = ["CheckReport", "check_notebook"]

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
        result = run_dynamic_checks(workspace, notebook, readable, known_secrets, display)
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
