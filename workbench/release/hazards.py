"""Hazards (a small HARA table) and whether the gates answer them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from workbench.core.errors import ParameterError
from workbench.core.parsing import read_yaml
from workbench.records.base import FrozenModel

__all__ = ()

DEFAULT_TABLE = Path(__file__).with_suffix(".yaml")
_ASIL_BY_SUM = {10: "D", 9: "C", 8: "B", 7: "A"}
_ALWAYS = "incidents"
"""The gate of incidents, which every candidate gets and no rule states."""

FindingKind = Literal[
    "goal-without-gate", "gate-without-goal", "slice-without-gate", "unknown-gate", "asil-differs"
]


class Hazard(FrozenModel):
    """A hazard, its risk after ISO 26262-3, the safety goal, and what answers it.

    Attributes:
        severity: S1 to S3; ``exposure`` E1 to E4; ``controllability`` C1 to C3.
        asil: As the table says; it has to follow from the three.
        slices: On which the gates have to judge.
        gates: Names of gates.
    """

    id: str
    hazard: str
    situation: str
    severity: int = Field(ge=1, le=3)
    exposure: int = Field(ge=1, le=4)
    controllability: int = Field(ge=1, le=3)
    asil: Literal["QM", "A", "B", "C", "D"]
    goal: str
    slices: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    note: str = ""

    @property
    def expected_asil(self) -> str:
        """ASIL that follows from S, E and C (ISO 26262-3, table 4, by its sums)."""
        return _ASIL_BY_SUM.get(self.severity + self.exposure + self.controllability, "QM")


class _Table(FrozenModel):
    schema_version: Literal[1]
    hazards: tuple[Hazard, ...]


@dataclass(frozen=True)
class JudgedGate:
    """What the check needs to know of a gate. ``slice`` as in gate rules, without the class."""

    name: str
    required: bool
    slice: str = "all"


@dataclass(frozen=True)
class Finding:
    """Something that the table and the gates don't agree on."""

    kind: FindingKind
    subject: str
    text: str


def read_hazards(path: Path = DEFAULT_TABLE) -> tuple[Hazard, ...]:
    """Read a table of hazards.

    Raises:
        ParameterError: It is missing, has unknown keys or values, or two hazards have one id.
    """
    try:
        hazards = _Table.model_validate(read_yaml(path)).hazards
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ParameterError(f"hazards: {place}: {first['msg']}", where=path) from error
    except OSError as error:
        raise ParameterError("table of hazards cannot be read", where=path) from error
    ids = [one.id for one in hazards]
    if len(set(ids)) != len(ids):
        raise ParameterError("two hazards have one id", where=path)
    return hazards


def check_hazards(hazards: Iterable[Hazard], gates: Iterable[JudgedGate]) -> tuple[Finding, ...]:
    """Goals without a required gate, gates without a goal, and what the table has wrong."""
    hazards = tuple(hazards)
    known = {gate.name: gate for gate in gates}
    known.setdefault(_ALWAYS, JudgedGate(_ALWAYS, required=True))
    findings: list[Finding] = []
    for one in hazards:
        if one.asil != one.expected_asil:
            text = f"ASIL {one.asil}, but S, E and C give {one.expected_asil}"
            findings.append(Finding("asil-differs", one.id, text))
        for name in one.gates:
            if name not in known:
                findings.append(Finding("unknown-gate", one.id, f"no gate is named {name}"))
        required = [known[name] for name in one.gates if name in known and known[name].required]
        # Incidents show that what was missed once is found now, not that the goal is met.
        if not [gate for gate in required if gate.name != _ALWAYS]:
            findings.append(Finding("goal-without-gate", one.id, f"no required gate: {one.goal}"))
            continue
        judged = {gate.slice for gate in required}
        for name in one.slices:
            if name not in judged and not (name == "all" and required):
                text = f"no required gate of it judges the slice {name}"
                findings.append(Finding("slice-without-gate", one.id, text))
    answered = {name for one in hazards for name in one.gates}
    for name in known:
        if name not in answered and name != _ALWAYS:
            findings.append(Finding("gate-without-goal", name, "no hazard names this gate"))
    return tuple(findings)
