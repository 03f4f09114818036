"""Release gates: rules read from pipelines/gates.yaml, and the verdict on a model.

The whole confidence interval decides, never the value alone:

    PASS                   the whole interval lies on the right side of the bound
    FAIL                   the whole interval lies on the wrong side
    INSUFFICIENT EVIDENCE  the interval includes the bound, there are too few drives or boxes for an
                           interval, or there is no model to compare with

More drives narrow the interval. Only PASS on every required gate lets a model be promoted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.parsing import read_yaml
from workbench.core.text import counted, did_you_mean
from workbench.core.types import Json
from workbench.data.resampling import MIN_DRIVES
from workbench.data.slices import STANDARD_SLICES
from workbench.evaluation.metrics import Evaluation, MetricDifference, paired_difference
from workbench.evaluation.results import (
    ALL_CLASSES,
    METRIC_NAMES,
    Estimate,
    EvaluationMetrics,
    EvaluationSettings,
    MetricName,
    SliceMetrics,
)
from workbench.records.base import Digest, GateReport, GateResult, Ref, Verdict
from workbench.records.store import Store
from workbench.records.types import Inspection

__all__ = ["judge", "load_rules", "save_report"]

_MOST_TIMES_DRIVES = 100.0
_SLICE_NAMES = tuple(part.name for part in STANDARD_SLICES)


class _StrictModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _BaseGate(_StrictModel):
    """Fields of all gates."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    required: bool = True
    note: str = ""


class _BaseMetricGate(_BaseGate):
    """A gate on a metric. With less evidence than ``min_…`` the verdict is INSUFFICIENT."""

    metric: MetricName
    slice: str = Field(default="all", json_schema_extra={"enum": list(_SLICE_NAMES)})
    cls: str = Field(default=ALL_CLASSES, alias="class")
    min_drives: int = Field(default=MIN_DRIVES, ge=MIN_DRIVES)
    min_drives_with_boxes: int = Field(default=5, ge=2)
    min_boxes: int = Field(default=100, ge=1)

    @field_validator("slice")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in _SLICE_NAMES:
            raise PydanticCustomError("unknown_slice", "unknown slice")
        return value


class FloorGate(_BaseMetricGate):
    """The candidate's metric must reach ``bound``."""

    kind: Literal["floor"]
    bound: float = Field(ge=0, le=1)


class NoRegressionGate(_BaseMetricGate):
    """The candidate may be worse than the model it replaces by at most ``margin``."""

    kind: Literal["no_regression"]
    margin: float = Field(ge=0, le=1)


class Int8LossGate(_BaseMetricGate):
    """INT8 may be worse than the same model in FP32 by at most ``margin``."""

    kind: Literal["int8_loss"]
    margin: float = Field(ge=0, le=1)


class NoLeaksGate(_BaseGate):
    """No safety frame may resemble a training or validation frame."""

    kind: Literal["no_leaks"]


MetricGate = FloorGate | NoRegressionGate | Int8LossGate
"""Gates that compare a metric with a bound."""

Gate = Annotated[MetricGate | NoLeaksGate, Field(discriminator="kind")]


class GateRules(_StrictModel):
    """All gates of a project and the settings of the evaluation."""

    schema_version: Literal[1]
    evaluation: EvaluationSettings = EvaluationSettings()
    gates: tuple[Gate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> GateRules:
        names = [gate.name for gate in self.gates]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"two gates are named {duplicates[0]!r}")
        if not any(gate.required for gate in self.gates):
            raise ValueError("no gate is required, so every model would pass")
        return self

    @property
    def digest(self) -> Digest:
        """SHA-256 of the rules."""
        return digest.of_json(self.as_json())

    def as_json(self) -> Json:
        """The rules as in a gates file, with all defaults."""
        return self.model_dump(mode="json", by_alias=True)


def load_rules(path: Path) -> GateRules:
    """Read a gates file.

    Raises:
        ParameterError: The file is missing, not YAML, or has unknown keys or invalid values. The
            message names gate and key and suggests the nearest valid word.
    """
    try:
        content = read_yaml(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise ParameterError(
            "gates file does not exist"
            if missing
            else f"gates file cannot be read: {error.strerror}",
            where=path,
            hint="The default is pipelines/gates.yaml",
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ParameterError(
            f"gates file is not YAML: {getattr(error, 'problem', None) or error}",
            where=f"{path}{line}",
        ) from error
    try:
        return GateRules.model_validate(content)
    except ValidationError as error:
        raise _rules_error(error, content, path) from error


def _rules_error(error: ValidationError, content: Any, path: Path) -> ParameterError:
    # A mistyped key also counts as missing: report the mistyped one.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    location = [part for part in first["loc"] if part not in _GATE_KINDS]
    key = str(location[-1]) if location else ""
    message = first["msg"].removeprefix("Value error, ")
    hint = "See the comments in pipelines/gates.yaml"
    if first["type"] == "extra_forbidden":
        message = f"unknown key {key!r}"
        hint = did_you_mean(key, _known_keys(list(first["loc"])))
    elif first["type"] in ("literal_error", "unknown_slice"):
        message = f"{key}: unknown value {first['input']!r}"
        hint = did_you_mean(str(first["input"]), _allowed_values(key))
    elif first["type"] == "union_tag_invalid":
        kind = str(first["ctx"]["tag"])
        message = f"unknown kind {kind!r}"
        hint = did_you_mean(kind, list(_GATE_KINDS))
    elif key:
        message = f"{key}: {message}"
    return ParameterError(message, where=f"{path}{_gate_location(location, content)}", hint=hint)


_GATE_KINDS: dict[str, type[_BaseGate]] = {
    "floor": FloorGate,
    "no_regression": NoRegressionGate,
    "int8_loss": Int8LossGate,
    "no_leaks": NoLeaksGate,
}


def _known_keys(location: list[str | int]) -> list[str]:
    model: type[BaseModel] = GateRules
    if location[:1] == ["evaluation"]:
        model = EvaluationSettings
    elif location[:1] == ["gates"] and len(location) > 2:
        model = _GATE_KINDS[str(location[2])]
    return [field.alias or name for name, field in model.model_fields.items()]


def _allowed_values(key: str) -> list[str]:
    allowed = {"slice": _SLICE_NAMES, "metric": METRIC_NAMES}
    return [str(value) for value in allowed.get(key, (1,))]


def _gate_location(location: list[str | int], content: Any) -> str:
    """The gate by name, or by position when it has none."""
    if len(location) < 2 or location[0] != "gates" or not isinstance(location[1], int):
        return ""
    gate = content["gates"][location[1]]
    name = gate.get("name") if isinstance(gate, dict) else None
    return f", gate {name or location[1] + 1}"


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
    """

    verdict: Verdict
    gates: tuple[GateResult, ...]
    rules: GateRules
    candidate: EvaluationMetrics
    reference: EvaluationMetrics | None
    fp32: EvaluationMetrics | None

    @property
    def simulated(self) -> bool:
        """Whether the evidence is simulated."""
        return self.candidate.simulated


def judge(
    rules: GateRules,
    candidate: Evaluation,
    *,
    reference: Evaluation | None = None,
    fp32: Evaluation | None = None,
    inspection: Inspection | None = None,
) -> GateDecision:
    """Apply the gates to an INT8 model as it will be deployed.

    Args:
        rules: Gates and evaluation settings.
        candidate: Evaluation of the INT8 model.
        reference: Evaluation of the model it would replace, on the same frames.
        fp32: Evaluation of the same model before quantisation, on the same frames.
        inspection: Inspection of the dataset for leaks between roles.

    Raises:
        ParameterError: The evaluations have other settings than the rules, or other frames.
    """
    if candidate.metrics.settings != rules.evaluation:
        raise ParameterError(
            "candidate was evaluated with other settings than the gate rules",
            where=candidate.name,
            hint="Pass settings=rules.evaluation to evaluate()",
        )
    gates = tuple(
        _judge_leaks(gate, inspection)
        if isinstance(gate, NoLeaksGate)
        else _judge_metric(gate, candidate, reference, fp32)
        for gate in rules.gates
    )
    return GateDecision(
        verdict=overall_verdict(gates),
        gates=gates,
        rules=rules,
        candidate=candidate.metrics,
        reference=reference.metrics if reference else None,
        fp32=fp32.metrics if fp32 else None,
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


def save_report(
    store: Store,
    decision: GateDecision,
    *,
    candidate: Ref,
    dataset: Ref,
    reference: Ref | None = None,
) -> Ref:
    """Store a `GateReport` record with all metrics as payload.

    Args:
        store: Where to store it.
        decision: Result of `judge`.
        candidate: The bundle that was judged.
        dataset: Dataset version of the frames it was judged on.
        reference: Bundle or checkpoint of the model it was compared with.

    Returns:
        Reference of the record.
    """
    models = {
        "candidate": decision.candidate,
        "reference": decision.reference,
        "fp32": decision.fp32,
    }
    payload = {
        "schema_version": 1,
        "rules": decision.rules.as_json(),
        "models": {
            role: metrics.model_dump(mode="json") for role, metrics in models.items() if metrics
        },
    }
    record = GateReport(
        candidate=candidate,
        reference=reference,
        dataset=dataset,
        rules=decision.rules.digest,
        verdict=decision.verdict,
        gates=decision.gates,
        simulated=decision.simulated,
    )
    ref = store.put(record, {"metrics.json": digest.canonical_json(payload)})
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


def _judge_metric(
    gate: MetricGate, candidate: Evaluation, reference: Evaluation | None, fp32: Evaluation | None
) -> GateResult:
    row = candidate.metrics.at(gate.slice, gate.cls)
    if isinstance(gate, FloorGate):
        measured = MetricDifference(getattr(row, gate.metric), row.usable, row.method)
        return _metric_result(gate, row, measured, gate.bound, at_least=True)
    if isinstance(gate, NoRegressionGate):
        if reference is None:
            return _undecided(gate, row, -gate.margin, "No earlier model to compare with")
        gain = paired_difference(candidate, reference, gate.metric, gate.slice, gate.cls)
        return _metric_result(gate, row, gain, -gate.margin, at_least=True)
    if fp32 is None:
        return _undecided(gate, row, gate.margin, "The FP32 model was not evaluated")
    loss = paired_difference(fp32, candidate, gate.metric, gate.slice, gate.cls)
    return _metric_result(gate, row, loss, gate.margin, at_least=False)


def _metric_result(
    gate: MetricGate, row: SliceMetrics, measured: MetricDifference, bound: float, *, at_least: bool
) -> GateResult:
    value, low, high = measured.estimate.value, measured.estimate.low, measured.estimate.high
    missing = _missing_evidence(gate, row)
    if missing:
        verdict, reason = Verdict.INSUFFICIENT, missing
    elif value is None:
        verdict, reason = Verdict.INSUFFICIENT, "the metric is undefined"
    elif low is None or high is None:
        verdict, reason = Verdict.INSUFFICIENT, "no interval can be computed"
    else:
        verdict, reason = _decide(low, high, bound, at_least=at_least)
        if verdict is Verdict.INSUFFICIENT:
            reason += f"; {_evidence_needed(measured.estimate, bound, row.drives)}"
    return GateResult(
        name=gate.name,
        verdict=verdict,
        n=row.boxes,
        unit="boxes",
        value=value,
        bound=bound,
        low=low,
        high=high,
        method=measured.method,
        slice=_slice_label(gate),
        required=gate.required,
        why=_explanation(gate, row, measured.estimate, reason),
    )


def _decide(low: float, high: float, bound: float, *, at_least: bool) -> tuple[Verdict, str]:
    side = "at least" if at_least else "at most"
    if low >= bound if at_least else high <= bound:
        return Verdict.PASS, f"the whole interval is {side} {bound:.3f}"
    if high < bound if at_least else low > bound:
        return Verdict.FAIL, f"the whole interval is not {side} {bound:.3f}"
    return Verdict.INSUFFICIENT, f"the interval includes the bound {bound:.3f}"


def _evidence_needed(estimate: Estimate, bound: float, drives: int) -> str:
    """How many more drives would decide a gate if its value stayed as it is, in words.

    The end of an interval moves towards the value with the square root of the number of drives.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    assert value is not None and low is not None and high is not None  # noqa: S101
    distance = abs(value - bound)
    reach = value - low if value >= bound else high - value
    if distance * _MOST_TIMES_DRIVES**0.5 <= reach:
        return "the value is too near the bound to be told from it by more drives"
    needed = math.ceil(drives * (reach / distance) ** 2)
    more = counted(max(1, needed - drives), "more drive")
    return f"if the value stays, about {more} of this slice would decide"


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


def _undecided(gate: MetricGate, row: SliceMetrics, bound: float, why: str) -> GateResult:
    return GateResult(
        name=gate.name,
        verdict=Verdict.INSUFFICIENT,
        n=row.boxes,
        unit="boxes",
        value=None,
        bound=bound,
        method="not compared",
        slice=_slice_label(gate),
        required=gate.required,
        why=why,
    )


def _explanation(gate: MetricGate, row: SliceMetrics, estimate: Estimate, reason: str) -> str:
    what = _METRIC_LABELS[gate.metric]
    if isinstance(gate, NoRegressionGate):
        what = f"{what} gained over the reference"
    elif isinstance(gate, Int8LossGate):
        what = f"{what} lost by INT8"
    shown = "unknown" if estimate.value is None else f"{estimate.value:.3f}"
    if estimate.low is not None and estimate.high is not None:
        shown += f" (interval {estimate.low:.3f} to {estimate.high:.3f})"
    evidence = (
        f"{counted(row.boxes, 'box', 'boxes')} on {counted(row.frames, 'frame')} of "
        f"{counted(row.drives, 'drive')}"
    )
    return f"{what} on {_slice_label(gate)}: {shown}, from {evidence}; {reason}"


def _slice_label(gate: MetricGate) -> str:
    return gate.slice if gate.cls == ALL_CLASSES else f"{gate.slice}, {gate.cls}"
