"""The whole check of one notebook: read it, run it on its fixture, and leave a receipt."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.errors import ContractError, WorkbenchError
from workbench.pipeline.checking import dynamic, fixture, marimo_apps, receipts, static
from workbench.pipeline.checking.findings import Finding, ordered
from workbench.pipeline.checking.fixture import Teller
from workbench.pipeline.checking.receipts import Ended, Watch
from workbench.pipeline.contracts import contract as contracts
from workbench.pipeline.contracts import parameters
from workbench.records.base import Ref
from workbench.workspace import Workspace

Json = dict[str, Any]

_SECRET_NAME = re.compile(r"(?i)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL)")
_SHORTEST = 8


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
    checks: Mapping[str, Ended] = field(default_factory=dict)
    watch: Watch | None = None
    receipt: Ref | None = None
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    schema: Json | None = None
    seconds: float = 0.0
    peak_memory_mib: float = 0.0

    @property
    def passed(self) -> bool:
        return not any(finding.is_error for finding in self.findings)


def run(place: Workspace, notebook: Path, tell: Teller, *, execute: bool = True) -> CheckReport:
    """Check ``notebook``, an .ipynb or a marimo app.

    Args:
        execute: Run it on its fixture, too, when nothing was found that would make it fail.

    Raises:
        ContractError: The file is no notebook.
        WorkbenchError: The same notebook is being checked already.
    """
    readable = marimo_apps.as_ipynb(place, notebook)
    known = known_secrets(readable)
    found = static.check(readable, known)
    schema = _schema(readable)
    if not execute or any(finding.is_error for finding in found):
        return CheckReport(notebook, tuple(found), schema=schema)
    before = receipts.state_of(place, notebook)
    with _alone(place, notebook):
        seen = dynamic.check(place, notebook, readable, known, tell)
    if receipts.state_of(place, notebook) != before:
        found.append(Finding("changed-meanwhile", "it changed while it was checked"))
    findings = tuple(ordered([*found, *seen.findings]))
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
        declared = contracts.read(notebook).declaration.secrets
    return {
        name: value
        for name, value in os.environ.items()
        if name in declared or (_SECRET_NAME.search(name) and len(value) >= _SHORTEST)
    }


def _with_receipt(place: Workspace, report: CheckReport) -> CheckReport:
    assert report.watch is not None  # noqa: S101 - it ran
    ref = receipts.issue(
        place,
        report.notebook,
        checks=report.checks,
        watch=report.watch,
        warnings=tuple(finding.as_json() for finding in report.findings),
        outputs=report.outputs,
    )
    return CheckReport(**{**vars(report), "receipt": ref})


def _schema(readable: Path) -> Json | None:
    try:
        return parameters.json_schema(contracts.read(readable).parameters)
    except WorkbenchError:
        return None


def _alone(place: Workspace, notebook: Path) -> _Alone:
    return _Alone(place.root / fixture.FOLDER / f"{notebook.stem}.lock", notebook)


class _Alone:
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
