"""The whole check of one notebook: static checks, fixture runs, signed receipt."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.core.errors import ContractError, WorkbenchError
from workbench.core.workspace import Workspace
from workbench.pipeline import contract, parameters
from workbench.pipeline.checking import dynamic_checks, receipts, static_checks, trials
from workbench.pipeline.checking import notebook as marimo_apps
from workbench.pipeline.checking.findings import Finding, sort_findings
from workbench.pipeline.checking.receipts import CheckOutcome, WatchCoverage
from workbench.pipeline.checking.trials import CheckDisplay
from workbench.records.base import Ref

Json = dict[str, Any]

_SECRET_NAME = re.compile(r"(?i)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL)")
_MIN_SECRET_LENGTH = 8


@dataclass(frozen=True)
class CheckReport:
    """``receipt`` is there exactly when the notebook passed all of it.

    Attributes:
        ran: Whether the notebook was executed at all.
        checks: Each check that was made to how it ended.
        schema: JSON schema of the parameters, None where they cannot be read.
    """

    notebook: Path
    findings: tuple[Finding, ...]
    ran: bool = False
    checks: Mapping[str, CheckOutcome] = field(default_factory=dict)
    watch: WatchCoverage | None = None
    receipt: Ref | None = None
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    schema: Json | None = None
    seconds: float = 0.0
    peak_memory_mib: float = 0.0

    @property
    def passed(self) -> bool:
        return not any(finding.is_error for finding in self.findings)


def check_notebook(
    place: Workspace, notebook: Path, tell: CheckDisplay, *, execute: bool = True
) -> CheckReport:
    """Check ``notebook``, an .ipynb or a marimo app.

    Args:
        execute: Run it on its fixture, too, when nothing was found that would make it fail.

    Raises:
        ContractError: The file is no notebook.
        WorkbenchError: The same notebook is being checked already.
    """
    readable = marimo_apps.as_ipynb(place, notebook)
    known = known_secrets(readable)
    found = static_checks.run_static_checks(readable, known)
    schema = _parameter_schema(readable)
    if not execute or any(finding.is_error for finding in found):
        return CheckReport(notebook, tuple(found), schema=schema)
    before = receipts.state_digest(place, notebook)
    with _exclusive(place, notebook):
        seen = dynamic_checks.run_dynamic_checks(place, notebook, readable, known, tell)
    if receipts.state_digest(place, notebook) != before:
        found.append(Finding("changed-meanwhile", "it changed while it was checked"))
    findings = tuple(sort_findings([*found, *seen.findings]))
    report = CheckReport(
        notebook,
        findings,
        ran=True,
        checks=seen.checks,
        watch=seen.watch,
        outputs=seen.outputs,
        schema=schema,
        seconds=seen.seconds,
        peak_memory_mib=seen.peak_memory_mib,
    )
    return _with_receipt(place, report) if report.passed else report


def known_secrets(notebook: Path) -> dict[str, str]:
    """Values of environment variables that the contract, or their names, call secret."""
    declared: tuple[str, ...] = ()
    with contextlib.suppress(WorkbenchError):  # the static check says why
        declared = contract.read_contract(notebook).declaration.secrets
    return {
        name: value
        for name, value in os.environ.items()
        if name in declared or (_SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_LENGTH)
    }


def _with_receipt(place: Workspace, report: CheckReport) -> CheckReport:
    assert report.watch is not None  # noqa: S101 - it ran
    ref = receipts.issue_receipt(
        place,
        report.notebook,
        checks=report.checks,
        watch=report.watch,
        warnings=tuple(finding.as_json() for finding in report.findings),
        outputs=report.outputs,
    )
    return CheckReport(**{**vars(report), "receipt": ref})


def _parameter_schema(readable: Path) -> Json | None:
    try:
        return parameters.parameters_json_schema(contract.read_contract(readable).parameters)
    except WorkbenchError:
        return None


def _exclusive(place: Workspace, notebook: Path) -> _NotebookLock:
    return _NotebookLock(place.root / trials.CHECKS_FOLDER / f"{notebook.stem}.lock", notebook)


class _NotebookLock:
    """Holds a notebook's trials; the lock goes with the process, however that ends."""

    def __init__(self, path: Path, notebook: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path, timeout=0)
        self._notebook = notebook

    def __enter__(self) -> None:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ContractError(
                "this notebook is being checked already",
                where=self._notebook,
                hint="Wait for that check to end",
            ) from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()
