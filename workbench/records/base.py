"""What every record has in common: frozen, versioned, refers to others by digest; and gate verdicts."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, StringConstraints

from workbench.core.errors import RecordError

_REF_PATTERN = re.compile(r"^([a-z]+)/([0-9a-f]{64})$")

Ref = Annotated[str, StringConstraints(pattern=_REF_PATTERN.pattern)]
"""``KIND/DIGEST`` with all 64 hex digits: the one form in which records name each other."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class FrozenModel(BaseModel):
    """An immutable value that is stored as one line or one object of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(FrozenModel):
    """A row that has a digest of its own and lies in the store below its ``KIND``.

    ``schema_version`` is part of the stored form. A field may be added with a default without
    a new version, as long as records without it still mean the same; anything else needs a new
    version and a reader for the old one, kept honest by ``tests/golden``.
    """

    KIND: ClassVar[str]
    schema_version: int = 1


def make_ref(kind: str, digest: str) -> Ref:
    return f"{kind}/{digest}"


def kind_of(ref: Ref) -> str:
    return _split_ref(ref)[0]


def digest_of(ref: Ref) -> str:
    return _split_ref(ref)[1]


def is_ref(value: object) -> bool:
    return isinstance(value, str) and _REF_PATTERN.match(value) is not None


def refs_in(value: Any) -> list[Ref]:
    """Every reference inside plain JSON data, in order of appearance, each once."""
    found: dict[Ref, None] = {}
    stack = [value]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            stack.extend(reversed(list(current.values())))
        elif isinstance(current, list | tuple):
            stack.extend(reversed(current))
        elif is_ref(current):
            found[current] = None
    return list(found)


def _split_ref(ref: Ref) -> tuple[str, str]:
    match = _REF_PATTERN.match(ref)
    if match is None:
        raise RecordError(
            "not a record reference", where=ref, hint="Expected KIND/ followed by 64 hex digits"
        )
    return match.group(1), match.group(2)


# ---- What a rule said of evidence.


class Verdict(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT EVIDENCE"


class GateResult(FrozenModel):
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
