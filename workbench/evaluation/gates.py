"""Release gates: rules read from pipelines/gates.yaml, and the verdict on a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.text import did_you_mean
from workbench.data.resampling import MIN_DRIVES
from workbench.data.slices import STANDARD_SLICES
from workbench.evaluation.metrics import (
    ALL_CLASSES,
    METRIC_NAMES,
    Evaluation,
    EvaluationMetrics,
    EvaluationSettings,
    MetricDifference,
    MetricName,
    SliceMetrics,
    paired_difference,
)
from workbench.records.base import Digest, GateReport, GateResult, Ref, Verdict
from workbench.records.store import Store
from workbench.records.types import Inspection

_SLICE_NAMES = tuple(part.name for part in STANDARD_SLICES)


class _StrictModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _BaseGate(_StrictModel):
    """What all gates share."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    required: bool = True
    note: str = ""


class _BaseMetricGate(_BaseGate):
    """A gate on a metric. ``min_…`` is the evidence below which nothing is decided."""

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
    """The candidate may be worse than the model it is to replace by at most ``margin``."""

    kind: Literal["no_regression"]
    margin: float = Field(ge=0, le=1)


class Int8LossGate(_BaseMetricGate):
    """INT8 may be worse than the same model in FP32 by at most ``margin``."""

    kind: Literal["int8_loss"]
    margin: float = Field(ge=0, le=1)


class NoLeaksGate(_BaseGate):
    """No frame that the model is judged by resembles one that it learned from or was tuned on."""

    kind: Literal["no_leaks"]


MetricGate = FloorGate | NoRegressionGate | Int8LossGate
"""Gates that hold a metric against a bound."""

Gate = Annotated[MetricGate | NoLeaksGate, Field(discriminator="kind")]


class GateRules(_StrictModel):
    """All gates of a project and how their evidence is made."""

    schema_version: Literal[1]
    evaluation: EvaluationSettings = EvaluationSettings()
    gates: tuple[Gate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> GateRules:
        names = [gate.name for gate in self.gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two gates are named {twice[0]!r}")
        if not any(gate.required for gate in self.gates):
            raise ValueError("no gate is required, so every model would pass")
        return self

    @property
    def digest(self) -> Digest:
        return digest.of_json(self.as_json())

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def load_rules(path: Path) -> GateRules:
    """Read a gates file.

    Raises:
        ParameterError: It is missing, no YAML, or says something that is not understood; the
            message names the gate, the key and the nearest word that would be right.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise ParameterError(
            "no such gates file" if missing else f"gates file cannot be read: {error.strerror}",
            where=path,
            hint="The project's own is pipelines/gates.yaml",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
    # A mistyped key is also a missing one: say what was mistyped.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    location = [part for part in first["loc"] if part not in _GATE_KINDS]
    key = str(location[-1]) if location else ""
    message = first["msg"].removeprefix("Value error, ")
    hint = "pipelines/gates.yaml explains every key"
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
    """The gate by its name where it has one, else by its number."""
    if len(location) < 2 or location[0] != "gates" or not isinstance(location[1], int):
        return ""
    gate = content["gates"][location[1]]
    name = gate.get("name") if isinstance(gate, dict) else None
    return f", gate {name or location[1] + 1}"


# ---- Leaks as a gate: a figure on frames that the model has seen before is no evidence.


def _judge_leaks(gate: NoLeaksGate, inspection: Inspection | None) -> GateResult:
    """The verdict of an inspection, as one gate: which check found leaks, and the worst frames.

    Args:
        inspection: None where the split was not looked at, which is not enough evidence.
    """
    if inspection is None:
        return _leak_result(
            gate, Verdict.INSUFFICIENT, 0, None, "The split was not inspected for leaks"
        )
    asked = [one for one in inspection.gates if one.required]
    found = sum(int(one.value or 0) for one in asked)
    looked_at = max((one.n for one in asked if one.unit == "frames"), default=0)
    telling = [one for one in asked if one.verdict is inspection.verdict]
    why = "; ".join(f"{one.name}: {one.why or one.method}" for one in telling)
    return _leak_result(gate, inspection.verdict, looked_at, float(found), why)


def _leak_result(
    gate: NoLeaksGate, verdict: Verdict, frames: int, leaks: float | None, why: str
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


# ---- Verdicts: the whole interval decides, never the value alone.
#
# PASS                   the whole interval lies on the right side of the bound
# FAIL                   the whole interval lies on the wrong side
# INSUFFICIENT EVIDENCE  the interval straddles the bound, or there are too few drives or
#                        boxes for an interval that means anything, or no model to compare with
#
# More drives narrow the interval, so the way out of INSUFFICIENT EVIDENCE is evidence. Only PASS
# on every required gate lets a model be promoted.


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
    """Every gate's result, the verdict over the required ones, and what was measured."""

    verdict: Verdict
    gates: tuple[GateResult, ...]
    rules: GateRules
    candidate: EvaluationMetrics
    reference: EvaluationMetrics | None
    fp32: EvaluationMetrics | None

    @property
    def simulated(self) -> bool:
        return self.candidate.simulated


def judge(
    rules: GateRules,
    candidate: Evaluation,
    *,
    reference: Evaluation | None = None,
    fp32: Evaluation | None = None,
    inspection: Inspection | None = None,
) -> GateDecision:
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
    """FAIL if a required gate failed, else INSUFFICIENT if one could not be decided, else PASS."""
    required = {gate.verdict for gate in gates if gate.required}
    if Verdict.FAIL in required:
        return Verdict.FAIL
    return Verdict.PASS if required == {Verdict.PASS} else Verdict.INSUFFICIENT


def save_report(
    store: Store,
    judged: GateDecision,
    *,
    candidate: Ref,
    dataset: Ref,
    reference: Ref | None = None,
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


def _judge_metric(
    gate: MetricGate, candidate: Evaluation, reference: Evaluation | None, fp32: Evaluation | None
) -> GateResult:
    row = candidate.metrics.at(gate.slice, gate.cls)
    if isinstance(gate, FloorGate):
        figure = getattr(row, gate.metric)
        found = MetricDifference(figure, row.usable, row.method)
        return _metric_result(gate, row, found, gate.bound, at_least=True)
    if isinstance(gate, NoRegressionGate):
        if reference is None:
            return _undecided(gate, row, -gate.margin, "there is no earlier model to compare with")
        change = paired_difference(candidate, reference, gate.metric, gate.slice, gate.cls)
        return _metric_result(gate, row, change, -gate.margin, at_least=True)
    if fp32 is None:
        return _undecided(gate, row, gate.margin, "the FP32 model was not evaluated")
    loss = paired_difference(fp32, candidate, gate.metric, gate.slice, gate.cls)
    return _metric_result(gate, row, loss, gate.margin, at_least=False)


def _metric_result(
    gate: MetricGate, row: SliceMetrics, found: MetricDifference, bound: float, *, at_least: bool
) -> GateResult:
    figure = found.figure
    lacking = _missing_evidence(gate, row)
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
        slice=_slice_label(gate),
        required=gate.required,
        why=_explanation(gate, row, found, reason),
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


def _missing_evidence(gate: MetricGate, row: SliceMetrics) -> str | None:
    needs = (
        ("drives", row.drives, gate.min_drives),
        ("drives with such boxes", row.drives_with_boxes, gate.min_drives_with_boxes),
        ("boxes", row.boxes, gate.min_boxes),
    )
    for what, there, wanted in needs:
        if there < wanted:
            return f"{there} {what} where the gate needs {wanted}"
    return None


def _undecided(gate: MetricGate, row: SliceMetrics, bound: float, reason: str) -> GateResult:
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
        why=f"{reason[0].upper()}{reason[1:]}",
    )


def _explanation(gate: MetricGate, row: SliceMetrics, found: MetricDifference, reason: str) -> str:
    what = _METRIC_LABELS[gate.metric]
    if isinstance(gate, NoRegressionGate):
        what = f"{what} gained over the reference"
    elif isinstance(gate, Int8LossGate):
        what = f"{what} lost by INT8"
    figure = found.figure
    shown = "unknown" if figure.value is None else f"{figure.value:.3f}"
    if figure.low is not None and figure.high is not None:
        shown += f" (interval {figure.low:.3f} to {figure.high:.3f})"
    ground = f"{row.boxes} boxes on {row.frames} frames of {row.drives} drives"
    return f"{what} on {_slice_label(gate)}: {shown}, from {ground}; {reason}"


def _slice_label(gate: MetricGate) -> str:
    return gate.slice if gate.cls == "all" else f"{gate.slice}, {gate.cls}"


__all__ = ["GateDecision", "judge", "load_rules", "overall_verdict", "save_report"]
