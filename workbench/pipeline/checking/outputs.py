"""Records that a notebook handed over: whole, of the right kind, and with something in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.errors import RecordError
from workbench.pipeline.checking.findings import Finding
from workbench.pipeline.contracts.contract import StepContract
from workbench.records.base import Ref, kind_of
from workbench.records.store import Store
from workbench.workspace import Workspace

_COUNTS = {
    "dataset": "frames",
    "selection": "chosen",
    "batch": "frames",
    "gates": "gates",
}
"""Kind to the field that is empty, or zero, when the record says nothing."""


def check(place: Workspace, contract: StepContract, made: Mapping[str, Ref]) -> Iterator[Finding]:
    store = Store(place)
    for name, declared in contract.declaration.outputs.items():
        ref = made.get(name)
        if ref is None:
            yield Finding("missing-output", f"output {name!r} was not handed over")
            continue
        try:
            record = store.load(ref)
            sizes = [store.payload(ref, part).stat().st_size for part in store.payload_names(ref)]
        except RecordError as error:
            yield Finding("output-invalid", f"output {name!r}: {error}")
            continue
        if kind_of(ref) != declared.kind:
            yield Finding("output-invalid", f"output {name!r} is no {declared.kind}")
        field = _COUNTS.get(declared.kind)
        if field and not getattr(record, field):
            yield Finding("output-empty", f"output {name!r} has no {field}")
        elif sizes and not any(sizes):
            yield Finding("output-empty", f"the files of output {name!r} are empty")


def difference(one: Workspace, first: Ref, other: Workspace, second: Ref | None) -> str:
    """Where two records of the same work part, in words."""
    if second is None:
        return "the second run made none"
    bodies = [
        json.loads((Store(place).folder(ref) / "record.json").read_bytes())
        for place, ref in ((one, first), (other, second))
    ]
    parts = _parts(bodies[0], bodies[1])
    return ", ".join(parts[:5]) or "its digest"


def _parts(one: Any, other: Any, at: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            part
            for key in sorted({*one, *other})
            for part in _parts(one.get(key), other.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if one == other else [at]
