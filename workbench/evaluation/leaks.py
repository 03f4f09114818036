"""Leaks as a gate: a figure on frames that the model has seen before is no evidence."""

from __future__ import annotations

from workbench.evaluation.rules import NoLeaks
from workbench.records.types import GateResult, Inspection, Verdict


def leak_free(gate: NoLeaks, inspection: Inspection | None) -> GateResult:
    """The verdict of an inspection, as one gate: which check found leaks, and the worst frames.

    Args:
        inspection: None where the split was not looked at, which is not enough evidence.
    """
    if inspection is None:
        return _result(gate, Verdict.INSUFFICIENT, 0, None, "The split was not inspected for leaks")
    asked = [one for one in inspection.gates if one.required]
    found = sum(int(one.value or 0) for one in asked)
    looked_at = max((one.n for one in asked if one.unit == "frames"), default=0)
    telling = [one for one in asked if one.verdict is inspection.verdict]
    why = "; ".join(f"{one.name}: {one.why or one.method}" for one in telling)
    return _result(gate, inspection.verdict, looked_at, float(found), why)


def _result(
    gate: NoLeaks, verdict: Verdict, frames: int, leaks: float | None, why: str
) -> GateResult:
    return GateResult(
        name=gate.name,
        verdict=verdict,
        n=frames,
        unit="frames",
        value=leaks,
        bound=0.0,
        method="leaks between what is learned from, tuned on and judged by, by the inspection",
        required=gate.required,
        why=why,
    )
