"""Release gates: the verdict on a model by the rules of pipelines/gates.yaml.

Bounds decide, never the value alone. Each gate has a one-sided lower and a one-sided upper bound:

    PASS                   the bound on the side of safety lies on the right side of the limit
    FAIL                   the other bound lies on the wrong side
    INSUFFICIENT EVIDENCE  the limit lies between them, there are too few drives or boxes for an
                           interval, or there is no model to compare with

Many gates give many chances to be wrong, so levels are corrected by Holm's step-down method (Holm,
"A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6,
1979), for PASS and for FAIL apart: with `EvaluationSettings.confidence` of 95 %, the chance that
any gate says PASS wrongly is at most 5 %, and so is that of any wrong FAIL. A gate on a difference
is a test of non-inferiority with a margin. More drives narrow the bounds. Only PASS on every
required gate lets a model be promoted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.data import resampling
from workbench.detection.bundles import OperatingPoint
from workbench.detection.model import Predictions
from workbench.evaluation import incidents as replay
from workbench.evaluation.comparison import Comparison
from workbench.evaluation.confidence import choose_operating_point
from workbench.evaluation.gate_rules import (
    CeilingGate,
    CeilingMetric,
    FloorGate,
    GateRules,
    Int8LossGate,
    MetricGate,
    NoLeaksGate,
    NoRegressionGate,
    load_rules,
)
from workbench.evaluation.incidents import IncidentResult
from workbench.evaluation.matching import Floats
from workbench.evaluation.metrics import (
    Evaluation,
    StudentizedRatio,
    check_comparable,
    holm_levels,
    one_sided_p,
    operating_counts,
    percentile_interval,
)
from workbench.evaluation.perturbations import DegradedLatency
from workbench.evaluation.results import (
    ALL_CLASSES,
    EvaluationMetrics,
    MetricName,
    SliceMetrics,
)
from workbench.evaluation.safety import Safety, SafetyMetrics, measure_safety
from workbench.records.base import GateReport, GateResult, Ref, Verdict
from workbench.records.dataset import Dataset
from workbench.records.store import Store
from workbench.records.types import Inspection

__all__ = ["judge", "load_rules", "save_report"]

_MOST_TIMES_DRIVES = 100.0
_MIN_STUDENTIZED = 30
"""Fewer drives give standard errors too rough for the bootstrap-t."""

_METRIC_LABELS: dict[MetricName, str] = {
    "ap": "AP",
    "ap50": "AP50",
    "ar": "AR",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}


@dataclass(frozen=True)
class GateDecision:
    """Result of every gate, the overall verdict, and the metrics behind it.

    Attributes:
        verdict: Over the required gates.
        candidate: Metrics of the INT8 model.
        reference: Metrics of the model it would replace, if any.
        fp32: Metrics of the same model before quantisation, if evaluated.
        safety: Safety metrics of the candidate.
        operating_point: How the candidate's threshold was chosen.
        incidents: Results of the incidents that were replayed.
        comparison: With the reference: a row a slice, of `Comparison.rows`.
    """

    verdict: Verdict
    gates: tuple[GateResult, ...]
    rules: GateRules
    candidate: EvaluationMetrics
    reference: EvaluationMetrics | None
    fp32: EvaluationMetrics | None
    safety: SafetyMetrics
    operating_point: OperatingPoint | None = None
    incidents: tuple[IncidentResult, ...] = ()
    comparison: tuple[Json, ...] = ()

    @property
    def simulated(self) -> bool:
        """Whether the evidence is simulated."""
        return self.candidate.simulated


def choose_threshold(
    rules: GateRules, predict: Callable[[Dataset], Predictions], dataset: Dataset
) -> OperatingPoint:
    """A model's threshold by the rules: fixed, or chosen on frames that judge nothing.

    The export chooses it and writes it into the bundle; what has one (`Model.operating_point`) is
    judged at that.

    Args:
        rules: Gates and evaluation settings.
        predict: Boxes on the frames of the role that the rules name, such as ``model.predict``.
        dataset: A whole version.
    """
    rule = rules.operating_point
    if rule is None:
        return OperatingPoint(threshold=rules.evaluation.threshold, how="fixed by the rules")
    return choose_operating_point(
        predict(dataset.role(rule.role)), rule, rules.evaluation.threshold
    )


def judge(
    rules: GateRules,
    candidate: Evaluation,
    *,
    reference: Evaluation | None = None,
    fp32: Evaluation | None = None,
    inspection: Inspection | None = None,
    operating_point: OperatingPoint | None = None,
    incidents: Sequence[IncidentResult] = (),
) -> GateDecision:
    """Apply the gates to an INT8 model as it will be deployed.

    Args:
        rules: Gates and evaluation settings.
        candidate: Evaluation of the INT8 model.
        reference: Evaluation of the model it would replace, on the same frames.
        fp32: Evaluation of the same model before quantisation, on the same frames.
        inspection: Inspection of the dataset for leaks between roles.
        operating_point: Of the candidate: that of its bundle, or else from `choose_threshold`;
            needed where the rules ask for one.
        incidents: From `replay_incidents`; they add a required gate of their own.

    Raises:
        ParameterError: The evaluations have other settings than the rules, or other frames.
    """
    threshold: float | None = None if rules.operating_point else rules.evaluation.threshold
    if operating_point is not None:
        threshold = operating_point.threshold
    if threshold is None or candidate.metrics.settings != rules.settings_at(threshold):
        raise ParameterError(
            "candidate was evaluated with other settings than the gate rules",
            where=candidate.name,
            hint="Pass settings=rules.evaluation to evaluate(), or where the rules have an "
            "operating point rules.settings_at(…) with that of choose_threshold()",
        )
    safety = measure_safety(candidate, rules.assumptions)
    measured = {
        gate.name: _measure_ceiling(gate, safety)
        if isinstance(gate, CeilingGate)
        else _measure(gate, candidate, reference, fp32)
        for gate in rules.gates
        if not isinstance(gate, NoLeaksGate)
    }
    decided = _decide(measured, rules.evaluation.confidence)
    gates = tuple(
        _judge_leaks(gate, inspection) if isinstance(gate, NoLeaksGate) else decided[gate.name]
        for gate in rules.gates
    )
    if incidents:
        gates = (*gates, replay.gate_result(incidents))
    return GateDecision(
        verdict=overall_verdict(gates),
        gates=gates,
        rules=rules,
        candidate=candidate.metrics,
        reference=reference.metrics if reference else None,
        fp32=fp32.metrics if fp32 else None,
        safety=safety.metrics,
        operating_point=operating_point,
        incidents=tuple(incidents),
        comparison=Comparison(reference, candidate).rows() if reference else (),
    )


def overall_verdict(gates: Sequence[GateResult]) -> Verdict:
    """FAIL if a required gate failed, PASS if all required gates passed, else INSUFFICIENT."""
    required = {gate.verdict for gate in gates if gate.required}
    if Verdict.FAIL in required:
        return Verdict.FAIL
    return Verdict.PASS if required == {Verdict.PASS} else Verdict.INSUFFICIENT


def load_metrics(store: Store, report: Ref) -> dict[str, EvaluationMetrics]:
    """The metrics behind a gate report: ``candidate`` and, if given, ``reference`` and ``fp32``."""
    content = json.loads(store.read_payload(report, "metrics.json"))
    return {
        role: EvaluationMetrics.model_validate(metrics)
        for role, metrics in content.get("models", {}).items()
    }


def load_comparison(store: Store, report: Ref) -> list[Json]:
    """The candidate beside the reference of a gate report, a row a slice; empty without one."""
    content = json.loads(store.read_payload(report, "metrics.json"))
    return list(content.get("comparison", ()))


def save_report(
    store: Store,
    decision: GateDecision,
    *,
    candidate: Ref,
    dataset: Ref,
    reference: Ref | None = None,
    latency: Sequence[DegradedLatency] = (),
) -> Ref:
    """Store a `GateReport` record with all metrics as payload.

    Args:
        store: Where to store it.
        decision: Result of `judge`.
        candidate: The bundle that was judged.
        dataset: Dataset version of the frames it was judged on.
        reference: Bundle or checkpoint of the model it was compared with.
        latency: Kept beside the record, outside its digest.

    Returns:
        Reference of the record.
    """
    models = {
        "candidate": decision.candidate,
        "reference": decision.reference,
        "fp32": decision.fp32,
    }
    payload: Json = {
        "schema_version": 2,  # 2: safety, comparison and operating_point
        "rules": decision.rules.as_json(),
        "models": {
            role: metrics.model_dump(mode="json") for role, metrics in models.items() if metrics
        },
        "safety": decision.safety.model_dump(mode="json"),
        "comparison": list(decision.comparison),
        "operating_point": decision.operating_point
        and decision.operating_point.model_dump(mode="json"),
    }
    if decision.incidents:
        payload["incidents"] = [one.model_dump(mode="json") for one in decision.incidents]
    record = GateReport(
        candidate=candidate,
        reference=reference,
        dataset=dataset,
        rules=decision.rules.digest,
        verdict=decision.verdict,
        gates=decision.gates,
        simulated=decision.simulated,
        incidents=tuple(one.incident for one in decision.incidents),
    )
    side: Json | None = {"latency": {"inputs": [vars(one) for one in latency]}} if latency else None
    ref = store.put(record, {"metrics.json": digest.canonical_json(payload)}, side=side)
    audit.append(
        store.workspace,
        "judged",
        subjects=(ref, candidate, dataset),
        verdict=record.verdict.value,
        rules=record.rules,
    )
    return ref


def _judge_leaks(gate: NoLeaksGate, inspection: Inspection | None) -> GateResult:
    """The verdict of an inspection as one gate; without an inspection evidence is missing."""
    verdict, frames, leaks = Verdict.INSUFFICIENT, 0, None
    why = "The dataset was not inspected for leaks"
    if inspection is not None:
        checks = [one for one in inspection.gates if one.required]
        verdict = inspection.verdict
        frames = max((one.n for one in checks if one.unit == "frames"), default=0)
        leaks = float(sum(int(one.value or 0) for one in checks))
        decisive = [one for one in checks if one.verdict is verdict]
        why = "; ".join(f"{one.name}: {one.why or one.method}" for one in decisive)
    return GateResult(
        name=gate.name,
        verdict=verdict,
        n=frames,
        unit="frames",
        value=leaks,
        bound=0.0,
        method="leaks between frames for training, validation and safety, by inspection",
        required=gate.required,
        why=why,
    )


@dataclass(frozen=True)
class _Measured:
    """What a gate looks at, before it is judged.

    Attributes:
        samples: ``[1 + r]`` values: of all drives, then of each resample.
        limit: What decides; ``at_least`` says on which side is safe.
        n: Sample size in ``unit``.
        what: The figure in words.
        evidence: Where it comes from, in words.
        lacking: Why there is too little evidence, if there is.
        ratio: Of a metric that is a ratio of counts; its bounds are those of the bootstrap-t.
    """

    gate: MetricGate | CeilingGate
    samples: Floats | None
    clusters: int
    method: str
    limit: float
    at_least: bool
    n: int
    unit: str
    frames: int
    drives: int
    what: str
    evidence: str
    lacking: str | None = None
    ratio: StudentizedRatio | None = None

    def p(self, *, above: bool) -> float:
        """Chance of such samples if the truth were on the other side of the limit."""
        if self.ratio is not None:
            return self.ratio.one_sided_p(self.limit, above=above)
        return one_sided_p(self.resampled, self.clusters, self.limit, above=above)

    @property
    def resampled(self) -> Floats:
        return np.empty(0) if self.samples is None else self.samples

    @property
    def value(self) -> float | None:
        if self.samples is None or not math.isfinite(self.samples[0]):
            return None
        return float(self.samples[0])

    def bounds(self, tail: float) -> tuple[float, float] | None:
        """One-sided lower and upper bound, each wrong with a chance of ``tail``."""
        if self.samples is None or self.value is None:
            return None
        if self.ratio is not None:
            return self.ratio.bounds(tail)
        return percentile_interval(self.samples[1:], self.clusters, 1 - 2 * tail)


def _measure(
    gate: MetricGate, candidate: Evaluation, reference: Evaluation | None, fp32: Evaluation | None
) -> _Measured:
    row = candidate.metrics.at(gate.slice, gate.cls)
    key = (gate.slice, gate.cls, gate.metric)
    clusters = candidate.clusters[gate.slice]
    own = candidate.samples[key]
    method, label = clusters.method, _METRIC_LABELS[gate.metric]
    base = _Measured(
        gate=gate,
        samples=None,
        clusters=clusters.count,
        method="not compared",
        limit=0.0,
        at_least=not isinstance(gate, Int8LossGate),
        n=row.boxes,
        unit="boxes",
        frames=row.frames,
        drives=row.drives,
        what=label,
        evidence=f"{counted(row.boxes, 'box', 'boxes')} on {counted(row.frames, 'frame')} of "
        f"{counted(row.drives, 'drive')}",
        lacking=_missing_evidence(gate, row),
    )
    if isinstance(gate, FloorGate):
        ratio = _ratio(gate.metric, candidate, gate.slice, gate.cls)
        return replace(base, samples=own, method=method, limit=gate.bound, ratio=ratio)
    regression = isinstance(gate, NoRegressionGate)
    other = reference if regression else fp32
    what = f"{label} gained over the reference" if regression else f"{label} lost by INT8"
    limit = -gate.margin if regression else gate.margin
    if other is None:
        why = "no earlier model to compare with" if regression else "FP32 model was not evaluated"
        return replace(base, limit=limit, what=what, lacking=why)
    check_comparable(candidate, other)
    change = own - other.samples[key]
    return replace(
        base,
        samples=change if regression else -change,
        method=f"paired {method}",
        limit=limit,
        what=what,
        ratio=_ratio(gate.metric, candidate, gate.slice, gate.cls, other, 1 if regression else -1),
    )


def _ratio(
    metric: MetricName,
    candidate: Evaluation,
    part: str,
    cls: str,
    other: Evaluation | None = None,
    sign: int = 1,
) -> StudentizedRatio | None:
    """The metric, or its difference to another model's, as one ratio of counts; None if it is none.

    Precision has a denominator of its own in each model, so only its value is such a ratio.
    """
    clusters, settings = candidate.clusters[part], candidate.metrics.settings
    if clusters.drives < _MIN_STUDENTIZED:
        return None
    hits, wrong, labels = operating_counts(candidate, part, cls)
    if metric == "recall" and other is not None:
        hits = sign * (hits - operating_counts(other, part, cls)[0])
    elif metric == "precision" and other is None:
        labels = hits + wrong
    elif metric != "recall":
        return None
    weights = resampling.draw_resamples(clusters.count, settings.resamples, settings.seed)
    found = StudentizedRatio.of(hits, labels, weights)
    return found if found.defined else None


_CEILINGS: dict[CeilingMetric, tuple[str, str]] = {
    "critical_miss_rate": ("critical misses", "labels in the path"),
    "critical_false_positive_rate": ("frames with a critical false positive", "frames"),
    "calibration_error": ("expected calibration error", "predicted boxes"),
}


def _measure_ceiling(gate: CeilingGate, safety: Safety) -> _Measured:
    metrics, critical = safety.metrics, safety.metrics.critical
    what, unit = _CEILINGS[gate.metric]
    clusters = safety.clusters[gate.metric]
    n, frames = critical.boxes, critical.frames
    if gate.metric == "critical_false_positive_rate":
        n = critical.frames
    elif gate.metric == "calibration_error":
        whole = next(one for one in metrics.calibration if one.slice == ALL_CLASSES)
        n, frames = whole.boxes, int((clusters.of >= 0).sum())
    lacking = None
    if n < gate.min_n or clusters.drives < gate.min_drives:
        lacking = (
            f"{n:,} {unit} of {counted(clusters.drives, 'drive')}, "
            f"the gate needs {gate.min_n:,} of {gate.min_drives}"
        )
        left_out = (f"{counted(k, 'frame')} {why}" for why, k in critical.excluded.items())
        if gate.metric != "calibration_error" and critical.excluded:
            lacking += f"; left out: {', '.join(left_out)}"
    return _Measured(
        gate=gate,
        samples=safety.samples[gate.metric],
        clusters=clusters.count,
        method=clusters.method,
        limit=gate.bound,
        at_least=False,
        n=n,
        unit=unit,
        frames=frames,
        drives=clusters.drives,
        what=what,
        evidence=f"{n:,} {unit} on {counted(frames, 'frame')} of "
        f"{counted(clusters.drives, 'drive')}",
        lacking=lacking,
    )


def _decide(measured: Mapping[str, _Measured], confidence: float) -> dict[str, GateResult]:
    """The verdicts of all gates on metrics, at levels corrected for their number."""
    tests = {
        name: one
        for name, one in measured.items()
        if not one.lacking and one.bounds(1 - confidence) is not None
    }
    # A low p value says that the metric is above (below) its limit.
    above, below = ([one.p(above=side) for one in tests.values()] for side in (True, False))
    sides = list(zip(tests.values(), above, below, strict=True))
    for_pass = [over if one.at_least else under for one, over, under in sides]
    for_fail = [under if one.at_least else over for one, over, under in sides]
    pairs = zip(
        holm_levels(for_pass, 1 - confidence), holm_levels(for_fail, 1 - confidence), strict=True
    )
    levels = dict(zip(tests, pairs, strict=True))
    correction = f"one-sided {confidence:.0%} bounds, Holm over {counted(len(tests), 'gate')}"
    return {name: _result(one, levels.get(name), correction) for name, one in measured.items()}


def _result(one: _Measured, levels: tuple[float, float] | None, correction: str) -> GateResult:
    low = high = None
    verdict = Verdict.INSUFFICIENT
    if levels is None:
        found = one.bounds(_DESCRIPTIVE_TAIL)
        low, high = found or (None, None)
        reason = one.lacking or (
            "the metric is undefined" if one.value is None else "no interval can be computed"
        )
    else:
        safe, unsafe = (one.bounds(level) for level in levels)
        assert safe is not None and unsafe is not None  # noqa: S101 - `_decide` looked
        low, high = (safe[0], unsafe[1]) if one.at_least else (unsafe[0], safe[1])
        verdict, reason = _compare(low, high, one.limit, at_least=one.at_least)
        if verdict is Verdict.INSUFFICIENT:
            reason += f"; {_evidence_needed(one, low, high)}"
    shown = "unknown" if one.value is None else f"{one.value:.3f}"
    if low is not None and high is not None:
        shown += f" (bounds {low:.3f} and {high:.3f})"
    gate = one.gate
    where = ALL_CLASSES if isinstance(gate, CeilingGate) else _slice_label(gate)
    return GateResult(
        name=gate.name,
        verdict=verdict,
        n=one.n,
        unit=one.unit,
        value=one.value,
        bound=one.limit,
        low=low,
        high=high,
        method=one.method if one.samples is None else f"{one.method}, {correction}",
        slice=where,
        required=gate.required,
        why=f"{one.what} on {where}: {shown}, from {one.evidence}; {reason}",
    )


_DESCRIPTIVE_TAIL = 0.05
"""Of the bounds of a gate that is not decided, so that a plot has something to show."""


def _compare(low: float, high: float, limit: float, *, at_least: bool) -> tuple[Verdict, str]:
    side = "at least" if at_least else "at most"
    if low >= limit if at_least else high <= limit:
        return Verdict.PASS, f"{'lower' if at_least else 'upper'} bound {side} {limit:.3f}"
    if high < limit if at_least else low > limit:
        return Verdict.FAIL, f"{'upper' if at_least else 'lower'} bound not {side} {limit:.3f}"
    return Verdict.INSUFFICIENT, f"the limit {limit:.3f} lies between the bounds"


def _evidence_needed(one: _Measured, low: float, high: float) -> str:
    """How many more drives and frames would decide if the value stayed as it is, in words.

    A bound moves towards the value with the square root of the number of drives.
    """
    value = one.value
    assert value is not None  # noqa: S101 - a value without bounds is not decided
    distance = abs(value - one.limit)
    reach = value - low if value >= one.limit else high - value
    if distance * _MOST_TIMES_DRIVES**0.5 <= reach:
        return "the value is too near the limit to be told from it by more drives"
    more = max(1, math.ceil(one.drives * (reach / distance) ** 2) - one.drives)
    frames = math.ceil(more * one.frames / max(1, one.drives))
    return (
        f"if the value stays, about {counted(more, 'more drive')} of this slice "
        f"({counted(frames, 'frame')}) would decide"
    )


def _missing_evidence(gate: MetricGate, row: SliceMetrics) -> str | None:
    needs = (
        (counted(row.drives, "drive"), row.drives, gate.min_drives),
        (
            f"{counted(row.drives_with_boxes, 'drive')} with such boxes",
            row.drives_with_boxes,
            gate.min_drives_with_boxes,
        ),
        (counted(row.boxes, "box", "boxes"), row.boxes, gate.min_boxes),
    )
    lacking = next(((text, n, least) for text, n, least in needs if n < least), None)
    if lacking is None:
        return None
    text, n, least = lacking
    if n == row.drives:
        more = least - n
    elif n:  # as many boxes a drive as so far
        more = math.ceil(row.drives * least / n) - row.drives
    else:
        return f"{text}, the gate needs {least}"
    return f"{text}, the gate needs {least}: about {counted(more, 'more drive')} of this slice"


def _slice_label(gate: MetricGate) -> str:
    return gate.slice if gate.cls == ALL_CLASSES else f"{gate.slice}, {gate.cls}"
