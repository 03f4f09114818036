"""What all records share: frozen models, references between records, gate results."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from workbench.core.errors import RecordError
from workbench.core.text import html_table, short_fields

__all__ = [
    "Digest",
    "FrozenModel",
    "GateReport",
    "GateResult",
    "Record",
    "Ref",
    "Verdict",
    "digest_of",
    "kind_of",
    "make_ref",
    "refs_in",
    "short_ref",
]

_REF_PATTERN = re.compile(r"^([a-z]+)/([0-9a-f]{64})\Z")

Ref = Annotated[str, StringConstraints(pattern=r"^([a-z]+)/([0-9a-f]{64})$")]
"""``KIND/DIGEST`` with all 64 hex digits: how records refer to each other."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in 64 lower-case hex digits."""


class FrozenModel(BaseModel):
    """An immutable value that is stored as a JSON object. Unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr__(self) -> str:
        fields = short_fields(self, type(self).model_fields).items()
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in fields)})"

    __str__ = __repr__


class Record(FrozenModel):
    """A model with a digest of its own, stored below its ``KIND``.

    A field with a default may be added without a new ``schema_version`` as long as records without
    it keep their meaning. Any other change needs a new version and a reader for the old one;
    ``tests/golden`` holds a record of each version.
    """

    KIND: ClassVar[str]
    schema_version: int = 1

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, short_fields(self, type(self).model_fields))


def make_ref(kind: str, digest: str) -> Ref:
    """The reference ``KIND/DIGEST``."""
    return f"{kind}/{digest}"


def kind_of(ref: Ref) -> str:
    """The kind of record that ``ref`` names.

    Raises:
        RecordError: The reference is invalid.
    """
    return _split_ref(ref)[0]


def digest_of(ref: Ref) -> str:
    """The digest in ``ref``.

    Raises:
        RecordError: The reference is invalid.
    """
    return _split_ref(ref)[1]


def short_ref(ref: Ref) -> str:
    """``KIND/PREFIX`` with 12 digits, for messages; `resolve_reference` accepts it."""
    kind, _, digest = ref.partition("/")
    return f"{kind}/{digest[:12]}"


def refs_in(value: Any) -> list[Ref]:
    """Every reference inside plain JSON data, in order of appearance, without duplicates."""
    refs: dict[Ref, None] = {}
    stack = [value]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            stack.extend(reversed(list(current.values())))
        elif isinstance(current, list | tuple):
            stack.extend(reversed(current))
        elif isinstance(current, str) and _REF_PATTERN.match(current):
            refs[current] = None
    return list(refs)


def _split_ref(ref: Ref) -> tuple[str, str]:
    match = _REF_PATTERN.match(ref)
    if match is None:
        raise RecordError(
            "invalid record reference", where=ref, hint="Expected KIND/ followed by 64 hex digits"
        )
    return match.group(1), match.group(2)


class Verdict(StrEnum):
    """Outcome of a gate."""

    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT EVIDENCE"


class GateResult(FrozenModel):
    """Outcome of one gate.

    Attributes:
        n: Sample size, in ``unit``.
        value: The measured metric; ``low`` and ``high`` are its interval.
        bound: The limit that decides.
        method: How the interval was computed.
        required: Whether a failure prevents promotion; other gates only inform.
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
    """Outcome of all gates. Payload: ``metrics.json``, every metric by class and slice.

    Attributes:
        incidents: The incidents that the candidate was replayed on.
    """

    KIND: ClassVar[str] = "gates"
    candidate: Ref
    reference: Ref | None
    dataset: Ref
    rules: Digest
    verdict: Verdict
    gates: tuple[GateResult, ...]
    simulated: bool = False
    incidents: tuple[Ref, ...] = Field(default=(), exclude_if=lambda value: not value)
