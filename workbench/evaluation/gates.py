"""Verdicts: the whole interval decides, never the value alone.

    PASS                   the whole interval lies on the right side of the bound
    FAIL                   the whole interval lies on the wrong side
    INSUFFICIENT EVIDENCE  the interval straddles the bound, or there are too few drives or
                           boxes for an interval that means anything, or no model to compare with

More drives narrow the interval, so the way out of INSUFFICIENT EVIDENCE is evidence. Only PASS
on every required gate lets a model be promoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench import digest
from workbench.errors import ParameterError
from workbench.evaluation.leaks import leak_free
from workbench.evaluation.metrics import (
    Difference,
    Evaluated,
    MetricName,
    Metrics,
    SliceMetrics,
    compare,
)
from workbench.evaluation.rules import (
    Floor,
    Int8Loss,
    Measured,
    NoLeaks,
    NoRegression,
    Rules,
    load_rules,
)
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import GateReport, GateResult, Inspection, Verdict

__all__ = ["Judged", "judge", "load_rules", "save", "verdict_of"]

_NAMES: dict[MetricName, str] = {
    "ap": "AP",
    "ap50": "AP50",
    "ar": "AR",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}


@dataclass(frozen=True)
class Judged:
    """Every gate's result, the verdict over the required ones, and what was measured."""

    verdict: Verdict
    gates: tuple[GateResult, ...]
    rules: Rules
    candidate: Metrics
    reference: Metrics | None
    fp32: Metrics | None

    @property
    def simulated(self) -> bool:
        return self.candidate.simulated


def judge(
    rules: Rules,
    candidate: Evaluated,
    *,
    reference: Evaluated | None = None,
    fp32: Evaluated | None = None,
    inspection: Inspection | None = None,
) -> Judged:
    """Judge the INT8 model as it will be deployed.

    Args:
        candidate: The INT8 model, through the deployment preprocessing.
        reference: The model it would replace, on the same frames.
        fp32: The same model before quantisation, on the same frames.
        inspection: What was found when the dataset's split was looked at for leaks.

    Raises:
        ParameterError: The models were evaluated with other settings than the rules', or not on
            the same frames.
    """
    if candidate.metrics.settings != rules.evaluation:
        raise ParameterError(
            "the candidate was evaluated with other settings than the rules ask for",
            where=candidate.name,
            hint="Pass settings=rules.evaluation to evaluate()",
        )
    gates = tuple(
        leak_free(gate, inspection)
        if isinstance(gate, NoLeaks)
        else _judge_one(gate, candidate, reference, fp32)
        for gate in rules.gates
    )
    return Judged(
        verdict=verdict_of(gates),
        gates=gates,
        rules=rules,
        candidate=candidate.metrics,
        reference=reference.metrics if reference else None,
        fp32=fp32.metrics if fp32 else None,
    )


def verdict_of(gates: Sequence[GateResult]) -> Verdict:
    """FAIL if a required gate failed, else INSUFFICIENT if one could not be decided, else PASS."""
    required = {gate.verdict for gate in gates if gate.required}
    if Verdict.FAIL in required:
        return Verdict.FAIL
    return Verdict.PASS if required == {Verdict.PASS} else Verdict.INSUFFICIENT


def save(
    store: Store, judged: Judged, *, candidate: Ref, dataset: Ref, reference: Ref | None = None
) -> Ref:
    """Keep the verdict with all that was measured, and return its reference.

    Args:
        candidate: The bundle that was judged.
        dataset: The dataset version whose safety frames it was judged on.
        reference: Bundle or checkpoint of the model it was compared with.
    """
    models = {"candidate": judged.candidate, "reference": judged.reference, "fp32": judged.fp32}
    payload = {
        "schema_version": 1,
        "rules": judged.rules.as_json(),
        "models": {
            role: metrics.model_dump(mode="json") for role, metrics in models.items() if metrics
        },
    }
    record = GateReport(
        candidate=candidate,
        reference=reference,
        dataset=dataset,
        rules=judged.rules.digest,
        verdict=judged.verdict,
        gates=judged.gates,
        simulated=judged.simulated,
    )
    return store.put(record, {"metrics.json": digest.canonical_json(payload)})


def _judge_one(
    gate: Measured, candidate: Evaluated, reference: Evaluated | None, fp32: Evaluated | None
) -> GateResult:
    row = candidate.metrics.at(gate.slice, gate.cls)
    if isinstance(gate, Floor):
        figure = getattr(row, gate.metric)
        found = Difference(figure, row.usable, row.method)
        return _result(gate, row, found, gate.bound, at_least=True)
    if isinstance(gate, NoRegression):
        if reference is None:
            return _undecided(gate, row, -gate.margin, "there is no earlier model to compare with")
        change = compare(candidate, reference, gate.metric, gate.slice, gate.cls)
        return _result(gate, row, change, -gate.margin, at_least=True)
    if fp32 is None:
        return _undecided(gate, row, gate.margin, "the FP32 model was not evaluated")
    loss = compare(fp32, candidate, gate.metric, gate.slice, gate.cls)
    return _result(gate, row, loss, gate.margin, at_least=False)


def _result(
    gate: Measured, row: SliceMetrics, found: Difference, bound: float, *, at_least: bool
) -> GateResult:
    figure = found.figure
    lacking = _lacking(gate, row)
    if figure.value is None:
        lacking = lacking or "there is nothing to measure"
    elif figure.low is None or figure.high is None:
        lacking = lacking or "no interval can be given"
    if lacking:
        verdict, reason = Verdict.INSUFFICIENT, lacking
    else:
        assert figure.low is not None and figure.high is not None  # noqa: S101
        verdict, reason = _decide(figure.low, figure.high, bound, at_least=at_least)
    return GateResult(
        name=gate.name,
        verdict=verdict,
        n=row.boxes,
        unit="boxes",
        value=figure.value,
        bound=bound,
        low=figure.low,
        high=figure.high,
        method=found.method,
        slice=_where(gate),
        required=gate.required,
        why=_in_words(gate, row, found, reason),
    )


def _decide(low: float, high: float, bound: float, *, at_least: bool) -> tuple[Verdict, str]:
    passes = low >= bound if at_least else high <= bound
    fails = high < bound if at_least else low > bound
    side = "at least" if at_least else "at most"
    if passes:
        return Verdict.PASS, f"the whole interval is {side} {bound:.3f}"
    if fails:
        return Verdict.FAIL, f"the whole interval misses {side} {bound:.3f}"
    return (
        Verdict.INSUFFICIENT,
        f"the interval straddles the bound {bound:.3f}: more drives would decide it",
    )


def _lacking(gate: Measured, row: SliceMetrics) -> str | None:
    needs = (
        ("drives", row.drives, gate.min_drives),
        ("drives with such boxes", row.drives_with_boxes, gate.min_drives_with_boxes),
        ("boxes", row.boxes, gate.min_boxes),
    )
    for what, there, wanted in needs:
        if there < wanted:
            return f"{there} {what} where the gate needs {wanted}"
    return None


def _undecided(gate: Measured, row: SliceMetrics, bound: float, reason: str) -> GateResult:
    return GateResult(
        name=gate.name,
        verdict=Verdict.INSUFFICIENT,
        n=row.boxes,
        unit="boxes",
        value=None,
        bound=bound,
        method="not compared",
        slice=_where(gate),
        required=gate.required,
        why=f"{reason[0].upper()}{reason[1:]}",
    )


def _in_words(gate: Measured, row: SliceMetrics, found: Difference, reason: str) -> str:
    what = _NAMES[gate.metric]
    if isinstance(gate, NoRegression):
        what = f"{what} gained over the reference"
    elif isinstance(gate, Int8Loss):
        what = f"{what} lost by INT8"
    figure = found.figure
    shown = "unknown" if figure.value is None else f"{figure.value:.3f}"
    if figure.low is not None and figure.high is not None:
        shown += f" (interval {figure.low:.3f} to {figure.high:.3f})"
    ground = f"{row.boxes} boxes on {row.frames} frames of {row.drives} drives"
    return f"{what} on {_where(gate)}: {shown}, from {ground}; {reason}"


def _where(gate: Measured) -> str:
    return gate.slice if gate.cls == "all" else f"{gate.slice}, {gate.cls}"
