"""The gates file: which metrics a model must reach before it may become champion.

`pipelines/gates.yaml` explains the keys; `workbench.evaluation.gates` judges by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.core.parsing import read_yaml
from workbench.core.text import did_you_mean
from workbench.core.types import Json
from workbench.data.resampling import MIN_DRIVES
from workbench.data.slices import STANDARD_SLICES, Slice
from workbench.evaluation.confidence import OperatingPointRule
from workbench.evaluation.incidents import GATE_NAME
from workbench.evaluation.results import (
    ALL_CLASSES,
    METRIC_NAMES,
    EvaluationSettings,
    MetricName,
)
from workbench.evaluation.safety import SafetyAssumptions
from workbench.records.base import Digest

__all__ = ["load_rules"]

_STANDARD = tuple(part.name for part in STANDARD_SLICES)


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
    slice: str = Field(default="all", json_schema_extra={"examples": list(_STANDARD)})
    cls: str = Field(default=ALL_CLASSES, alias="class")
    min_drives: int = Field(default=MIN_DRIVES, ge=MIN_DRIVES)
    min_drives_with_boxes: int = Field(default=5, ge=2)
    min_boxes: int = Field(default=100, ge=1)

    @field_validator("slice")
    @classmethod
    def _is_known(cls, value: str, info: ValidationInfo) -> str:
        if value not in (info.context or {}).get("slices", _STANDARD):
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


CeilingMetric = Literal["critical_miss_rate", "critical_false_positive_rate", "calibration_error"]


class CeilingGate(_BaseGate):
    """A safety metric of the candidate may be at most ``bound``."""

    kind: Literal["ceiling"]
    metric: CeilingMetric
    bound: float = Field(ge=0, le=1)
    min_drives: int = Field(default=MIN_DRIVES, ge=MIN_DRIVES)
    min_n: int = Field(default=100, ge=1)


class NoLeaksGate(_BaseGate):
    """No safety frame may resemble a training or validation frame."""

    kind: Literal["no_leaks"]


MetricGate = FloorGate | NoRegressionGate | Int8LossGate
"""Gates that compare a metric with a bound."""

Gate = Annotated[MetricGate | CeilingGate | NoLeaksGate, Field(discriminator="kind")]


class GateRules(_StrictModel):
    """All gates of a project and the settings of the evaluation."""

    schema_version: Literal[1]
    evaluation: EvaluationSettings = EvaluationSettings()
    operating_point: OperatingPointRule | None = None
    assumptions: SafetyAssumptions = SafetyAssumptions()
    gates: tuple[Gate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> GateRules:
        names = [gate.name for gate in self.gates]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"two gates are named {duplicates[0]!r}")
        if GATE_NAME in names:
            raise ValueError(f"{GATE_NAME!r} is the gate of incidents, which no rule states")
        if not any(gate.required for gate in self.gates):
            raise ValueError("no gate is required, so every model would pass")
        return self

    @property
    def digest(self) -> Digest:
        """SHA-256 of the rules."""
        return digest.of_json(self.as_json())

    def settings_at(self, threshold: float) -> EvaluationSettings:
        """Settings to evaluate with at a threshold that was chosen on other frames."""
        return self.evaluation.model_copy(update={"threshold": threshold})

    def as_json(self) -> Json:
        """The rules as in a gates file, with all defaults."""
        return self.model_dump(mode="json", by_alias=True)


def load_rules(path: Path, slices: Sequence[Slice] = STANDARD_SLICES) -> GateRules:
    """Read a gates file.

    Args:
        path: The file.
        slices: That gates may name, such as those of `load_slices`.

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
        names = tuple(part.name for part in slices)
        return GateRules.model_validate(content, context={"slices": names})
    except ValidationError as error:
        raise _rules_error(error, content, path, names) from error


def _rules_error(
    error: ValidationError, content: Any, path: Path, slices: Sequence[str]
) -> ParameterError:
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
        hint = did_you_mean(str(first["input"]), _allowed_values(key, slices))
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
    "ceiling": CeilingGate,
    "no_leaks": NoLeaksGate,
}


def _known_keys(location: list[str | int]) -> list[str]:
    sections: dict[str | int, type[BaseModel]] = {
        "evaluation": EvaluationSettings,
        "operating_point": OperatingPointRule,
        "assumptions": SafetyAssumptions,
    }
    model = sections.get(location[0], GateRules) if location else GateRules
    if location[:1] == ["gates"] and len(location) > 2:
        model = _GATE_KINDS[str(location[2])]
    return [field.alias or name for name, field in model.model_fields.items()]


def _allowed_values(key: str, slices: Sequence[str]) -> list[str]:
    allowed: dict[str, Sequence[str]] = {
        "slice": slices,
        "metric": (*METRIC_NAMES, *get_args(CeilingMetric)),
    }
    return [str(value) for value in allowed.get(key, ("1",))]


def _gate_location(location: list[str | int], content: Any) -> str:
    """The gate by name, or by position when it has none."""
    if len(location) < 2 or location[0] != "gates" or not isinstance(location[1], int):
        return ""
    gate = content["gates"][location[1]]
    name = gate.get("name") if isinstance(gate, dict) else None
    return f", gate {name or location[1] + 1}"
