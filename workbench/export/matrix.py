"""The target matrix: which chip and engine a file is for, and what may be said about it today.

What could be said is data (``pipelines/targets.yaml``); what is said comes from what the export
itself ran or linted. A row is never better than its evidence.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from workbench.errors import ParameterError
from workbench.export.targets import Target, lint_symmetric
from workbench.records.base import Row

DEFAULT = "pipelines/targets.yaml"
_MOST_FINDINGS = 5
NEVER = "never built or run on a device"


class Planned(Row):
    """A row as the project wrote it: see the head of ``pipelines/targets.yaml``."""

    chip: str
    engine: str
    runtime: str
    precision: Literal["fp32", "fp16", "int8"]
    artifact: str
    proof: Literal["run", "lint", "none"]
    machine: str = ""
    why: str = Field(min_length=1)


class _Matrix(Row):
    schema_version: Literal[1]
    targets: tuple[Planned, ...] = Field(min_length=1)


def load(path: Path) -> tuple[Planned, ...]:
    """Read a matrix strictly; raises `ParameterError` naming the row and key that are wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _Matrix.model_validate(content).targets
    except OSError as error:
        raise ParameterError(
            "target matrix cannot be read", where=path, hint=f"The project's own is {DEFAULT}"
        ) from error
    except yaml.YAMLError as error:
        raise ParameterError("target matrix is no YAML", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ParameterError(f"target matrix: {first['msg']}", where=f"{path}, {place}") from error


def assess(
    planned: Sequence[Planned],
    files: Mapping[str, bytes],
    ran: Mapping[str, str],
    *,
    machine: str | None = None,
) -> tuple[Target, ...]:
    """The state of every row whose file the bundle holds.

    Args:
        files: The bundle's model files.
        ran: Engine and file joined by a space to what was run and compared here, in words.
        machine: What this machine is called; its own name if None.
    """
    here = machine or platform.machine()
    rows = []
    for row in planned:
        if row.artifact in files:
            status, why = _state(row, files[row.artifact], ran, here)
            rows.append(
                Target(
                    file=row.artifact,
                    machine=row.engine,
                    status=status,
                    why=why,
                    chip=row.chip,
                    runtime=row.runtime,
                    precision=row.precision,
                )
            )
    return tuple(rows)


def table(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """A row for each target, for a data frame."""
    return [target.model_dump(mode="json") for target in targets]


def _state(
    row: Planned, content: bytes, ran: Mapping[str, str], here: str
) -> tuple[Literal["verified", "linted", "untested"], str]:
    if row.proof == "run":
        done = ran.get(f"{row.engine} {row.artifact}")
        if done and row.machine == here:
            return "verified", f"{done}; {row.why}"
        reason = "not run in this export" if row.machine == here else f"this machine is {here}"
        return "untested", f"{reason}; {row.why}"
    if row.proof == "lint":
        findings = lint_symmetric(content)
        if findings:
            return "untested", "; ".join(findings[:_MOST_FINDINGS])
        return "linted", f"keeps the rules for explicit Q/DQ networks; {NEVER}; {row.why}"
    return "untested", f"{NEVER}; {row.why}"
