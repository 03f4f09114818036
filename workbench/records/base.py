"""What every record has in common: it is frozen, versioned and refers to others by digest."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, StringConstraints

from workbench.errors import RecordError

_REF = re.compile(r"^([a-z]+)/([0-9a-f]{64})$")

Ref = Annotated[str, StringConstraints(pattern=_REF.pattern)]
"""``KIND/DIGEST`` with all 64 hex digits: the one form in which records name each other."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Row(BaseModel):
    """An immutable value that is stored as one line or one object of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Row):
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
    return _parts(ref)[0]


def digest_of(ref: Ref) -> str:
    return _parts(ref)[1]


def is_ref(value: object) -> bool:
    return isinstance(value, str) and _REF.match(value) is not None


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


def _parts(ref: Ref) -> tuple[str, str]:
    match = _REF.match(ref)
    if match is None:
        raise RecordError(
            "not a record reference", where=ref, hint="Expected KIND/ followed by 64 hex digits"
        )
    return match.group(1), match.group(2)
