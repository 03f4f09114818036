"""What a rule said of evidence."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from workbench.records.base import Digest, Record, Ref, Row


class Verdict(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT EVIDENCE"


class GateResult(Row):
    """One gate: ``value`` against ``bound``; ``low`` and ``high`` are its interval.

    Only a ``required`` gate can refuse promotion; the others are shown beside.
    """

    name: str
    verdict: Verdict
    n: int
    unit: str
    value: float | None
    bound: float
    low: float | None = None
    high: float | None = None
    method: str
    slice: str = "all"
    required: bool = True
    why: str = ""


class GateReport(Record):
    """Payload: ``metrics.json``, every metric by class and slice with its interval."""

    KIND: ClassVar[str] = "gates"
    candidate: Ref
    reference: Ref | None
    dataset: Ref
    rules: Digest
    verdict: Verdict
    gates: tuple[GateResult, ...]
    simulated: bool = False
